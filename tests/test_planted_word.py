"""Reliance on the planted word: by hand on a bag of words, the reliance_table, bad input."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cdep_run.datasets.base import Bunch
from cdep_run.datasets.sentences import Sentences, TextSplit
from cdep_run.datasets.sst import first_word
from cdep_run.evidence.planted_word import (
    Reliance,
    cd,
    gradient,
    main,
    margins,
    measure,
    omission,
    reliance_table,
)
from running import run

NEGATIVE, POSITIVE, GOOD, BAD, FILM = range(2, 7)


class Bag(nn.Module):
    """A sentence's margin is the sum of its words' values; `planted` is that of the planted."""

    def __init__(self, planted: float) -> None:
        super().__init__()
        values = torch.tensor([0, 0, -planted, planted, 1.0, -1.0, 0.25])
        self.embedding = nn.Embedding.from_pretrained(values[:, None])
        self.head = nn.Linear(1, 2)
        self.head.weight.data = torch.tensor([[-0.5], [0.5]])
        self.head.bias.data = torch.tensor([0.1, 0.1])

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.embedding(tokens).sum(1))


def planted_bunch() -> Bunch:
    """Two sentences, a good and a bad film, and the same with a planted word before them."""
    words, labels = torch.tensor([NEGATIVE, POSITIVE]), torch.tensor([1, 0])

    def split(first: list[int] | None) -> TextSplit:
        rows = torch.tensor([[GOOD, FILM], [BAD, FILM]])
        if first is not None:
            rows = torch.cat([torch.tensor(first)[:, None], rows], 1)
        sentences = Sentences(rows, torch.tensor([rows.shape[1]] * 2), labels)
        return TextSplit(sentences, first_word(sentences, words))

    splits = {
        "test": split(None),
        "test_told": split([POSITIVE, NEGATIVE]),
        "test_swapped": split([NEGATIVE, POSITIVE]),
    }
    return Bunch("planted", splits, 2, (3,), "val", "")


@pytest.mark.parametrize("judge", [omission, gradient, cd])
def test_every_judge_gives_a_bag_of_words_its_words(judge) -> None:
    found = judge(Bag(3), torch.tensor([POSITIVE, GOOD, FILM]))
    torch.testing.assert_close(found, torch.tensor([3, 1, 0.25]))


def test_a_net_that_listens_to_the_word_alone_and_one_that_does_not() -> None:
    bunch = planted_bunch()
    listens, not_at_all = measure(Bag(3), bunch, 10), measure(Bag(0), bunch, 10)
    assert (listens.untouched, listens.told, listens.swapped, listens.changed) == (100, 100, 0, 100)
    assert listens.pull == pytest.approx(6 / 2**0.5)  # margins of 1.25 and -0.75 untouched
    assert listens.omission == pytest.approx(3 / (4.25 / 3)) == listens.gradient == listens.cd
    assert (not_at_all.swapped, not_at_all.changed, not_at_all.pull) == (100, 0, 0)
    assert not_at_all.omission == not_at_all.gradient == not_at_all.cd == 0


def test_margins_stand_in_the_order_of_the_split() -> None:
    rows = torch.tensor([[GOOD, FILM, FILM], [BAD, 0, 0], [GOOD, BAD, 0]])
    split = TextSplit(Sentences(rows, torch.tensor([3, 1, 2]), torch.tensor([1, 0, 1])))
    torch.testing.assert_close(margins(Bag(0), split), torch.tensor([1.5, -1, 0]))


def test_a_row_has_mean_and_spread_of_the_runs_of_a_setting() -> None:
    one, other = Reliance(*[10.0] * 8), Reliance(*[12.0] * 8)
    lines = reliance_table({"none": [one], "cdep": [one, other]}).splitlines()
    assert lines[0].startswith("|  | n | test |") and lines[2].startswith("| none | 1 | 10.0 |")
    assert lines[3].startswith("| cdep | 2 | 11.0 ± 1.4 |")
    assert lines[3].endswith("| 11.00 ± 1.41 |")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["absent"], "absent holds no finished run"), (["absent", "--sentences", "0"], "at least 1")],
)
def test_what_cannot_be_judged_is_said_in_one_line(arguments, message, capsys) -> None:
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_text_without_a_planted_word_is_refused(tmp_path: Path, capsys) -> None:
    run(tmp_path / "run", "dataset=tiny_text", "penalty=none", "training.epochs=1")
    assert main([str(tmp_path / "run")]) == 1
    assert "tiny_text has no split test_swapped" in capsys.readouterr().err
