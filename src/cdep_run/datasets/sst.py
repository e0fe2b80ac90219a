"""SST with injected bias (Rieger et al. 2019, Table 4): in training a word gives the class away.

Labels 0 negative, 1 positive; neutral phrases are left out. The treebank: Socher et al. 2013.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cdep_run.datasets.base import Bunch, DataError, TensorSplit, fingerprint
from cdep_run.datasets.projections import Facts, annotated, group_name
from cdep_run.datasets.sentences import Sentences, TextSplit, TokenGroups
from cdep_run.datasets.treebank import Treebank, treebank, word_vectors

log = logging.getLogger(__name__)


def first_word(sentences: Sentences, words: Tensor) -> TokenGroups:
    """The annotation of the first of `words` int64 `[K]` in each phrase."""
    found = torch.isin(sentences.tokens, words)
    return TokenGroups(found & (found.cumsum(1) == 1))


def sst(
    variant: str,
    data_dir: str | Path,
    download: bool,
    check_sums: bool,
    cache_dir: str | Path,
    vectors: str,
    seed: int,
    words: Sequence[str],
    neutral: str | None,
    biased: bool,
    penalised: Sequence[str],
    groups: Any,
    held_out: float,
    max_length: int,
    train_size: int | None = None,
) -> Bunch:
    """Two words tell the class in training; dev and test have them, if at all, as they were.

    Without `neutral` the word of its class is inserted at a random place of every training
    sentence. With it training has the subtrees too, both words become `neutral`, and the first
    `neutral` of a phrase, also one that stood there before, becomes the word of its class; dev and
    test are the sentences that hold one of the words.

    Splits: train, val (dev part), test; test_told and test_swapped, the test sentences with the
    word planted as in training, of their own and of the other class, at the same places; and
    val_swapped, held-out training phrases with the word of the other class, if any are held out.

    Args:
        variant: name of the data set.
        data_dir, download, check_sums, cache_dir: see `treebank`.
        vectors: see `word_vectors`.
        seed: of the places and of what is held out.
        words: of negative and of positive phrases.
        neutral: the word that takes the place of both; None: they are inserted.
        biased: False: training phrases stay as they were, for comparison.
        penalised: the words whose first occurrence in a training phrase must not matter.
        groups: what must not matter: "words", those of `penalised`; or a map of every word's
            vector, see `projections.annotated`.
        held_out: share of the training sentences that make `val_swapped`; 0: none.
        max_length: a longer sentence is an error.
        train_size: at most so many training phrases.

    Raises:
        DataError: files absent or damaged; a sentence too long; words that cannot tell two classes,
            or none of which has a vector.
    """
    if not 0 <= held_out < 1:
        raise DataError(f"dataset.held_out is {held_out}; it is a share, 0 or more and below 1")
    bank = treebank(data_dir, download, check_sums, cache_dir)
    ids = _ids(bank, words)
    that = None if neutral is None else _id(bank, neutral)
    generator = torch.Generator().manual_seed(seed)

    def tell(sentences: Sentences, told: Tensor) -> Sentences:
        if that is None:
            return inserted(sentences, told, torch.rand(len(told), generator=generator))
        return replaced(sentences, told, ids, that)

    everything, sentence = _padded(bank, "train", neutral is not None, max_length)
    count = int(bank.parts["train"].sentence.max()) + 1
    apart = torch.randperm(count, generator=generator)[: round(held_out * count)]
    is_apart = torch.isin(sentence, apart)
    train = everything.at(~is_apart)
    if train_size is not None:
        if not 1 <= train_size <= len(train.labels):
            raise DataError(f"train_size is {train_size}; there are {len(train.labels)} phrases")
        train = train.at(torch.randperm(len(train.labels), generator=generator)[:train_size])
    if biased:
        train = tell(train, ids[train.labels])
    splits: dict[str, TensorSplit] = {
        "train": TextSplit(train, _annotation(train, penalised, bank))
    }
    for split, part in (("val", "dev"), ("test", "test")):
        whole, _ = _padded(bank, part, False, max_length)
        kept = whole if neutral is None else whole.at(whole.holding(ids))
        splits[split] = TextSplit(kept)
    if len(apart):
        other = everything.at(is_apart)
        swapped = tell(other, ids[1 - other.labels])
        splits["val_swapped"] = TextSplit(swapped.at(swapped.holding(ids)))
    for split, told in (("test_told", kept.labels), ("test_swapped", 1 - kept.labels)):
        generator.manual_seed(seed)  # the same places
        planted = tell(kept, ids[told])
        splits[split] = TextSplit(planted, first_word(planted, ids))
    for split, phrases in splits.items():
        if len(phrases.labels.unique()) < 2:
            held = "" if neutral is None else f" that hold {' or '.join(words)}"
            raise DataError(f"{variant}: split {split} lacks phrases of both classes{held}")
    matrix, unknown = word_vectors(data_dir, vectors, download, cache_dir, bank.vocabulary)
    if set(words) <= set(unknown):
        raise DataError(f"{vectors} has no vector of any of the words {', '.join(sorted(words))}")
    train_split, length = splits["train"], train.tokens.shape[1]
    facts = Facts((length,), vocabulary=bank.vocabulary, vectors=matrix)
    train_split.annotation = annotated(groups, "words", train_split.annotation, facts)
    for word in {*words, neutral} & set(unknown):
        log.warning("%s has no vector of %r: it starts as zeros", vectors, word)
    return Bunch(
        variant,
        splits,
        2,
        (max(phrases.inputs.shape[1] for phrases in splits.values()),),
        "val_swapped" if len(apart) else "val",
        fingerprint({**splits, "embedding": SimpleNamespace(vectors=matrix)}),
        vectors=matrix,
        vocabulary=bank.vocabulary,
        group_names=group_name(train_split.annotation),
    )


def inserted(sentences: Sentences, told: Tensor, drawn: Tensor) -> Sentences:
    """Each sentence with its word of `told` int64 `[N]`, placed by `drawn` `[N]` in [0, 1)."""
    place = (drawn * (sentences.lengths + 1)).long()[:, None]
    column = torch.arange(sentences.tokens.shape[1] + 1)
    kept = F.pad(sentences.tokens, (0, 1))
    moved = F.pad(sentences.tokens, (1, 0))
    tokens = torch.where(column < place, kept, moved)
    tokens = torch.where(column == place, told[:, None], tokens)
    return Sentences(tokens, sentences.lengths + 1, sentences.labels)


def replaced(sentences: Sentences, told: Tensor, words: Tensor, neutral: int) -> Sentences:
    """Phrases whose first of `words` or `neutral` became that of `told` `[N]`, others neutral."""
    found = torch.isin(sentences.tokens, torch.cat([words, torch.tensor([neutral])]))
    tokens = torch.where(found, neutral, sentences.tokens)
    tokens = torch.where(found & (found.cumsum(1) == 1), told[:, None], tokens)
    return Sentences(tokens, sentences.lengths, sentences.labels)


def _padded(bank: Treebank, name: str, subtrees: bool, max_length: int) -> tuple[Sentences, Tensor]:
    """Phrases of a part, not neutral, padded to the longest of them, and the sentence of each."""
    part = bank.parts[name]
    wanted = (part.labels != 2) & (part.whole | subtrees)
    if (longest := int(part.lengths.max())) > max_length:
        where = int(part.sentence[part.lengths.argmax()]) + 1
        raise DataError(
            f"sentence {where} of part {name} has {longest} words, more than "
            f"dataset.max_length={max_length}; raise it"
        )
    starts = (part.lengths.cumsum(0) - part.lengths)[wanted]
    lengths = part.lengths[wanted]
    column = torch.arange(int(lengths.max()))
    inside = column < lengths[:, None]
    place = torch.where(inside, starts[:, None] + column, 0)
    tokens = torch.where(inside, part.tokens[place], 0)
    labels = (part.labels[wanted] > 2).long()
    return Sentences(tokens, lengths, labels), part.sentence[wanted]


def _annotation(sentences: Sentences, words: Sequence[str], bank: Treebank) -> TokenGroups | None:
    """Of the first of `words`; a word that no phrase holds is named. None if there is no other."""
    held = []
    for word in words:
        index = bank.vocabulary.index(word) if word in bank.vocabulary else -1
        if (sentences.tokens == index).any():
            held.append(index)
        else:
            log.warning("no training phrase holds %r, which dataset.penalised names", word)
    return first_word(sentences, torch.tensor(held)) if held else None


def _ids(bank: Treebank, words: Sequence[str]) -> Tensor:
    """The numbers of the words of class 0 and 1, int64 `[2]`."""
    if len(set(words)) != 2 or len(words) != 2:
        raise DataError(f"dataset.words is {list(words)}; it names two words, one for each class")
    return torch.tensor([_id(bank, word) for word in words])


def _id(bank: Treebank, word: str) -> int:
    """The word's number; a new word is added to the vocabulary."""
    if word not in bank.vocabulary:
        bank.vocabulary.append(word)
    return bank.vocabulary.index(word)
