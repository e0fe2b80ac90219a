"""Evidence for groups that are linear maps: the projected part removed, or exchanged."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cdep_run.batch import Batch
from cdep_run.datasets.base import Bunch
from cdep_run.evidence.measure import (
    Found,
    Options,
    changed,
    explained,
    measure_each,
    odds,
    portions,
    spread,
)


def judge_projected(
    setting: str, model: nn.Module, bunch: Bunch, options: Options, found: Found
) -> None:
    """Add to `found` what becomes of the predictions when mask · P x goes, or is another example's.

    Removed: x − Σ mask · P x over the groups. Exchanged: the part of the next example of the
    portion is put in its place. Inputs are float; of token ids nothing is measured.
    """
    split = bunch.splits[options.split]
    for names, batch in portions(split, spread(list(range(len(split))), options.limit)):
        judge_portion(setting, model, bunch, names, batch, options, found)


def judge_portion(
    setting: str,
    model: nn.Module,
    bunch: Bunch,
    names: list[str],
    batch: Batch,
    options: Options,
    found: Found,
) -> None:
    """Judge some examples together; exchanges are among them."""
    inputs, classes = batch.inputs, explained(bunch, batch.labels)
    own = group_part(batch)
    without = inputs - own
    other = without + own.roll(1, 0)
    measured = {
        "removed": lambda: odds(model, without, classes) - odds(model, inputs, classes),
        "removed_changed": lambda: changed(model, inputs, without),
        "exchanged_changed": lambda: changed(model, inputs, other),
    }
    measure_each(setting, names, measured, options, found)


def group_part(batch: Batch) -> Tensor:
    """Return the part of the inputs that belongs to any group, `[N, *features]`."""
    assert batch.groups is not None
    if batch.groups.projection is None:
        inside = batch.groups.mask.any(1).expand_as(batch.inputs)
        return torch.where(inside, batch.inputs, torch.zeros_like(batch.inputs))
    return batch.groups.project(batch.inputs).sum(1)
