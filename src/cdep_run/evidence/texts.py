"""Evidence from texts: words deleted, inserted or exchanged, and how much a word explains."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cdep_run.datasets.base import Bunch, TensorSplit
from cdep_run.evidence import planted_word
from cdep_run.evidence.explainers import log_odds
from cdep_run.evidence.measure import Found, Options, explained, measure_each, spread

SENTENCES = 300
"""At most so many sentences are explained word by word."""

PAIRS = {
    "deleted": ("", "_without"),
    "inserted": ("_without", "_inserted"),
    "swapped": ("_told", "_swapped"),
}
"""By measure, the splits whose texts are compared: the same ones, before and after a change."""


def judge_texts(
    setting: str, model: nn.Module, bunch: Bunch, options: Options, found: Found
) -> None:
    """Add what is measured of one net's texts to `found`."""
    split = bunch.splits[options.split]
    for measure, ends in PAIRS.items():
        pair = [bunch.splits.get(options.split + end) for end in ends]
        if pair[0] is not None and pair[1] is not None:
            compare(setting, model, bunch, measure, pair[0], pair[1], options, found)
    marked = bunch.splits.get(f"{options.split}_told", split)
    explain(setting, model, bunch, marked, options, found)


def compare(
    setting: str,
    model: nn.Module,
    bunch: Bunch,
    measure: str,
    before: TensorSplit,
    after: TensorSplit,
    options: Options,
    found: Found,
) -> None:
    """Compare what the net says of the same texts before and after a change.

    Of deletions only texts that hold the words count.
    """
    first, second = logits(model, before), logits(model, after)
    places = list(range(len(before)))
    if measure == "deleted" and before.present is not None:
        places = before.present.nonzero()[:, 0].tolist()
    places = spread(places, options.limit)
    if not places:
        return
    first, second = first[places], second[places]
    classes = explained(bunch, before.labels[places])
    names = [before.ids[i] if before.ids else str(i) for i in places]
    measured = {
        f"{measure}_changed": lambda: (first.argmax(1) != second.argmax(1)).float(),
        measure: lambda: log_odds(second, classes) - log_odds(first, classes),
    }
    measure_each(setting, names, measured, options, found)


@torch.no_grad()
def logits(model: nn.Module, split: TensorSplit) -> Tensor:
    """Return the logits of every text of a split, `[N, C]`."""
    parts: dict[int, Tensor] = {}
    for index in split.order(planted_word.BATCH, shuffle=False):
        values = model(split.batch(index).inputs).float()
        parts |= dict(zip(index.tolist(), values, strict=True))
    return torch.stack([parts[place] for place in range(len(split))])


def explain(
    setting: str,
    model: nn.Module,
    bunch: Bunch,
    split: TensorSplit,
    options: Options,
    found: Found,
) -> None:
    """Add the relevance of the marked words, in means of all words of their text, by explainer."""
    judges = {
        "omission": planted_word.omission,
        "word_gradient": planted_word.gradient,
        "word_cd": planted_word.cd,
    }
    if bunch.num_classes != 2:
        found.left_out |= dict.fromkeys(judges, "words are explained for two classes only")
        return
    limit = min(options.limit or SENTENCES, SENTENCES)
    for measure, judge in judges.items():
        if measure not in options.measures:
            continue
        places = planted_word.judged_places(split, limit)
        if not places:
            found.left_out[measure] = f"no text of {options.split} holds a word that is marked"
            continue
        names = [split.ids[i] if split.ids else str(i) for i in places]
        measured = {
            measure: lambda judge=judge, places=places: torch.tensor(
                planted_word.relevances(model, split, places, judge, bunch.padding)
            )
        }
        measure_each(setting, names, measured, options, found)
