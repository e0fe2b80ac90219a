"""penalty.every: the penalty at every k-th step, k times as heavy; resumed runs stay exact."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cdep_run.batch import Groups
from cdep_run.datasets.sentences import Sentences, TextSplit, TokenGroups
from cdep_run.errors import ConfigError
from cdep_run.penalties.cdep import CDEP
from cdep_run.training.loop import Trainer
from running import run
from test_loop import trainer, weight_norm
from tiny_data import TinyNet


def lazy(penalty, every: int, **training) -> Trainer:
    made = trainer(penalty, 0.5, **training)
    made.every = every
    return made


class Counted:
    """The squared weights, and the steps at which they were asked for."""

    needs_groups = True

    def __init__(self, one: list[Trainer]) -> None:
        self.one, self.steps = one, []

    def __call__(self, model: TinyNet, batch) -> tuple[Tensor, Tensor]:
        progress = self.one[0].progress
        self.steps.append(7 * progress.epoch + progress.step)
        return weight_norm(model, batch)


def steps_paid(every: int, holds=None) -> list[int]:
    """The steps of two epochs of 7 batches that pay."""
    one: list[Trainer] = []
    penalty = Counted(one)
    one.append(lazy(penalty, every))
    if holds is not None:
        one[0].bunch.splits["train"].annotation.holds = holds
    one[0].fit()
    return penalty.steps


def test_every_kth_step_pays_across_epochs() -> None:
    assert steps_paid(1) == list(range(14))
    assert steps_paid(3) == [0, 3, 6, 9, 12]
    assert steps_paid(7) == [0, 7]


def test_batches_that_hold_nothing_neither_pay_nor_count() -> None:
    turn = iter(range(100))
    assert steps_paid(2, lambda index: next(turn) % 2 == 0) == [0, 4, 8, 12]


def test_a_step_that_pays_pays_for_all_k() -> None:
    """The same step as with k times the strength; the others are those without a penalty."""

    def moved(every: int, strength: float, penalised: bool) -> Tensor:
        one = lazy(weight_norm, every)
        one.strength = strength
        one.model.eval()
        row = one.train_step(one.bunch.splits["train"].batch(torch.arange(10)), penalised)
        weights = torch.cat([weight.flatten() for weight in one.model.parameters()])
        return torch.cat([weights, row[1:2] * strength])

    torch.testing.assert_close(moved(4, 0.01, True), moved(1, 0.04, True))
    torch.testing.assert_close(moved(4, 0.01, False), moved(1, 0.0, True))


@pytest.mark.parametrize("stop_at", range(1, 14))
def test_a_resumed_lazy_run_is_the_same_to_the_last_bit(stop_at: int) -> None:
    def weights(one: Trainer) -> Tensor:
        return torch.cat([w.flatten() for w in one.model.parameters()])

    whole = lazy(CDEP("centred"), 3)
    states: list[dict] = []
    first = lazy(CDEP("centred"), 3, checkpoint_seconds=0.0)
    first.save = lambda state: states.append(copy.deepcopy(state))
    whole.fit()
    first.fit()
    second = lazy(CDEP("centred"), 3)
    second.load_state(states[stop_at])
    second.fit()
    assert weights(second).equal(weights(whole))
    assert second.progress.column("train/penalty") == whole.progress.column("train/penalty")


@pytest.mark.parametrize(("every", "message"), [(0, "penalty.every is 0"), (9, "has 7 steps")])
def test_k_that_no_epoch_can_keep_is_refused(tmp_path: Path, every: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(tmp_path, f"penalty.every={every}")


def test_sentences_say_which_batches_hold_a_word() -> None:
    tokens = torch.tensor([[1, 2], [3, 0], [2, 2]])
    mask = tokens == 3
    split = TextSplit(
        Sentences(tokens, torch.tensor([2, 1, 2]), torch.tensor([0, 1, 0])), TokenGroups(mask)
    )
    assert split.annotates(torch.tensor([0, 1])) and not split.annotates(torch.tensor([0, 2]))
    split.annotation = lambda index: Groups(mask[index][:, None])
    assert split.annotates(torch.tensor([0, 2]))  # not known beforehand
