"""What an example would be without its group, or with another example's; a split made of such.

A user without shifted validation data chooses λ on these: a net that leans on the group fails on
`val_counterfactual`, one that a penalty has crippled on `val`, and λ is best by the worse of both.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from cdep_run.batch import Batch, Groups
from cdep_run.datasets.base import Bunch, DataError, TensorSplit

CHANGES = ("remove", "exchange")
"""What may become of a group: see `remove` and `exchange`."""

SEED = 0
"""Of who exchanges with whom: fixed, so that all runs on the same data are judged alike."""

COUNTERFACTUAL, WORST = "val_counterfactual", "val_worst"


def part(inputs: Tensor, groups: Groups) -> Tensor:
    """What of float inputs `[N, *features]` belongs to any of the groups, of the same shape."""
    together = replace(groups, mask=_union(groups), boxes=None, relevant=None)
    return together.project(inputs)[:, 0]


def remove(inputs: Tensor, groups: Groups, padding: int = 0) -> Tensor:
    """The inputs without what belongs to the groups.

    A projected part becomes that of the mean input. A region of images `[N, C, H, W]` gets the mean
    of the rest of its image, channel by channel; other features 0, their mean where they are
    standardised. Of token ids `[N, T]` the words go, and the sentence closes up.

    Args:
        padding: the token id behind a sentence's end.
    """
    if not inputs.is_floating_point():
        return _deleted(inputs, _tokens(groups).expand_as(inputs), padding)
    rest = inputs - part(inputs, groups)
    if groups.projection is not None or inputs.dim() != 4:
        return rest
    inside = _union(groups)[:, 0].expand_as(inputs)
    count = (~inside).sum((2, 3), keepdim=True).clamp(min=1)
    return rest + inside * (rest.sum((2, 3), keepdim=True) / count)


def exchange(
    inputs: Tensor, groups: Groups, others: Tensor, of_others: Groups, padding: int = 0
) -> Tensor:
    """The inputs with the groups of other examples in place of their own.

    Columns are permuted by it, colours change hands, a sticker is taken away and another one is
    pasted where that was. Of token ids the first of the other's words stands in for each of one's
    own; without one these words go.

    Args:
        inputs, others: `[N, *features]`, and the examples whose groups they get.
        groups, of_others: theirs.
        padding: the token id behind a sentence's end.
    """
    if inputs.is_floating_point():
        rest = remove(inputs, groups)
        return rest - part(rest, of_others) + part(others, of_others)
    own, theirs = _tokens(groups).expand_as(inputs), _tokens(of_others).expand_as(others)
    word = others.gather(1, theirs.int().argmax(1, keepdim=True))
    has = theirs.any(1, keepdim=True)
    return _deleted(torch.where(own & has, word, inputs), own & ~has, padding)


def _union(groups: Groups) -> Tensor:
    """Bool `[N or 1, 1, *features]`: where any group is."""
    mask = groups.mask.any(1, keepdim=True)
    if groups.annotated is None:
        return mask
    return mask & groups.annotated.view(-1, *(1,) * (mask.dim() - 1))


def _tokens(groups: Groups) -> Tensor:
    """Bool `[N or 1, T]`: the words of any group.

    Raises:
        DataError: the group is a direction of word vectors, and words cannot be taken apart.
    """
    if groups.projection is not None:
        raise DataError(
            f"the group {groups.projection.name} is a part of every word's vector, and no sentence "
            "is without it; name words that must not matter, or choose no counterfactual"
        )
    return _union(groups)[:, 0]


def _deleted(tokens: Tensor, gone: Tensor, padding: int) -> Tensor:
    """Sentences `[N, T]` without the words that are `gone`; those behind move up."""
    order = gone.int().argsort(dim=1, stable=True)
    return tokens.masked_fill(gone, padding).gather(1, order)


class CounterfactualSplit(TensorSplit):
    """The examples of a split, each with its groups removed or exchanged for another one's.

    Args:
        split: knows the groups of its examples.
        change: one of `CHANGES`.
        padding: of text, the token id behind a sentence's end.
    """

    def __init__(self, split: TensorSplit, change: str, padding: int = 0) -> None:
        super().__init__(split.inputs, split.labels)
        self.split, self.change, self.padding, self.ids = split, change, padding, split.ids
        generator = torch.Generator().manual_seed(SEED)
        order = torch.randperm(len(split), generator=generator)
        self.partner = torch.empty_like(order)
        self.partner[order] = order.roll(1)

    def batch(self, index: Tensor) -> Batch:
        """As in `TensorSplit`: the changed examples, with the groups that they had."""
        with _drawing_the_same():
            batch = self.split.batch(index)
        groups = batch.groups
        if groups is None:
            raise DataError("a counterfactual split needs groups, and the examples have none")
        if self.change == "remove":
            return replace(batch, inputs=remove(batch.inputs, groups, self.padding))
        with _drawing_the_same():
            other = self.split.batch(self.partner[index.to(self.partner.device)].to(index.device))
        assert other.groups is not None
        others = (other.inputs, other.groups, self.padding)
        return replace(batch, inputs=exchange(batch.inputs, groups, *others))

    def order(self, batch_size: int, shuffle: bool) -> list[Tensor]:
        """As the split's."""
        return self.split.order(batch_size, shuffle)

    def check(self) -> None:
        """As the split's."""
        self.split.check()

    def to(self, device: torch.device | str) -> CounterfactualSplit:
        """A copy on `device`."""
        moved = copy.copy(self)
        moved.split = self.split.to(device)
        moved.inputs, moved.labels = moved.split.inputs, moved.split.labels
        return moved


@contextmanager
def _drawing_the_same() -> Iterator[None]:
    """Inside, what a split draws at random does not depend on what was drawn before."""
    state = torch.default_generator.get_state()
    torch.default_generator.manual_seed(SEED)
    try:
        yield
    finally:
        torch.default_generator.set_state(state)


def with_counterfactual(bunch: Bunch, change: str | None) -> Bunch:
    """`bunch` with a split `val_counterfactual`, λ chosen by the worse of it and `val`.

    Args:
        change: one of `CHANGES`; None: `bunch` as it is.

    Raises:
        DataError: another word, or the data do not know the groups of the examples of `val`.
    """
    if change is None:
        return bunch
    if change not in CHANGES:
        raise DataError(
            f"training.counterfactual_val is {change}; accepted: {', '.join(CHANGES)}, or null"
        )
    val = bunch.splits["val"]
    made = CounterfactualSplit(val, change, bunch.padding)
    index = torch.arange(min(2, len(val)), device=val.labels.device)
    if val.batch(index).groups is None:
        raise DataError(
            f"training.counterfactual_val={change}: {bunch.name} does not know which features of "
            "its split val must not matter; set it to null"
        )
    made.batch(index)
    splits = {**bunch.splits, COUNTERFACTUAL: made}
    return replace(bunch, splits=splits, selection_split=WORST, worst_of=("val", COUNTERFACTUAL))


def worst(first: dict[str, float | None], second: dict[str, float | None]) -> dict:
    """The worse of two splits' metrics, one by one: a loss the higher, all else the lower."""
    found: dict[str, float | None] = {}
    for name in first.keys() & second.keys():
        a, b = first[name], second[name]
        if a is None or b is None:
            found[name] = None
        else:
            found[name] = max(a, b) if name == "loss" else min(a, b)
    return {name: found[name] for name in first if name in found}
