"""The record: what a run writes, and that result.json comes last and whole."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import yaml

from cdep_run import files
from cdep_run.metrics import scores
from cdep_run.results import record
from running import run


def test_a_run_writes_its_settings_epochs_events_checkpoints_and_result(tmp_path: Path) -> None:
    result = run(tmp_path, "loggers=[csv,tensorboard]", "seed=3")
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.yaml", "metrics.csv", "model_card.md", "tensorboard", "checkpoints",
        "model.safetensors", "result.json",
    }  # fmt: skip
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert config == result["config"] and config["penalty"]["strength"] == 0.1
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    for split in ("val", "test"):
        for name in ("loss", "accuracy", "auc", "f1"):
            assert float(rows[-1][f"{split}/{name}"]) == result["metrics"][split][name]
    assert list((tmp_path / "tensorboard").iterdir())
    written = json.loads((tmp_path / "result.json").read_text())
    assert written == {
        "record_format": 2, **result, "record_sha256": written["record_sha256"]
    }  # fmt: skip
    assert record.read_result(tmp_path) == result


def test_the_result_says_what_is_needed_to_judge_and_repeat_it(tmp_path: Path) -> None:
    result = run(tmp_path)
    assert result["seed"] == 0 and len(result["data"]["fingerprint"]) == 64
    assert result["data"]["examples"] == {"train": 64, "val": 24, "test": 24}
    assert result["selection_split"] == "val" and result["epoch_chosen_by"] == "last epoch trained"
    assert result["seconds_per_epoch"] > 0 and result["peak_memory_bytes"] > 1e7
    assert {"cdep-run", "python", "torch"} <= result["versions"].keys()


def test_the_best_epoch_is_the_one_that_is_reported_if_it_is_restored(tmp_path: Path) -> None:
    result = run(tmp_path, "training.restore_best=true", "optimizer.lr=3", "training.epochs=6")
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    best = min(rows, key=lambda row: float(row["val/loss"]))
    assert result["tested_epoch"] == result["best_epoch"] == int(best["epoch"]) < 6
    assert result["epoch_chosen_by"] == "val"
    assert result["metrics"]["test"]["loss"] == float(best["test/loss"])


def test_the_commit_is_that_of_the_working_copy_and_none_of_a_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "config_dir", lambda: tmp_path / "cdep_run" / "configs")
    assert record.git_state() is None


def test_a_file_is_replaced_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "result.json"
    files.write_json(path, {"n": 1})
    monkeypatch.setattr("os.fsync", lambda descriptor: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        files.write_json(path, {"n": 2})
    assert files.read_json(path) == {"n": 1}


def test_scores_of_a_case_worked_by_hand() -> None:
    import torch

    logits = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    found = scores(logits, torch.tensor([0, 1, 1, 0]))
    # predicted 0 0 1 0; F1 of class 0: 2·2/(3+2), of class 1: 2·1/(1+2); class 1 is ranked
    # above class 0 in 4 of 4 pairs
    assert found["accuracy"] == 0.75
    assert found["f1"] == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert found["auc"] == 1.0
    assert found["mean_logit"] == pytest.approx(7 / 8)


def test_auc_is_none_where_a_class_has_no_example() -> None:
    import torch

    assert scores(torch.randn(4, 3), torch.tensor([0, 1, 1, 0]))["auc"] is None
