"""Records made by hand, with sums that can be done in the head."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def make_record(
    path: Path,
    accuracy: float,
    *,
    seed: int = 0,
    dataset: str = "decoy",
    penalty: str = "cdep",
    strength: float = 10.0,
    form: str = "pair",
    fingerprint: str = "f" * 64,
    threads: int = 1,
    train_size: int | None = None,
    selection: float | None = None,
    record: dict[str, Any] | None = None,
) -> None:
    """Write a record of `accuracy` on test, and on `val_shifted` of `selection` (None: as test)."""
    whole = {
        "config": {
            "dataset": {"name": dataset, "train_size": train_size},
            "penalty": {"name": penalty, "strength": strength}
            | ({"form": form} if penalty == "cdep" else {}),
            "training": {"epochs": 5, "patience": 2},
            "seed": seed,
            "threads": threads,
        },
        "data": {"name": dataset, "fingerprint": fingerprint, "examples": {"test": 100}},
        "seed": seed,
        "epochs": 5,
        "tested_epoch": 5,
        "epoch_chosen_by": "last epoch trained",
        "selection_split": "val_shifted",
        "metrics": {
            "val_shifted": {"accuracy": accuracy if selection is None else selection},
            "test": {"accuracy": accuracy, "auc": None},
        },
        "seconds_per_epoch": 2.0,
        "peak_memory_bytes": 10**9,
    } | (record or {})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(whole))
