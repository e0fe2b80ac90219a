"""What can be measured of trained nets, of which examples, and what was found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cdep_run.batch import Batch
from cdep_run.datasets.base import Bunch, TensorSplit
from cdep_run.errors import CdepError
from cdep_run.evidence import explainers

MEASURES = {
    "area": "patch's area",
    "cd_share": "CD share of the patch",
    "gradcam": "Grad-CAM inside it",
    "gradient": "gradient inside it",
    "painted_over": "log-odds, patch painted over",
    "painted_changed": "predictions changed, patch painted over",
    "pasted": "log-odds, sticker pasted",
    "cutout": "log-odds, patch of another image pasted",
    "cutout_changed": "predictions changed, patch of another image pasted",
    "removed": "log-odds, projected part removed",
    "removed_changed": "predictions changed, projected part removed",
    "exchanged_changed": "predictions changed, exchanged with another example's",
    "set_changed": "predictions changed by some value of the column",
    "deleted": "log-odds, words deleted",
    "deleted_changed": "predictions changed, words deleted",
    "inserted_changed": "predictions changed, words inserted",
    "swapped_changed": "predictions changed, word of the other class",
    "omission": "omission, in means of all words",
    "word_gradient": "gradient × input, in means of all words",
    "word_cd": "CD, in means of all words",
    "column_gradient": "gradient × input, share of the columns",
    "column_cd": "CD share of the columns",
}
"""What is measured of each example, and its title in tables; see `docs/evidence.md`.

Which of them make sense depends on the kind of data: images, text, a table, or groups that are
linear maps. Log-odds are changes of the log-odds of the class to be found, else of the true class.
"""

PORTION = 8
"""Examples judged together."""


@dataclass(frozen=True)
class Options:
    """What is judged, and how.

    Attributes:
        split: of which examples.
        limit: judge at most so many examples with the feature, and so many without, of each run,
            spread evenly; None: all. Words are explained one by one in at most 300 sentences.
        avoid: folder with masks `<id>.png` of what a pasted sticker should not cover, or None.
        seed: of the pasted stickers and the bootstrap.
        resamples: of the bootstrap.
        relu: CD's rule for ReLU, the same for all nets.
        examples: images in the figure.
        measures: what is measured; names of `MEASURES`.
    """

    split: str = "test"
    limit: int | None = None
    avoid: Path | None = None
    seed: int = 0
    resamples: int = 1000
    relu: str = "symmetric"
    examples: int = 6
    measures: tuple[str, ...] = tuple(MEASURES)


@dataclass
class Found:
    """What came of one or more runs: rows (setting, id, measure, value), pictures, what lacks."""

    rows: list[tuple[str, str, str, float]] = field(default_factory=list)
    pictures: dict[tuple[str, str], tuple[NDArray[Any], str]] = field(default_factory=dict)
    images: dict[str, tuple[NDArray[Any], NDArray[np.bool_]]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def add(self, setting: str, ids: list[str], measure: str, values: Tensor) -> None:
        """Note a value of each image."""
        rows = zip(ids, values.tolist(), strict=True)
        self.rows += [(setting, name, measure, value) for name, value in rows]


def spread(places: list[Any], limit: int | None) -> list[Any]:
    """At most `limit` of them, evenly spread."""
    count = len(places) if limit is None else min(limit, len(places))
    return [places[i * len(places) // count] for i in range(count)]


def portions(split: TensorSplit, places: list[int]) -> Iterator[tuple[list[str], Batch]]:
    """Names and examples at `places`, a few at a time."""
    for index in torch.tensor(places, dtype=torch.int64).split(PORTION):
        if len(index):
            names = [split.ids[i] if split.ids else str(i) for i in index.tolist()]
            yield names, split.batch(index)


def explained(bunch: Bunch, labels: Tensor) -> Tensor:
    """Return the class whose log-odds are followed: the one to be found, else the true one."""
    return labels if bunch.positive is None else torch.ones_like(labels)


@torch.no_grad()
def odds(model: nn.Module, inputs: Tensor, classes: Tensor) -> Tensor:
    """Return the log-odds of each of `classes`, `[N]`."""
    return explainers.log_odds(model(inputs), classes)


@torch.no_grad()
def changed(model: nn.Module, before: Tensor, after: Tensor) -> Tensor:
    """Return 1 where the prediction for `after` is another one than for `before`, else 0; `[N]`."""
    return (model(before).argmax(1) != model(after).argmax(1)).float()


def measure_each(
    setting: str,
    names: list[str],
    measured: Mapping[str, Callable[[], Tensor]],
    options: Options,
    found: Found,
) -> None:
    """Add those measures that are asked for; one that this net cannot have goes to `left_out`."""
    for measure, value in measured.items():
        try:
            if measure in options.measures:
                found.add(setting, names, measure, value())
        except (CdepError, NotImplementedError) as error:
            found.left_out[measure] = str(error)
