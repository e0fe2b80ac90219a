"""How much nets rely on the planted word, judged by other means than the penalty's own.

    python -m cdep_run.evidence.planted_word RUN ... --sentences 300

RUN are folders of finished runs on the same text; runs that differ in their seed alone share a row,
mean ± standard deviation. A net that does not rely on the word has the same accuracy on test_told
and test_swapped, 0 changes between them, and gives the word no more relevance than another.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from cdep_run.attribution import features, input_gradients
from cdep_run.config.trust import add_plugins_option
from cdep_run.datasets.base import Bunch, TensorSplit
from cdep_run.errors import CdepError, ConfigError
from cdep_run.evidence.words import group_scores, load_text, run_name
from cdep_run.results.text import markdown_table

BATCH = 256


@dataclass(frozen=True)
class Reliance:
    """Of one net.

    Attributes:
        untouched, told, swapped: accuracy in % on the splits test, test_told and test_swapped.
        changed: % of the test sentences that are judged otherwise with the other class's word.
        pull: what exchanging the negative class's word for the positive one's adds to the logit
            of positive minus that of negative, mean over the test sentences, in standard
            deviations of that difference on the untouched sentences.
        omission, gradient, cd: relevance of the planted word, in means of all words of its
            sentence (1: as any word): change of that difference when the word is left out;
            gradient × input, summed over the vector; CD score.
    """

    untouched: float
    told: float
    swapped: float
    changed: float
    pull: float
    omission: float
    gradient: float
    cd: float


TITLES = {
    "untouched": "test",
    "told": "test, own class's word",
    "swapped": "test, other class's word",
    "changed": "changed by the word",
    "pull": "pull",
    "omission": "omission",
    "gradient": "gradient × input",
    "cd": "CD",
}


@torch.no_grad()
def margins(model: nn.Module, split: TensorSplit) -> Tensor:
    """Logit of positive minus that of negative of every sentence, float `[N]`."""
    found = torch.empty(len(split))
    for index in split.order(BATCH, shuffle=False):
        logits = model(split.batch(index).inputs)
        found[index] = logits[:, 1] - logits[:, 0]
    return found


@torch.no_grad()
def omission(model: nn.Module, tokens: Tensor) -> Tensor:
    """Change of the margin when each of the words `[T]` is left out, `[T]`; T at least 2."""
    count = len(tokens)
    kept = tokens.expand(count, count)[~torch.eye(count, dtype=torch.bool)].view(count, -1)
    whole, without = model(tokens[None]), model(kept)
    return (whole - without) @ whole.new_tensor([-1, 1])


def gradient(model: nn.Module, tokens: Tensor) -> Tensor:
    """Gradient × input of the margin, summed over each word's vector, `[T]`."""
    function, vectors = features(model, tokens[None])
    _, slope = input_gradients(
        function, vectors, lambda logits: (logits[:, 1] - logits[:, 0]).sum()
    )
    return (slope * vectors).detach().sum(-1)[0]


def cd(model: nn.Module, tokens: Tensor) -> Tensor:
    """CD score of each word, `[T]`."""
    return group_scores(model, tokens, torch.eye(len(tokens), dtype=torch.bool))


