"""Evidence from the rows of a table: columns exchanged or set, and their share of the score."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cdep_run.attribution import input_gradients
from cdep_run.datasets.base import Bunch
from cdep_run.datasets.table import Column
from cdep_run.evidence import explainers
from cdep_run.evidence.columns import row_changes
from cdep_run.evidence.measure import Found, Options, explained, measure_each, spread


def judge_rows(
    setting: str, model: nn.Module, bunch: Bunch, options: Options, found: Found
) -> None:
    """Add what is measured of one net's table rows to `found`; all groups together."""
    split, how = bunch.splits[options.split], bunch.preprocessing or {}
    columns = [Column(**entry | {"values": tuple(entry["values"])}) for entry in how["columns"]]
    places = spread(list(range(len(split))), options.limit)
    batch = split.batch(torch.tensor(places))
    assert batch.groups is not None
    mask = batch.groups.mask[0].any(0)
    names = [split.ids[i] if split.ids else str(i) for i in places]
    train = bunch.splits["train"].inputs
    exchanged, moved = row_changes(model, mask, columns, batch.inputs, train, options.seed)
    classes = explained(bunch, batch.labels)
    unbiased = explainers.without_last_bias
    measured = {
        "exchanged_changed": lambda: exchanged,
        "set_changed": lambda: moved,
        "column_gradient": lambda: gradient_share(model, batch.inputs, train, mask, classes),
        "column_cd": lambda: explainers.cd_share(
            unbiased(model, bunch.num_classes), batch.inputs, mask[None, None], options.relu
        )[:, 0],
    }
    measure_each(setting, names, measured, options, found)


def gradient_share(
    model: nn.Module, inputs: Tensor, train: Tensor, mask: Tensor, classes: Tensor
) -> Tensor:
    """Return the group's share of Σ |gradient × (x − training mean)|, `[N]`; NaN of a sum of 0."""
    _, slope = input_gradients(
        explainers.Centred(model), inputs, lambda z: z.gather(1, classes[:, None]).sum()
    )
    sizes = (slope.detach() * (inputs - train.mean(0))).abs()
    return (sizes * mask).sum(1) / sizes.sum(1)
