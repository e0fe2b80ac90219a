"""Groups of words in text: found as character spans, moved to tokens, taken out or put in."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from cdep_run.datasets.base import DataError
from cdep_run.datasets.tokenizers import compiled

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


def text_groups(groups: Sequence[str] | Mapping[str, Any]) -> list[TextGroup]:
    """The groups of a configuration.

    Args:
        groups: words, each of them a group; or groups by name: `{name: [word, …]}`,
            `{name: {words: [word, …]}}`, `{name: {pattern: REGULAR EXPRESSION}}` or
            `{name: {spans: COLUMN}}`.

    Raises:
        DataError: a group is described in none of these ways, or in two; names the group.
    """
    if isinstance(groups, str):
        groups = [groups]
    if not isinstance(groups, Mapping):
        groups = {str(word): [word] for word in groups}
    made = []
    for name, node in groups.items():
        given = {"words": node} if isinstance(node, str | list | tuple) else node
        if not isinstance(given, Mapping) or len(given) != 1 or next(iter(given)) not in KINDS:
            raise DataError(
                f"dataset.must_not_matter.{name} is {node}; a group is a list of words, or "
                "{words: [...]}, {pattern: REGULAR EXPRESSION} or {spans: COLUMN}"
            )
        made.append(_text_group(str(name), *next(iter(given.items()))))
    return made


def _text_group(name: str, kind: str, value: Any) -> TextGroup:
    what = f"dataset.must_not_matter.{name}"
    if kind == "spans":
        return TextGroup(name, column=str(value))
    if kind == "pattern":
        pattern = compiled(str(value), what)
        if pattern.fullmatch(""):
            raise DataError(f"{what}: the pattern {value!r} matches an empty text")
        return TextGroup(name, pattern=pattern)
    phrases = [value] if isinstance(value, str) else [str(word) for word in value]
    if not phrases or not all(phrase.strip() for phrase in phrases):
        raise DataError(f"{what} is {phrases}; it lists words, none empty")
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


def covered(offsets: Sequence[Span], spans: Sequence[Span]) -> list[int]:
    """Which tokens stand for a character of one of the spans.

    Args:
        offsets: the characters of each token; (0, 0): of none.
        spans: of one group in the same text.
    """
    return [
        token
        for token, (first, last) in enumerate(offsets)
        if any(first < end and start < last for start, end in spans)
    ]


def removed(text: str, spans: Sequence[Span]) -> str:
    """`text` without the characters of the spans."""
    kept, at = [], 0
    for start, end in sorted(spans):
        kept.append(text[at : max(start, at)])
        at = max(end, at)
    return "".join([*kept, text[at:]])


def inserted(text: str, phrase: str, end: int, random: Random) -> tuple[int, str]:
    """A phrase in front of one of the text's words, any that begins before character `end`.

    Returns:
        Where the phrase begins, and the text with it.
    """
    starts = [match.start() for match in re.finditer(r"\S+", text) if match.start() < max(end, 1)]
    place = random.choice(starts or [0])
    return place, f"{text[:place]}{phrase} {text[place:]}"