def judged_places(split: TensorSplit, count: int) -> list[int]:
    """Return at most `count` places of sentences that are explained, evenly spread.

    They have at least two words, one of which is marked.
    """
    kept = []
    for index in split.order(BATCH, shuffle=False):
        batch = split.batch(index)
        if batch.groups is None:
            return []
        marked = batch.groups.mask[:, 0].expand(len(index), -1)
        long = marked.shape[1] > 1
        kept += [i for i, there in zip(index.tolist(), marked.any(1).tolist(), strict=True)
                 if there and long]  # fmt: skip
    kept.sort()
    count = min(count, len(kept))
    return [kept[number * len(kept) // count] for number in range(count)]


def relevances(
    model: nn.Module,
    split: TensorSplit,
    places: Sequence[int],
    judge: Callable[[nn.Module, Tensor], Tensor],
    padding: int = 0,
) -> list[float]:
    """Return |score| of the marked words over the mean |score| of all words, for each sentence.

    Args:
        model: in evaluation mode.
        split: of sentences whose first group marks words.
        places: of the sentences, from `judged_places`.
        judge: gives each word's score `[T]` from a sentence `[T]`.
        padding: the token id that fills up short sentences.
    """
    ratios = []
    for place in places:
        batch = split.batch(torch.tensor([place]))
        assert batch.groups is not None
        there = batch.inputs[0] != padding
        sizes = judge(model, batch.inputs[0][there]).abs()
        marked = batch.groups.mask[0, 0].expand_as(there)[there]
        ratios.append(float(sizes[marked].sum() / sizes.mean().clamp_min(1e-12)))
    return ratios


def relevance(
    model: nn.Module, split: TensorSplit, count: int, judge: Callable[[nn.Module, Tensor], Tensor]
) -> float:
    """Return the mean of `relevances` over at most `count` sentences."""
    return statistics.mean(relevances(model, split, judged_places(split, count), judge))


def measure(model: nn.Module, bunch: Bunch, count: int) -> Reliance:
    """Judge one net in evaluation mode; `count` sentences are explained word by word.

    Raises:
        ConfigError: the data set plants no word in test sentences.
    """
    if "test_swapped" not in bunch.splits:
        raise ConfigError(f"{bunch.name} has no split test_swapped, with a planted word")
    test, told, swapped = (bunch.splits[s] for s in ("test", "test_told", "test_swapped"))
    found = [margins(model, split) for split in (test, told, swapped)]
    untouched, with_own, with_other = found

    def right(margin: Tensor) -> float:
        return float(((margin > 0) == (test.labels == 1)).double().mean() * 100)

    pull = torch.where(test.labels == 1, with_own - with_other, with_other - with_own).mean()
    return Reliance(
        untouched=right(untouched),
        told=right(with_own),
        swapped=right(with_other),
        changed=float(((with_own > 0) != (with_other > 0)).double().mean() * 100),
        pull=float(pull / untouched.std()),
        omission=relevance(model, told, count, omission),
        gradient=relevance(model, told, count, gradient),
        cd=relevance(model, told, count, cd),
    )


def reliance_table(found: dict[str, list[Reliance]]) -> str:
    """A Markdown row for each name; mean ± standard deviation where there are several."""
    rows = [["", "n", *TITLES.values()]]
    for name, each in found.items():
        cells = []
        for place, values in enumerate(zip(*map(astuple, each), strict=True)):
            digits = 1 if place < 4 else 2
            spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.{digits}f}{spread}")
        rows.append([name, str(len(each)), *cells])
    return markdown_table(rows)


def measure_all(folders: Sequence[Path], count: int) -> dict[str, list[Reliance]]:
    """Judge finished runs on the same text, by the name of their setting.

    Raises:
        CdepError: a run did not finish, is not on text, or not on the same as the first.
    """
    found: dict[str, list[Reliance]] = {}
    first = None
    for folder in folders:
        model, bunch = load_text(folder)
        if first not in (None, bunch.fingerprint):
            raise ConfigError(f"{folder} was trained on other data than {folders[0]}")
        first = bunch.fingerprint
        found.setdefault(run_name(folder), []).append(measure(model, bunch, count))
        print(f"{folder}: done", file=sys.stderr)
    return found


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", help="folders of finished runs")
    parser.add_argument(
        "--sentences", type=int, default=300, help="how many are explained word by word"
    )
    add_plugins_option(parser)
    given = parser.parse_args(arguments)
    try:
        if given.sentences < 1:
            raise ConfigError(f"--sentences is {given.sentences}; it must be at least 1")
        print(reliance_table(measure_all(given.runs, given.sentences)))
    except CdepError as error:
        print(f"cdep_run.evidence.planted_word: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
