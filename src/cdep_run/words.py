"""What each word says about the class, before and after a penalty: coloured text, HTML and PNG.

    python -m cdep_run.words BEFORE AFTER --sentences 10 --phrase "not good" --out words.html

BEFORE and AFTER are folders of finished runs on the same text, such as one without and one with a
penalty. The score of a word is what contextual decomposition says it contributes to the logit of
class 1 minus that of class 0, the biases of the last layer left out: a constant added to the logits
does not move it. Source: Murdoch et al. 2018.
"""

from __future__ import annotations

import argparse
import copy
import html
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from cdep_run.cd import decompose
from cdep_run.datasets.base import Bunch
from cdep_run.errors import CdepError, ConfigError
from cdep_run.files import write_atomic
from cdep_run.record import read_result
from cdep_run.train import load

ORANGE, BLUE = (230, 159, 0), (86, 180, 233)
"""Towards class 0 and class 1: a pair that colour-blind readers tell apart (Okabe and Ito)."""


@dataclass
class Sentence:
    """A sentence as one model reads it: its words, a score each, and the probability of class 1."""

    words: list[str]
    scores: list[float]
    phrases: dict[str, float]
    probability: float


@torch.no_grad()
def group_scores(model: nn.Module, tokens: Tensor, masks: Tensor) -> Tensor:
    """CD score of groups of words of one sentence, in units of logits; float `[G]`.

    Args:
        model: in evaluation mode; maps tokens int64 `[N, T]` to two logits.
        tokens: int64 `[T]`, without padding.
        masks: bool `[G, T]`, the positions of each group.

    Raises:
        ConfigError: the model does not end in a linear layer with two outputs.
    """
    unbiased = copy.deepcopy(model)
    last = [m for m in unbiased.modules() if isinstance(m, nn.Linear) and m.out_features == 2]
    if not last:
        raise ConfigError("word scores need two classes and a model that ends in a linear layer")
    if last[-1].bias is not None:
        last[-1].bias.zero_()
    relevant = decompose(unbiased, tokens[None], masks[None]).relevant[0]
    return relevant[:, 1] - relevant[:, 0]


def read(model: nn.Module, bunch: Bunch, tokens: Tensor, phrases: list[str]) -> Sentence:
    """One sentence, tokens int64 `[T]` without padding, with those of the phrases that it holds."""
    assert bunch.vocabulary is not None
    words = [bunch.vocabulary[i] for i in tokens.tolist()]
    masks, named = [row for row in torch.eye(len(words), dtype=torch.bool)], []
    for phrase in phrases:
        wanted = phrase.lower().split()
        for start in range(len(words) - len(wanted) + 1):
            if words[start : start + len(wanted)] == wanted:
                masks.append(torch.arange(len(words)).sub(start).clamp(-1, len(wanted)) >= 0)
                masks[-1] &= torch.arange(len(words)) < start + len(wanted)
                named.append(phrase)
                break
    scores = group_scores(model, tokens, torch.stack(masks)).tolist()
    with torch.no_grad():
        probability = float(model(tokens[None]).softmax(1)[0, 1])
    found = dict(zip(named, scores[len(words) :], strict=True))
    return Sentence(words, scores[: len(words)], found, probability)


def colour(score: float, largest: float) -> tuple[int, int, int]:
    """White for 0, orange towards class 0, blue towards class 1, full at `largest`."""
    share = min(1.0, abs(score) / largest) if largest else 0.0
    return tuple(round(255 + share * (c - 255)) for c in (BLUE if score > 0 else ORANGE))  # type: ignore[return-value]


