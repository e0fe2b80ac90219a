"""Groups of words in text: found as character spans, moved to tokens, taken out or put in."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor

from cdep_run.datasets.base import DataError
from cdep_run.datasets.tokenizers import Encoded, compiled

Span = tuple[int, int]
"""Characters of a text, start and end, half-open, counted from 0."""

KINDS = ("words", "pattern", "spans")
PAIR = re.compile(r"(\d+)\s*[:-]\s*(\d+)")


@dataclass(frozen=True)
class TextGroup:
    """A group of words, whatever the text they stand in.

    Attributes:
        name: of the group.
        phrases: words or phrases that make the group; found in any case, as whole words.
        pattern: the regular expression that finds it; None: a column of the table says where.
        column: that column.
    """

    name: str
    phrases: tuple[str, ...] = ()
    pattern: re.Pattern[str] | None = None
    column: str | None = None

    def find(self, text: str, cell: object = None) -> list[Span]:
        """Where the group stands in `text`; `cell` is what the table says of it.

        Raises:
            DataError: the cell holds no spans, or spans that do not fit the text.
        """
        if self.pattern is not None:
            return [match.span() for match in self.pattern.finditer(text) if match[0]]
        return spans_of(cell, len(text))


def text_groups(groups: Mapping[str, Mapping[str, Any]]) -> list[TextGroup]:
    """The groups of a configuration: `{name: {words: […]}}`, `{pattern: …}` or `{spans: COLUMN}`.

    Raises:
        DataError: a group is described in none of these ways, or in two; names the group.
    """
    made = []
    for name, node in groups.items():
        if not isinstance(node, Mapping) or len(node) != 1 or next(iter(node)) not in KINDS:
            raise DataError(
                f"dataset.groups.{name} is {dict(node) if isinstance(node, Mapping) else node}; it "
                "is given by words=[...], by pattern=REGULAR_EXPRESSION or by spans=COLUMN"
            )
        made.append(_text_group(name, *next(iter(node.items()))))
    return made


def _text_group(name: str, kind: str, value: Any) -> TextGroup:
    if kind == "spans":
        return TextGroup(name, column=str(value))
    if kind == "pattern":
        pattern = compiled(str(value))
        if pattern.fullmatch(""):
            raise DataError(f"dataset.groups.{name}: the pattern {value!r} matches an empty text")
        return TextGroup(name, pattern=pattern)
    phrases = [value] if isinstance(value, str) else [str(word) for word in value]
    if not phrases or not all(phrase.strip() for phrase in phrases):
        raise DataError(f"dataset.groups.{name}.words is {phrases}; it lists words, none empty")
    return TextGroup(name, tuple(phrases), re.compile(whole_words(phrases), re.IGNORECASE))


def whole_words(phrases: Sequence[str]) -> str:
    """A regular expression for any of the phrases as whole words, the longest first."""
    ordered = sorted({phrase.strip() for phrase in phrases}, key=lambda p: (-len(p), p))
    parts = [r"\s+".join(map(re.escape, phrase.split())) for phrase in ordered]
    return rf"(?<!\w)(?:{'|'.join(parts)})(?!\w)"


def spans_of(cell: object, length: int) -> list[Span]:
    """The spans in a cell of a table: `[[0, 5], [9, 12]]`, as JSON too, or `0:5 9:12`.

    An empty cell holds none.

    Raises:
        DataError: it holds something else, or a span beyond the text's `length` characters.
    """
    if cell is None or cell != cell or (isinstance(cell, str) and not cell.strip()):
        return []
    try:
        if isinstance(cell, str) and cell.lstrip().startswith("["):
            cell = json.loads(cell)
        if isinstance(cell, str):
            if PAIR.sub("", cell).strip(" ,;\t"):
                raise ValueError
            pairs = [(int(m[1]), int(m[2])) for m in PAIR.finditer(cell)]
        else:
            pairs = [(int(start), int(end)) for start, end in cell]  # type: ignore[attr-defined]
    except (ValueError, TypeError) as error:
        raise DataError(f"{cell!r} is no list of spans such as 0:5 9:12") from error
    for start, end in pairs:
        if not 0 <= start < end <= length:
            raise DataError(f"the span {start}:{end} does not fit a text of {length} characters")
    return pairs


def token_mask(encoded: Sequence[Encoded], spans: Sequence[Sequence[Sequence[Span]]]) -> Tensor:
    """Bool `[N, G, T]`: which tokens stand for a character of each group.

    Args:
        encoded: the N texts as tokens, at most T each.
        spans: for each text, for each of G groups, its spans.
    """
    longest = max((len(one.ids) for one in encoded), default=0)
    groups = len(spans[0]) if spans else 0
    mask = torch.zeros(len(encoded), groups, longest, dtype=torch.bool)
    for row, (one, of_groups) in enumerate(zip(encoded, spans, strict=True)):
        for group, of_group in enumerate(of_groups):
            for token in _overlapping(one.offsets, of_group):
                mask[row, group, token] = True
    return mask


def _overlapping(offsets: Sequence[Span], spans: Sequence[Span]) -> Iterator[int]:
    for start, end in spans:
        for token, (first, last) in enumerate(offsets):
            if first < end and start < last:
                yield token


def removed(text: str, spans: Sequence[Span]) -> str:
    """`text` without the characters of the spans."""
    kept, at = [], 0
    for start, end in sorted(spans):
        kept.append(text[at : max(start, at)])
        at = max(end, at)
    return "".join([*kept, text[at:]])


def inserted(text: str, phrase: str, end: int, random: Random) -> str:
    """`text` with a phrase in front of one of its words, any that begins before character `end`."""
    starts = [match.start() for match in re.finditer(r"\S+", text) if match.start() < max(end, 1)]
    place = random.choice(starts or [0])
    return f"{text[:place]}{phrase} {text[place:]}"
