"""Counterfactual examples: what remove and exchange leave, and a validation split made of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cdep_run.batch import Groups
from cdep_run.datasets.base import DataError, TensorSplit
from cdep_run.datasets.counterfactual import (
    CounterfactualSplit,
    exchange,
    part,
    remove,
    with_counterfactual,
    worst,
)
from cdep_run.datasets.projections import Chroma, Span
from cdep_run.results.record import read_result
from running import run
from tiny_data import tiny


def images(count: int = 4) -> torch.Tensor:
    return torch.randn(count, 3, 5, 6, generator=torch.Generator().manual_seed(1))


def spots() -> Groups:
    """Two groups; the last image has none."""
    mask = torch.zeros(4, 2, 1, 5, 6, dtype=torch.bool)
    for k in range(3):
        mask[k, 0, :, k, :2], mask[k, 1, :, 4, k] = True, True
    return Groups(mask, annotated=mask.flatten(1).any(1))


def test_a_removed_region_gets_the_mean_of_the_rest_of_its_image() -> None:
    x, groups = images(), spots()
    gone = remove(x, groups)
    inside = groups.mask.any(1).expand_as(x)
    assert gone[~inside].equal(x[~inside]) and gone[3].equal(x[3])
    for image, result, where in zip(x, gone, inside, strict=True):
        for plane, new, there in zip(image, result, where, strict=True):
            assert torch.allclose(new[there], plane[~there].mean().expand(int(there.sum())))


def test_exchange_takes_the_own_region_away_and_pastes_the_other_one_where_it_was() -> None:
    x, groups = images(), spots()
    order = torch.tensor([1, 2, 3, 0])
    theirs = Groups(groups.mask[order], annotated=groups.annotated[order])
    new = exchange(x, groups, x[order], theirs)
    pasted = theirs.mask.any(1).expand_as(x)
    assert torch.allclose(new[pasted], x[order][pasted])
    assert torch.allclose(new[~pasted], remove(x, groups)[~pasted])


def test_exchanged_colours_leave_the_grey_image_and_removed_ones_the_mean_colour() -> None:
    chroma = Chroma(torch.tensor([0.3, 1.0, 2.0]).view(3, 1, 1))
    groups = Groups(torch.ones(1, 1, 1, 1, 1, dtype=torch.bool), projection=chroma)
    x, order = images(), torch.tensor([2, 3, 1, 0])
    new = exchange(x, groups, x[order], groups)
    assert torch.allclose(part(new, groups), part(x[order], groups), atol=1e-5)
    assert torch.allclose(new - part(new, groups), x - part(x, groups), atol=1e-5)
    assert part(remove(x, groups), groups).abs().max() < 1e-5


def test_columns_are_permuted_and_removed_ones_are_at_their_mean() -> None:
    x = torch.randn(4, 3)
    groups = Groups(torch.tensor([[[False, True, False]]]))
    order = torch.tensor([1, 2, 3, 0])
    assert torch.allclose(exchange(x, groups, x[order], groups)[:, 1], x[order, 1])
    assert torch.allclose(exchange(x, groups, x[order], groups)[:, [0, 2]], x[:, [0, 2]])
    assert remove(x, groups)[:, 1].eq(0).all()


def test_words_are_deleted_and_swapped() -> None:
    tokens = torch.tensor([[5, 7, 6, 8], [9, 5, 0, 0], [6, 6, 0, 0]])
    mask = torch.tensor([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)
    groups = Groups(mask[:, None])
    assert remove(tokens, groups).tolist() == [[5, 6, 8, 0], [5, 0, 0, 0], [6, 6, 0, 0]]
    order = torch.tensor([1, 2, 0])
    swapped = exchange(tokens, groups, tokens[order], Groups(mask[order][:, None]))
    assert swapped.tolist() == [[5, 9, 6, 8], [5, 0, 0, 0], [6, 6, 0, 0]]
    direction = Groups(mask[:, None], projection=Span(torch.eye(3)[:1], "he − she"))
    with pytest.raises(DataError, match="he − she"):
        remove(tokens, direction)


def test_the_split_is_the_same_whatever_was_drawn_before_and_leaves_the_generator_alone() -> None:
    split = CounterfactualSplit(tiny(0, 64).splits["val"], "exchange")
    index = torch.arange(5)
    first = split.batch(index).inputs
    torch.rand(3)
    state = torch.get_rng_state()
    assert split.batch(index).inputs.equal(first)
    assert torch.get_rng_state().equal(state)
    assert (split.partner != torch.arange(len(split))).all()
    assert split.partner.sort().values.equal(torch.arange(len(split)))


def test_the_worse_of_two() -> None:
    first = {"loss": 1.0, "accuracy": 0.5, "auc": None}
    assert worst(first, {"loss": 0.5, "accuracy": 0.25, "auc": 0.5, "f1": 1.0}) == {
        "loss": 1.0, "accuracy": 0.25, "auc": None}  # fmt: skip


def test_bunches_without_groups_and_unknown_changes_are_refused() -> None:
    unknown = tiny(0, 20)
    unknown.splits["val"].annotation = None
    with pytest.raises(DataError, match="does not know"):
        with_counterfactual(unknown, "remove")
    with pytest.raises(DataError, match="accepted: remove, exchange"):
        with_counterfactual(tiny(0, 20), "paste")
    bunch = tiny(0, 20)
    assert with_counterfactual(bunch, None) is bunch
    made = with_counterfactual(bunch, "remove").to("meta").splits["val_counterfactual"]
    assert isinstance(made, TensorSplit) and made.labels.is_meta


def test_a_run_is_judged_by_the_worse_of_both_and_resumes_exactly(tmp_path: Path) -> None:
    wanted = ("training.counterfactual_val=exchange", "training.monitor=val_worst/accuracy")
    result = run(tmp_path / "whole", *wanted)
    metrics = result["metrics"]
    assert result["selection_split"] == "val_worst"
    for name in ("accuracy", "f1"):
        pair = metrics["val"][name], metrics["val_counterfactual"][name]
        assert metrics["val_worst"][name] == min(pair)
    again = run(tmp_path / "again", *wanted)
    assert read_result(tmp_path / "again")["metrics"] == metrics == again["metrics"]