def as_html(rows: list[tuple[str, dict[str, Sentence]]], title: str) -> str:
    """A page of its own; `rows`: each sentence's class, and how each model reads it."""
    body = []
    for label, readings in rows:
        body.append(f"<section><h2>is {html.escape(label)}</h2>")
        for name, sentence in readings.items():
            largest = max(map(abs, sentence.scores))
            spans = (
                f'<span style="background:rgb{colour(score, largest)}" title="{score:+.2f}">'
                f"{html.escape(word)}</span>"
                for word, score in zip(sentence.words, sentence.scores, strict=True)
            )
            phrases = "".join(
                f" <small>“{html.escape(phrase)}” {score:+.2f}</small>"
                for phrase, score in sentence.phrases.items()
            )
            body.append(
                f"<p><b>{html.escape(name)}</b> says positive with {sentence.probability:.0%}; "
                f"largest score {largest:.2f}<br>{' '.join(spans)}{phrases}</p>"
            )
        body.append("</section>")
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>"
        "body{font:16px/1.7 system-ui,sans-serif;max-width:50rem;margin:2rem auto;padding:0 1rem;"
        "color:#111;background:#fff}h2{font-size:1rem}span{padding:.1em .2em;border-radius:.2em}"
        f"</style><h1>{html.escape(title)}</h1><p>What each word adds to the logit of class 1 "
        "minus that of class 0, by contextual decomposition; hover for the number. "
        f'<span style="background:rgb{ORANGE}">towards negative</span> '
        f'<span style="background:rgb{BLUE}">towards positive</span>; full colour is the largest '
        f"score of the sentence.</p>{''.join(body)}</html>"
    )


def as_png(rows: list[tuple[str, dict[str, Sentence]]], title: str, file: Path) -> None:
    """The same as a picture, a line for each model and sentence."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lines = [(label, name, s) for label, readings in rows for name, s in readings.items()]
    width = max(sum(len(word) + 1 for word in s.words) for *_, s in lines)
    figure = plt.figure(figsize=(0.085 * width + 3.2, 0.34 * len(lines) + 0.7))
    figure.text(0.01, 0.99, title, va="top", size=11, weight="bold")
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    pixels = figure.bbox.width
    for number, (label, name, sentence) in enumerate(lines):
        y = 1 - (number + 2) / (len(lines) + 2.2)
        head = f"{name}, is {label}, says {sentence.probability:.0%}"
        figure.text(0.01, y, head, size=8, color="0.35")
        x, largest = 2.9 / figure.get_figwidth(), max(map(abs, sentence.scores))
        for word, score in zip(sentence.words, sentence.scores, strict=True):
            back = [c / 255 for c in colour(score, largest)]
            box = {"facecolor": back, "edgecolor": "none", "pad": 1.5}
            drawn = figure.text(x, y, word, size=9, bbox=box)
            x += (drawn.get_window_extent(renderer).width + 5) / pixels
    figure.savefig(file, dpi=130)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", help="folders of finished runs")
    parser.add_argument("--split", default="test", help="whose sentences")
    parser.add_argument("--sentences", type=int, default=10, help="how many, from the first on")
    parser.add_argument("--phrase", action="append", default=[], help="score this phrase, too")
    parser.add_argument("--out", type=Path, default=Path("words.html"), help="and .png beside it")
    chosen = parser.parse_args(arguments)
    try:
        models, bunch = {}, None
        for folder in chosen.runs:
            model, data = load(folder)
            if data.vocabulary is None:
                raise ConfigError(f"{folder}: {data.name} is not text")
            if bunch is not None and data.fingerprint != bunch.fingerprint:
                raise ConfigError(f"{folder} was trained on other data than {chosen.runs[0]}")
            config = (read_result(folder) or {})["config"]
            name = f"{config['penalty']['name']} λ = {config['penalty']['strength']:g}"
            models[name if name not in models else f"{name}, {folder.name}"], bunch = model, data
        assert bunch is not None
        if chosen.split not in bunch.splits:
            raise ConfigError(f"--split {chosen.split}: choose from {', '.join(bunch.splits)}")
        split, rows = bunch.splits[chosen.split], []
        for index in range(min(chosen.sentences, len(split))):
            tokens = split.inputs[index].long()
            tokens = tokens[tokens != 0]
            label = "positive" if split.labels[index] else "negative"
            readings = {
                name: read(model, bunch, tokens, chosen.phrase) for name, model in models.items()
            }
            rows.append((label, readings))
    except CdepError as error:
        print(f"cdep_run.words: error: {error}", file=sys.stderr)
        return 1
    title = f"What the words say: {bunch.name}"
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(chosen.out, as_html(rows, title).encode())
    as_png(rows, title, chosen.out.with_suffix(".png"))
    print(chosen.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
