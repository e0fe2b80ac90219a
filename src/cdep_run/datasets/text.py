"""Text of one's own: a table with a column of texts, words that must not matter.

`dataset=text dataset.table=FILE.csv dataset.must_not_matter=[word]`; docs/own_text.md shows it step
by step.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cdep_run.datasets.base import Bunch, DataError, TensorSplit, fingerprint
from cdep_run.datasets.faults import Fault, refuse
from cdep_run.datasets.sentences import Sentences, TextSplit, TokenGroups
from cdep_run.datasets.spans import Span, TextGroup, covered, inserted, removed, text_groups
from cdep_run.datasets.splits import class_names, divided_rows, used_rows
from cdep_run.datasets.table_file import as_text, read_table
from cdep_run.datasets.tokenizers import (
    Tokenizer,
    WordTokenizer,
    pretrained_tokenizer,
    tokenizer_from,
)
from cdep_run.datasets.vectors import read_vectors

log = logging.getLogger(__name__)

COLUMNS = ("text", "label", "split", "group")
CURE = "correct the table or set the options named"

OBSERVED = 1000
"""So many places of a group in the training texts are remembered, to be put into other texts."""


@dataclass
class UserText:
    """The rows that can be used, before they are divided.

    Attributes:
        path: of the file.
        frame: the columns asked for; its index holds the row numbers.
        texts: of each row, as it stands in the file.
        labels: the class of each row, as text.
        spans: of each row, for each group, where the group stands in the text.
        faults: what cannot be used.
    """

    path: Path
    frame: pd.DataFrame
    texts: list[str]
    labels: list[str]
    spans: list[list[list[Span]]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)


def read_user_text(
    table: str | Path | None,
    columns: Mapping[str, str | None],
    groups: Sequence[TextGroup],
    empty: str = "refuse",
    encoding: str | None = None,
    delimiter: str | None = None,
) -> UserText:
    """Read texts and labels and find the groups; what is wrong is collected in `faults`.

    Args:
        table: the file.
        columns: what the columns text, label, split and group are called.
        groups: what must not matter.
        empty: "refuse" texts without a letter, or "leave_out" their rows.
        encoding, delimiter: of the file.

    Raises:
        DataError: the file cannot be read at all, or the options name a column that is not there.
    """
    if table is None:
        raise DataError("dataset=text needs dataset.table=FILE.csv")
    if unknown := sorted(set(columns) - set(COLUMNS)):
        raise DataError(f"dataset.columns names {unknown[0]!r}; there are {', '.join(COLUMNS)}")
    if not columns.get("text") or not columns.get("label"):
        raise DataError("dataset.columns must name the columns text and label")
    if empty not in ("refuse", "leave_out"):
        raise DataError(f"dataset.empty is {empty!r}; accepted: refuse, leave_out")
    path = Path(table).expanduser()
    asked = [*columns.values(), *(group.column for group in groups)]
    frame = read_table(path, [c for c in asked if c is not None], encoding, delimiter, only=True)
    blank = as_text(frame[columns["text"]]).str.strip() == ""
    faults = []
    if blank.any():
        what = f"{int(blank.sum())} rows have no text ({_rows(frame.index[blank])})"
        if empty == "refuse":
            faults.append(Fault(path.name, f"{what}; dataset.empty=leave_out leaves them out"))
        else:
            log.warning("%s: %s; they are left out", path.name, what)
            frame = frame[~blank]
    labels = as_text(frame[columns["label"]]).str.strip()
    if (unlabelled := labels == "").any():
        rows = _rows(frame.index[unlabelled])
        faults.append(Fault(path.name, f"{int(unlabelled.sum())} rows have no label ({rows})"))
    texts = as_text(frame[columns["text"]]).tolist()
    found = UserText(path, frame, texts, labels.tolist(), faults=faults)
    _find_groups(found, groups)
    return found


def _rows(rows: Sequence[int]) -> str:
    """The first row numbers, for an error."""
    return f"row {', '.join(map(str, rows[:10]))}" + (", ..." if len(rows) > 10 else "")


def _find_groups(found: UserText, groups: Sequence[TextGroup]) -> None:
    """Fill in `spans`; cells that do not say where a group stands are faults."""
    cells = [None if g.column is None else found.frame[g.column].tolist() for g in groups]
    for number, (row, text) in enumerate(zip(found.frame.index, found.texts, strict=True)):
        spans: list[list[Span]] = []
        for group, column in zip(groups, cells, strict=True):
            try:
                spans.append(group.find(text, None if column is None else column[number]))
            except DataError as error:
                where = f"{found.path.name}, row {row}"
                found.faults.append(Fault(where, f"column {group.column!r}: {error}"))
                spans.append([])
        found.spans.append(spans)


@dataclass
class Tokens:
    """Texts as tokens.

    Attributes:
        ids: token ids of each text.
        marked: text, group and token of every token that belongs to a group.
        cut: the texts that are longer than allowed.
        lost: how often a group stands where a text was cut off.
    """

    ids: list[np.ndarray] = field(default_factory=list)
    marked: list[tuple[int, int, int]] = field(default_factory=list)
    cut: list[int] = field(default_factory=list)
    lost: int = 0


def tokenized(
    texts: Sequence[str],
    spans: Sequence[Sequence[Sequence[Span]]],
    tokenizer: Tokenizer,
    max_length: int,
) -> Tokens:
    """Texts as tokens, and which of them belong to the groups; a text without any is one unknown.

    Args:
        texts: N of them.
        spans: of each text, for each group, its characters.
        max_length: tokens of a text beyond these are cut off.
    """
    found = Tokens()
    encoded = tokenizer.encode(texts, max_length)
    for number, (one, of_groups) in enumerate(zip(encoded, spans, strict=True)):
        found.ids.append(np.array(one.ids or [tokenizer.unknown], dtype=np.int32))
        if one.cut:
            found.cut.append(number)
        for group, of_group in enumerate(of_groups):
            tokens = covered(one.offsets, of_group) if of_group else []
            found.marked += [(number, group, token) for token in tokens]
            end = max((last for _, last in one.offsets), default=0)
            found.lost += sum(start >= end for start, _ in of_group) if one.cut else 0
    return found


def padded(ids: Sequence[np.ndarray], padding: int) -> Tensor:
    """Token ids int32 `[N, T]`, T the longest of the texts."""
    tokens = torch.full((len(ids), max(map(len, ids), default=0)), padding, dtype=torch.int32)
    for row, one in enumerate(ids):
        tokens[row, : len(one)] = torch.from_numpy(one)
    return tokens


def encode(texts: Sequence[str], preprocessing: Mapping[str, Any]) -> Tensor:
    """Inputs int64 `[N, T]` of new texts, as `Bunch.preprocessing` says."""
    tokenizer = tokenizer_from(preprocessing["tokenizer"])
    nothing: list[list[list[Span]]] = [[] for _ in texts]
    found = tokenized(texts, nothing, tokenizer, preprocessing["max_length"])
    return padded(found.ids, tokenizer.padding).long()


@dataclass
class Maker:
    """Makes splits of texts.

    Attributes:
        tokenizer: of the texts.
        max_length: in tokens.
        groups: names of what must not matter.
        path: of the file, for what is logged.
    """

    tokenizer: Tokenizer
    max_length: int
    groups: Sequence[str]
    path: Path

    def split(
        self,
        texts: Sequence[str],
        spans: Sequence[Sequence[Sequence[Span]]],
        labels: Tensor,
        rows: Sequence[int],
        name: str | None = None,
    ) -> TextSplit:
        """A split; `rows` are the row numbers; what is cut is logged where it has a `name`."""
        found = tokenized(texts, spans, self.tokenizer, self.max_length)
        if name is not None and found.cut:
            log.warning(
                "%s: %d of %d texts of %s (%s) have more than dataset.max_length=%d tokens and are "
                "cut off there; a group stands behind the cut %d times, where it cannot matter",
                self.path.name, len(found.cut), len(texts), name,
                _rows([rows[i] for i in found.cut]), self.max_length, found.lost,
            )  # fmt: skip
        tokens = padded(found.ids, self.tokenizer.padding)
        lengths = torch.tensor([len(one) for one in found.ids])
        annotation, present = None, None
        if self.groups:
            mask = torch.zeros(len(texts), len(self.groups), tokens.shape[1], dtype=torch.bool)
            if found.marked:
                mask[tuple(torch.tensor(found.marked).T)] = True
            annotation, present = TokenGroups(mask), mask.flatten(1).any(1)
        split = TextSplit(Sentences(tokens, lengths, labels), annotation, texts)
        split.ids, split.present = [f"row {row}" for row in rows], present
        return split

    def without(self, split: TextSplit, spans: Sequence[Sequence[Sequence[Span]]]) -> TextSplit:
        """The same texts without the words of the groups."""
        texts = [
            removed(text, [span for of_group in of_groups for span in of_group])
            for text, of_groups in zip(split.texts or (), spans, strict=True)
        ]
        return self._changed(split, texts, [[[] for _ in self.groups] for _ in texts])

    def inserted(self, without: TextSplit, phrases: Sequence[list[str]], seed: int) -> TextSplit:
        """The texts of `without`, each with words of the groups at a random place that is read.

        Args:
            phrases: of each group, what stood in the training texts.
            seed: of words and places.
        """
        random, texts, spans = Random(seed), [], []
        known = [number for number, of_group in enumerate(phrases) if of_group]
        for text, one in zip(without.texts or (), self._read(without.texts or ()), strict=True):
            group = random.choice(known)
            phrase = random.choice(phrases[group])
            place, text = inserted(text, phrase, one, random)
            of_groups: list[list[Span]] = [[] for _ in self.groups]
            of_groups[group].append((place, place + len(phrase)))
            texts.append(text)
            spans.append(of_groups)
        return self._changed(without, texts, spans)

    def _read(self, texts: Sequence[str]) -> list[int]:
        """The character of each text before which what is put in is sure to be read."""
        ends = []
        for one in self.tokenizer.encode(texts, self.max_length):
            starts = [first for first, last in one.offsets if last > 0]
            ends.append(starts[len(starts) * 9 // 10] if starts else 0)
        return ends

    def _changed(
        self, split: TextSplit, texts: Sequence[str], spans: Sequence[Sequence[Sequence[Span]]]
    ) -> TextSplit:
        rows = [int(name.removeprefix("row ")) for name in split.ids or ()]
        return self.split(texts, spans, split.labels, rows)


def text(
    columns: Mapping[str, str | None],
    seed: int,
    shares: Mapping[str, float],
    table: str | Path | None = None,
    must_not_matter: Any = (),
    tokenizer: str = "words",
    word: str = r"\w+(?:['’]\w+)*|[^\w\s]",
    lower: bool = True,
    vocabulary_size: int = 20_000,
    max_length: int = 256,
    vectors: str | Path | None = None,
    empty: str = "refuse",
    encoding: str | None = None,
    delimiter: str | None = None,
    positive: str | None = None,
    train_size: int | None = None,
    cache_dir: str | Path = ".",
) -> Bunch:
    """Texts of a table and their class; groups are words, wherever they stand.

    Splits: train, val, test, as a column says or made by `shares`; where a group stands in a
    training text, also val_without and test_without, the same texts without the words of the
    groups, and val_inserted and test_inserted, those with one at a random place. λ is then chosen
    on val_inserted, as on val the words help.

    Args:
        columns: what the columns text, label, split and group are called.
        seed: of the splits, where they are made, of `train_size`, and of what is inserted.
        shares: of the splits that are made.
        table: the file.
        must_not_matter: see `spans.text_groups`.
        tokenizer: "words"; or a folder of Hugging Face files, or a name on its hub: sub-words; or a
            kind of model there, which has no tokenizer: words.
        word: regular expression of a word. lower: whether words are lower-cased.
        vocabulary_size: so many of the most frequent training words are known, and all words of
            the groups.
        max_length: longer texts are cut off after so many tokens.
        vectors: text file of word vectors; None: the model starts from random ones.
        empty: "refuse" texts without a letter, or "leave_out" their rows.
        encoding, delimiter: of the table.
        positive: of two classes the one to be found.
        train_size: use only so many training rows; None: all of them.
        cache_dir: where vectors that were read are kept.

    Raises:
        DataError: names all columns and rows that cannot be used.
    """
    if max_length < 1 or vocabulary_size < 1:
        raise DataError(
            f"dataset.max_length is {max_length}, dataset.vocabulary_size {vocabulary_size}; both "
            "are 1 or more"
        )
    groups = text_groups(must_not_matter)
    found = read_user_text(table, columns, groups, empty, encoding, delimiter)
    refuse(found.faults, CURE)
    classes = class_names(found.labels, positive, str(found.path))
    split_of = divided_rows(found.frame, found.labels, columns, shares, seed)
    chosen = used_rows(split_of, train_size, seed)
    trained = np.flatnonzero(chosen & (split_of == "train"))
    phrases = _observed(found, groups, trained)
    made_by = _tokenizer(
        tokenizer, found, trained, groups, word, lower, vocabulary_size, max_length
    )
    maker = Maker(made_by, max_length, [group.name for group in groups], found.path)
    number = {name: k for k, name in enumerate(classes)}
    labels = torch.tensor([number[label] for label in found.labels])
    splits: dict[str, TensorSplit] = {}
    selection = "val"
    for name in ["train", "val", *sorted({*split_of} - {"train", "val"})]:
        rows = np.flatnonzero(chosen & (split_of == name))
        texts, spans = [found.texts[i] for i in rows], [found.spans[i] for i in rows]
        numbers = found.frame.index[rows].tolist()
        splits[name] = split = maker.split(texts, spans, labels[rows], numbers, name)
        if name in ("val", "test") and any(phrases):
            splits[f"{name}_without"] = without = maker.without(split, spans)
            splits[f"{name}_inserted"] = maker.inserted(without, phrases, seed)
            selection = "val_inserted"
    matrix = None
    if vectors is not None:
        matrix = _vectors(vectors, cache_dir, made_by, phrases)
    embedding = {} if matrix is None else {"embedding": SimpleNamespace(vectors=matrix)}
    return Bunch(
        "text",
        splits,
        len(classes),
        (max(split.inputs.shape[1] for split in splits.values()),),
        selection,
        fingerprint({**splits, **embedding}),
        vectors=matrix,
        vocabulary=made_by.vocabulary,
        padding=made_by.padding,
        selection_metric="auc" if positive else "accuracy",
        positive=positive,
        classes=classes,
        preprocessing={
            "kind": "text",
            "column": columns["text"],
            "tokenizer": made_by.state(),
            "max_length": max_length,
        },
        group_names=[group.name for group in groups] or None,
    )


def _observed(found: UserText, groups: Sequence[TextGroup], rows: np.ndarray) -> list[list[str]]:
    """What stands for each group in the training texts, at most `OBSERVED` places of each.

    Groups, and words of them, that no training text holds are named in the log.
    """
    phrases: list[list[str]] = [[] for _ in groups]
    seen: list[set[str]] = [set() for _ in groups]
    for i in rows:
        for number, of_group in enumerate(found.spans[i]):
            there = [found.texts[i][start:end] for start, end in of_group]
            seen[number] |= {" ".join(phrase.lower().split()) for phrase in there}
            phrases[number] += there[: OBSERVED - len(phrases[number])]
    for group, of_group in zip(groups, seen, strict=True):
        absent = [p for p in group.phrases if " ".join(p.lower().split()) not in of_group]
        if absent or not of_group:
            what = f": {', '.join(absent)}" if absent else ""
            log.warning(
                "%s: no training text holds what dataset.must_not_matter.%s names%s",
                found.path.name, group.name, what,
            )  # fmt: skip
    return phrases


def _tokenizer(
    name: str,
    found: UserText,
    rows: np.ndarray,
    groups: Sequence[TextGroup],
    word: str,
    lower: bool,
    size: int,
    max_length: int,
) -> Tokenizer:
    """The tokenizer: of words, fitted to the training texts, or a pretrained one."""
    if name != "words" and not _is_kind(name):
        return pretrained_tokenizer(name, max_length)
    always = [phrase for group in groups for phrase in group.phrases]
    always += [
        found.texts[i][start:end]
        for i in rows
        for of_group in found.spans[i]
        for start, end in of_group
    ]
    texts = (found.texts[i] for i in rows)
    return WordTokenizer.fitted(texts, word, lower, size, always)


def _is_kind(name: str) -> bool:
    """Whether `name` is that of a kind of model in transformers, such as bert."""
    try:
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    except ImportError:
        return False
    return name in CONFIG_MAPPING_NAMES


def _vectors(
    path: str | Path, cache_dir: str | Path, tokenizer: Tokenizer, phrases: Sequence[list[str]]
) -> Tensor:
    """Word vectors float `[V, D]` for the tokenizer's words; what has none is named in the log.

    Raises:
        DataError: the tokens are no words, or none of them has a vector.
    """
    if not isinstance(tokenizer, WordTokenizer):
        raise DataError(
            "dataset.vectors holds vectors of words, but dataset.tokenizer makes sub-words; set "
            "dataset.tokenizer=words, or dataset.vectors=null"
        )
    vocabulary = tokenizer.vocabulary
    matrix, unknown = read_vectors(Path(path).expanduser(), cache_dir, vocabulary)
    if len(unknown) == len(vocabulary) - 2:
        raise DataError(f"{path} has no vector of any word in the training texts")
    absent = set(unknown)
    marked = {w for p in phrases for phrase in p for w, _ in tokenizer.words(phrase)} & absent
    log.warning(
        "%s has no vector of %d of %d words%s: these start as zeros",
        path, len(unknown), len(vocabulary) - 2,
        f", {', '.join(sorted(marked)[:10])} among them" if marked else "",
    )  # fmt: skip
    return matrix
