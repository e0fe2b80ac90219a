"""Text to token ids with character offsets: words of a vocabulary, or a model's sub-words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cdep_run.datasets.base import DataError
from cdep_run.errors import hub_error

PADDING, UNKNOWN = "<pad>", "<unk>"

BLOCK = 1000
"""Texts that a sub-word tokenizer gets at a time; a million of them at once would fill memory."""


@dataclass(frozen=True)
class Encoded:
    """One text as tokens.

    Attributes:
        ids: of its tokens.
        offsets: for each token the characters it stands for, start and end; (0, 0): it was added by
            the tokenizer and stands for none.
        cut: whether tokens beyond `max_length` were left out.
    """

    ids: list[int]
    offsets: list[tuple[int, int]]
    cut: bool


class Tokenizer(Protocol):
    """What a data set of text needs.

    Attributes:
        vocabulary: the token of each id.
        padding: the id that fills up short sentences.
        unknown: the id of what has no other; a text without a token is this one.
    """

    vocabulary: list[str]
    padding: int
    unknown: int

    def encode(self, texts: Sequence[str], max_length: int) -> Iterator[Encoded]:
        """The first `max_length` tokens of each text, special ones included."""
        ...

    def state(self) -> dict[str, Any]:
        """All that `tokenizer_from` needs, in strings, numbers, lists and dicts."""
        ...


class WordTokenizer:
    """Words by a regular expression; what is not in the vocabulary becomes the unknown word.

    Args:
        vocabulary: padding, the unknown word, and the known ones.
        pattern: what a word is.
        lower: whether texts are lower-cased.
    """

    padding = 0
    unknown = 1

    def __init__(self, vocabulary: list[str], pattern: str, lower: bool) -> None:
        self.vocabulary, self.pattern, self.lower = (
            vocabulary,
            compiled(pattern, "dataset.word"),
            lower,
        )
        self.index = {word: i for i, word in enumerate(vocabulary)}

    @classmethod
    def fitted(
        cls, texts: Iterable[str], pattern: str, lower: bool, size: int, always: Iterable[str] = ()
    ) -> WordTokenizer:
        """With the `size` most frequent words of `texts`, and those of the texts `always` anyway.

        Words of the same frequency stand in alphabetical order.
        """
        one = cls([PADDING, UNKNOWN], pattern, lower)
        counts = Counter(word for text in texts for word, _ in one.words(text))
        ranked = sorted(counts, key=lambda word: (-counts[word], word))[:size]
        wanted = {word: None for text in always for word, _ in one.words(text)}
        return cls([PADDING, UNKNOWN, *{**dict.fromkeys(ranked), **wanted}], pattern, lower)

    def words(self, text: str) -> Iterator[tuple[str, tuple[int, int]]]:
        """Each word as it stands in the vocabulary, and its characters in `text`."""
        for match in self.pattern.finditer(text):
            yield match[0].lower() if self.lower else match[0], match.span()

    def encode(self, texts: Sequence[str], max_length: int) -> Iterator[Encoded]:
        """See `Tokenizer`."""
        for text in texts:
            ids: list[int] = []
            offsets: list[tuple[int, int]] = []
            for word, span in self.words(text):
                if len(ids) == max_length:
                    yield Encoded(ids, offsets, cut=True)
                    break
                ids.append(self.index.get(word, 1))
                offsets.append(span)
            else:
                yield Encoded(ids, offsets, cut=False)

    def state(self) -> dict[str, Any]:
        """See `Tokenizer`."""
        return {
            "kind": "words",
            "vocabulary": self.vocabulary,
            "pattern": self.pattern.pattern,
            "lower": self.lower,
        }


class SubwordTokenizer:
    """A fast tokenizer of Hugging Face.

    Args:
        description: what the library `tokenizers` writes to tokenizer.json.
        padding, unknown: the ids of these tokens.
    """

    def __init__(self, description: str, padding: int, unknown: int) -> None:
        from tokenizers import Tokenizer as Fast

        self.fast, self.padding, self.unknown = Fast.from_str(description), padding, unknown
        self.fast.no_padding()
        self.fast.no_truncation()
        self.description = description
        ids = self.fast.get_vocab()
        self.vocabulary = [""] * (max(ids.values()) + 1)
        for token, i in ids.items():
            self.vocabulary[i] = token

    def encode(self, texts: Sequence[str], max_length: int) -> Iterator[Encoded]:
        """See `Tokenizer`."""
        self.fast.enable_truncation(max_length)
        for start in range(0, len(texts), BLOCK):
            for found in self.fast.encode_batch(list(texts[start : start + BLOCK])):
                special = found.special_tokens_mask
                offsets = [(0, 0) if s else o for s, o in zip(special, found.offsets, strict=True)]
                yield Encoded(found.ids, offsets, cut=bool(found.overflowing))

    def state(self) -> dict[str, Any]:
        """See `Tokenizer`."""
        return {
            "kind": "subwords",
            "tokenizer": self.description,
            "padding": self.padding,
            "unknown": self.unknown,
        }


def tokenizer_from(state: dict[str, Any]) -> Tokenizer:
    """The tokenizer whose `state()` this is."""
    if state["kind"] == "words":
        return WordTokenizer(state["vocabulary"], state["pattern"], state["lower"])
    return SubwordTokenizer(state["tokenizer"], state["padding"], state["unknown"])


def compiled(pattern: str, setting: str) -> re.Pattern[str]:
    """The regular expression that a setting holds.

    Raises:
        DataError: it is none; names the setting.
    """
    try:
        return re.compile(pattern)
    except re.error as error:
        raise DataError(f"{setting}: {pattern!r} is not a regular expression: {error}") from error


def pretrained_tokenizer(name: str, max_length: int) -> SubwordTokenizer:
    """The tokenizer of a model of Hugging Face.

    Args:
        name: a folder with the files of the tokenizer, or a name on the hub.
        max_length: of the texts in tokens; more than the tokenizer allows is an error.

    Raises:
        DataError: transformers is not installed, there is no such tokenizer, or it is not a fast
            one, which alone says where its tokens stand in the text.
    """
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise DataError(
            f"dataset.tokenizer={name} needs transformers: pip install 'cdep-run[models]'"
        ) from error
    try:
        found = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise DataError(hub_error("tokenizer", name, error)) from error
    if not getattr(found, "is_fast", False):
        raise DataError(
            f"the tokenizer of {name} does not say where its tokens stand in the text; take a "
            "model with a fast tokenizer (a file tokenizer.json)"
        )
    if max_length > found.model_max_length:
        raise DataError(
            f"dataset.max_length is {max_length}, but {name} reads at most "
            f"{found.model_max_length} tokens; set dataset.max_length={found.model_max_length}"
        )
    end = found.eos_token_id or 0
    padding = end if found.pad_token_id is None else found.pad_token_id
    unknown = end if found.unk_token_id is None else found.unk_token_id
    return SubwordTokenizer(found.backend_tokenizer.to_str(), padding, unknown)
