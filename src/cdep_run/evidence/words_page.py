"""Sentences with coloured words, as an HTML page and as a picture."""

from __future__ import annotations

import html
import io
from collections.abc import Sequence
from dataclasses import dataclass

ORANGE, BLUE = (230, 159, 0), (86, 180, 233)
"""Towards class 0 and class 1: a pair that colour-blind readers tell apart (Okabe and Ito)."""


CLASSES = ("negative", "positive")


LINE = 84
"""Characters in a line of the PNG."""


UNIT = "CD score: part of the logit of positive minus that of negative"


@dataclass(frozen=True)
class Reading:
    """One sentence as one model reads it; scores in units of logits.

    Attributes:
        words: what each of the T words contributes on its own.
        phrases: what each place of a phrase contributes as a whole.
        probability: of class 1, the biases included.
    """

    words: list[float]
    phrases: list[tuple[str, float]]
    probability: float


@dataclass(frozen=True)
class Sentence:
    """Its words, its class if known, and how each model reads it, by the model's name."""

    words: list[str]
    label: int | None
    readings: dict[str, Reading]


def largest(sentences: Sequence[Sentence]) -> float:
    """The largest |score| shown: full colour, the same for every model, so that they compare."""
    readings = [reading for sentence in sentences for reading in sentence.readings.values()]
    scores = [score for reading in readings for score in reading.words]
    scores += [score for reading in readings for _, score in reading.phrases]
    return max(map(abs, scores)) or 1.0


def colour(score: float, end: float) -> tuple[int, int, int]:
    """White for 0, orange towards class 0, blue towards class 1, full at `end`."""
    share = min(1.0, abs(score) / end) if end else 0.0
    red, green, blue = (round(255 + share * (c - 255)) for c in (BLUE if score > 0 else ORANGE))
    return red, green, blue


def heading(sentence: Sentence) -> str:
    """The truth about a sentence."""
    return "own sentence" if sentence.label is None else f"is {CLASSES[sentence.label]}"


def verdict(name: str, reading: Reading) -> str:
    """What a model says of a sentence."""
    return f"{name} says positive with {reading.probability:.0%}"


STYLE = """body { font: 16px/1.4 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto }
body { padding: 0 1rem; color: #111; background: #fff } p { margin: .5em 0 0 }
span { display: inline-block; text-align: center; padding: .1em .3em; margin: 1px }
small { display: block; font-size: 70% } h2 { font-size: 1rem; margin: 1.6em 0 0 }
.bar { height: 1em; border: 1px solid #888 } .ends { display: flex }
.bar, .ends { max-width: 20em; justify-content: space-between }"""


def as_html(sentences: Sequence[Sentence], title: str) -> str:
    """A page of its own: words with colour and number, for each model, and a legend."""
    end = largest(sentences)

    def coloured(pairs: Sequence[tuple[str, float]]) -> str:
        return " ".join(
            f'<span style="background:rgb{colour(score, end)}">{html.escape(word)}'
            f"<small>{score:+.2f}</small></span>"
            for word, score in pairs
        )

    bar = f"linear-gradient(to right, rgb{ORANGE}, #fff, rgb{BLUE})"
    ends = f"<b>{-end:.2f} negative</b><b>0</b><b>{end:+.2f} positive</b>"
    page = [
        '<!doctype html>\n<html lang="en"><meta charset="utf-8">',
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'\">",
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{html.escape(title)}</title><style>{STYLE}</style>",
        f"<h1>{html.escape(title)}</h1>",
        f"<p>{UNIT}; the colours mean the same for every model.</p>",
        f'<div class="bar" style="background: {bar}"></div><div class="ends">{ends}</div>',
    ]
    for number, sentence in enumerate(sentences, 1):
        page.append(f"<h2>{number}. {heading(sentence)}</h2>")
        for name, reading in sentence.readings.items():
            words = list(zip(sentence.words, reading.words, strict=True))
            page.append(f"<p>{html.escape(verdict(name, reading))}<br>{coloured(words)}</p>")
            if reading.phrases:
                page.append(f"<p>as a whole: {coloured(reading.phrases)}</p>")
    return "\n".join(page) + "\n</html>\n"


def as_png(sentences: Sequence[Sentence], title: str) -> bytes:
    """The same as a picture."""
    import matplotlib

    matplotlib.use("Agg")  # no display needed
    from matplotlib import pyplot as plt
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize
    from matplotlib.patches import Rectangle

    end, line = largest(sentences), 0.0
    boxes: list[tuple[float, float, float, str, float]] = []  # column, line, width, word, score
    texts: list[tuple[float, str, str]] = []  # line, text, weight

    def write_line(text: str, weight: str = "normal") -> None:
        nonlocal line
        texts.append((line, text, weight))
        line += 1.3

    def write_words(words: Sequence[tuple[str, float]]) -> None:
        nonlocal line
        column = 0.0
        for word, score in words:
            width = max(len(word), len(f"{score:+.2f}")) + 0.6
            if column and column + width > LINE:
                column, line = 0.0, line + 2.2
            boxes.append((column, line, width, word, score))
            column += width + 0.4
        line += 2.5

    for number, sentence in enumerate(sentences, 1):
        write_line(f"{number}. {heading(sentence)}", "bold")
        for name, reading in sentence.readings.items():
            write_line(verdict(name, reading))
            write_words(list(zip(sentence.words, reading.words, strict=True)))
            if reading.phrases:
                write_line("as a whole:")
                write_words(reading.phrases)
        line += 0.6
    wide, high = max([LINE, *(column + width for column, _, width, *_ in boxes)]), line + 6
    figure = plt.figure(figsize=(wide * 0.105, high * 0.19))
    axis = figure.add_axes((0.02, 0, 0.96, line / high))
    axis.set(xlim=(0, wide), ylim=(line, 0))
    axis.axis("off")
    for top, text, weight in texts:
        axis.text(0, top, text, size=8, weight=weight, va="top", parse_math=False)
    for left, top, width, word, score in boxes:
        back = [level / 255 for level in colour(score, end)]
        axis.add_patch(Rectangle((left, top), width, 2, facecolor=back, linewidth=0))
        for text, down, size in ((word, 0.15, 9), (f"{score:+.2f}", 1.2, 6)):
            axis.text(left + width / 2, top + down, text, size=size, family="monospace",
                      ha="center", va="top", parse_math=False)  # fmt: skip
    bar = figure.add_axes((0.3, 1 - 4 / high, 0.4, 0.8 / high))
    ends = [[level / 255 for level in colour(score, 1)] for score in (-1, 0, 1)]
    scale = ScalarMappable(Normalize(-end, end), LinearSegmentedColormap.from_list("words", ends))
    figure.colorbar(scale, cax=bar, orientation="horizontal").ax.tick_params(labelsize=7)
    bar.set_title(f"{title}\n{UNIT}", size=8, parse_math=False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=130)
    plt.close(figure)
    return picture.getvalue()
