"""Everything that torchtext is used for: the trees of the Stanford Sentiment Treebank, vectors.

No other module imports torchtext. What it reads is kept as tensors in a cache folder, named by the
sums of the files it came from, so that trees are parsed once and vectors are read once.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import socket
import tempfile
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from cdep_run.datasets.base import DataError
from cdep_run.files import write_atomic

if TYPE_CHECKING:
    from torchtext.vocab import Vectors

PARTS = ("train", "dev", "test")
SHA256 = {
    "train": "e2f3f41b0b1e6d4dddc0effe3bfc2d27ed8928079aa9a03d652311614fc5feb7",
    "dev": "0e9336aed6e4730e19f58d00a77b3f0297efdb755f7b5e598c98a05e3f97ea40",
    "test": "6e54806dee95cf80cd918e7dfb3f6770f6df24bf826f289a4d1f709e1c8f6761",
}
GLOVE_SHA256 = "617afb2fe6cbd085c235baf7a465b96f4112bd7f7ccb2b2cbd649fed9cbcf2fb"
"""Of the archive glove.6B.zip (862 MB), which holds vectors of 50, 100, 200 and 300 numbers."""

PADDING, UNKNOWN = "<pad>", "<unk>"
TIMEOUT = 30
"""Seconds without an answer after which a download is given up."""


@dataclass
class Phrases:
    """Phrases of one part of the treebank, lower-cased.

    Attributes:
        tokens: int64, the words of all phrases one after another; indices into a vocabulary.
        lengths: int64 `[N]`, words of each phrase.
        labels: int64 `[N]`, 0 (very negative) to 4 (very positive).
        sentence: int64 `[N]`, number of the sentence that a phrase is part of.
        whole: bool `[N]`, whether the phrase is the sentence itself.
    """

    tokens: Tensor
    lengths: Tensor
    labels: Tensor
    sentence: Tensor
    whole: Tensor


@dataclass
class Treebank:
    """Its three parts, "train", "dev" and "test", and their words; 0 is padding, 1 unknown."""

    parts: dict[str, Phrases]
    vocabulary: list[str]


def treebank(
    data_dir: str | Path,
    download: bool,
    check_sums: bool,
    cache_dir: str | Path,
) -> Treebank:
    """The Stanford Sentiment Treebank (Socher et al. 2013) with all its subtrees.

    Args:
        data_dir: holds `sst/trees/{train,dev,test}.txt`, one bracketed tree a line.
        download: fetch them (6.2 MB unpacked) when absent.
        check_sums: the files must be those of the treebank; False: trees of a user's own will do.
        cache_dir: where the parsed trees are kept.

    Raises:
        DataError: a file absent and not to be had, damaged, or not made of trees.
    """
    folder = Path(data_dir).expanduser() / "sst" / "trees"
    files = {part: folder / f"{part}.txt" for part in PARTS}
    missing = [path.name for path in files.values() if not path.is_file()]
    if missing:
        _fetch_trees(folder, missing, download)
    found = {part: _sha256(path) for part, path in files.items()}
    for part, path in files.items():
        if check_sums and found[part] != SHA256[part]:
            raise DataError(
                f"{path} is damaged: its SHA-256 should be {SHA256[part]} but is {found[part]}. "
                "Delete it and run again with dataset.download=true, or, if these are trees of "
                "your own, say dataset.check_sums=false"
            )
    name = hashlib.sha256("".join(found.values()).encode()).hexdigest()[:16]
    kept = _cache(cache_dir) / f"treebank-{name}.pt"
    if not kept.is_file():
        buffer = io.BytesIO()
        torch.save(_parse(files), buffer)
        write_atomic(kept, buffer.getvalue())
    state = torch.load(kept, weights_only=True)
    parts = {part: Phrases(**state["parts"][part]) for part in PARTS}
    return Treebank(parts, state["vocabulary"])


def _parse(files: dict[str, Path]) -> dict:
    """Read trees by torchtext, and number their words in alphabetical order."""
    from torchtext.data import Example, Field

    text, label = Field(lower=True), Field(sequential=False)
    fields = [("text", text), ("label", label)]
    words: list[str] = []
    read: dict[str, dict[str, list]] = {}
    for part, path in files.items():
        columns: dict[str, list] = {"lengths": [], "labels": [], "sentence": [], "whole": []}
        for number, line in enumerate(_lines(path)):
            try:
                phrases = Example.fromtree(line, fields, True)
                labels = [int(phrase.label) for phrase in phrases]
            except (ValueError, AttributeError, IndexError, TypeError) as error:
                reason = " ".join(str(error).split())
                raise DataError(f"{path}, line {number + 1} is not a tree: {reason}") from error
            if not phrases or not all(0 <= value <= 4 for value in labels):
                raise DataError(f"{path}, line {number + 1}: labels must be 0 to 4, got {labels}")
            if not all(phrase.text for phrase in phrases):
                raise DataError(f"{path}, line {number + 1} holds a phrase without words")
            for phrase in phrases:
                words += phrase.text
            columns["lengths"] += [len(phrase.text) for phrase in phrases]
            columns["labels"] += labels
            columns["sentence"] += [number] * len(phrases)
            columns["whole"] += [True] + [False] * (len(phrases) - 1)
        read[part] = columns
    vocabulary, index = np.unique(np.array(words), return_inverse=True)
    tokens = torch.from_numpy(index).long() + 2
    shares = tokens.split([sum(columns["lengths"]) for columns in read.values()])
    parts = {
        part: {name: torch.tensor(column) for name, column in columns.items()} | {"tokens": own}
        for (part, columns), own in zip(read.items(), shares, strict=True)
    }
    return {"parts": parts, "vocabulary": [PADDING, UNKNOWN, *vocabulary.tolist()]}


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not text in UTF-8 ({error})") from error
    if not lines:
        raise DataError(f"{path} is empty")
    return lines


def word_vectors(
    data_dir: str | Path, name: str, download: bool, cache_dir: str | Path, vocabulary: list[str]
) -> tuple[Tensor, list[str]]:
    """Vectors of the words, from `glove/<name>.txt` in `data_dir`; see `read_vectors`.

    Args:
        data_dir: holds `glove/<name>.txt`.
        name: such as "glove.6B.300d".
        download: fetch the GloVe 6B archive (862 MB) when the file is absent.
        cache_dir, vocabulary: see `read_vectors`.

    Raises:
        DataError: as `read_vectors`; the file is absent and not to be had.
    """
    path = Path(data_dir).expanduser() / "glove" / f"{name}.txt"
    if not path.is_file():
        _fetch_vectors(path, download)
    return read_vectors(path, cache_dir, vocabulary)


def read_vectors(
    path: Path, cache_dir: str | Path, vocabulary: list[str]
) -> tuple[Tensor, list[str]]:
    """Vectors of the words, read by `torchtext.vocab.Vectors`.

    Args:
        path: of a text file, in GloVe's form (a word and its numbers a line) or word2vec's (the
            same after a line with two counts).
        cache_dir: where torchtext keeps what it read; never beside the file.
        vocabulary: the words; its first two entries, padding and unknown, have no vector.

    Returns:
        float `[V, D]`, zeros where there is no vector, and the words that have none.

    Raises:
        DataError: the file is absent, empty or cut off, or its lines have different widths.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist; it should hold a word and its numbers a line")
    with open(path, "rb") as file:
        if not file.seek(0, os.SEEK_END):
            raise DataError(f"{path} is empty. Fetch it again")
        file.seek(-1, os.SEEK_END)
        if file.read() != b"\n":
            raise DataError(f"{path} is cut off: its last line has no end. Fetch it again")
    found = _cached_vectors(path, _cache(cache_dir) / f"vectors-{_sha256(path)[:16]}")
    rows = np.array([found.stoi.get(word, -1) for word in vocabulary])
    vectors = torch.zeros(len(vocabulary), found.dim)
    known = torch.from_numpy(rows >= 0)
    vectors[known] = found.vectors[torch.from_numpy(rows[rows >= 0])]
    return vectors, [vocabulary[i] for i in np.flatnonzero(rows < 0) if i > 1]


def _cached_vectors(path: Path, folder: Path) -> Vectors:
    """All vectors of a file; `folder` keeps them, whole or not at all."""
    from torchtext.vocab import Vectors

    try:
        if folder.is_dir():
            return Vectors(str(path), cache=str(folder))
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            found = Vectors(str(path), cache=temporary)
            if not found.vectors.isfinite().all():
                raise ValueError("a number is not finite")
            if not folder.is_dir():
                shutil.copytree(temporary, f"{temporary}-whole")
                os.replace(f"{temporary}-whole", folder)
        return found
    except TypeError as error:  # torchtext takes two numbers for the counts of a header
        raise DataError(f"{path} holds no word with 3 numbers or more") from error
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{path} is damaged ({reason}): every line must hold a word and the same count of "
            "numbers. Delete it and fetch it again"
        ) from error


def _cache(cache_dir: str | Path) -> Path:
    """The cache folder, made if it is not there."""
    folder = Path(cache_dir).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise DataError(
            f"dataset.cache_dir={cache_dir} cannot be written ({error}); choose another folder"
        ) from error


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return _digest(file)


def _digest(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _fetch_trees(folder: Path, missing: list[str], download: bool) -> None:
    from torchtext.datasets import SST

    by_hand = f"fetch {SST.urls[0]} and unpack its three .txt files into {folder}"
    absent = f"{', '.join(missing)} not found in {folder}"
    with _archive(SST.urls[0], absent, by_hand, download) as archive:
        folder.mkdir(parents=True, exist_ok=True)
        for name in missing:
            write_atomic(folder / name, archive.read(f"trees/{name}"))


def _fetch_vectors(path: Path, download: bool) -> None:
    from torchtext.vocab import GloVe

    url = GloVe.url["6B"]
    absent = f"{path.name} not found in {path.parent}"
    others = sorted(other.stem for other in path.parent.glob("*.txt"))
    there = f"; or use what is there: dataset.vectors={others[0]}" if others else ""
    by_hand = f"fetch {url} and unpack {path.name} into {path.parent}{there}"
    if not path.stem.startswith("glove.6B."):
        raise DataError(f"{absent}, and only glove.6B.* can be downloaded{there}")
    with _archive(url, absent, by_hand, download, GLOVE_SHA256) as archive:
        if path.name not in archive.namelist():
            raise DataError(f"{absent}; the archive has {', '.join(archive.namelist())}")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, archive.read(path.name))


def _archive(
    url: str, absent: str, by_hand: str, download: bool, expected: str | None = None
) -> zipfile.ZipFile:
    """The zip file at `url`, in a temporary file that goes when it is closed."""
    if not download:
        raise DataError(f"{absent}. Set data_dir, or dataset.download=true, or {by_hand}")
    temporary = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the archive)
    default = socket.getdefaulttimeout()
    try:
        socket.setdefaulttimeout(TIMEOUT)
        with urllib.request.urlopen(url) as answer:
            shutil.copyfileobj(answer, temporary)
        temporary.seek(0)
        found = _digest(temporary)
        temporary.seek(0)
        if expected is not None and found != expected:
            raise DataError(f"{url} came with SHA-256 {found}, expected {expected}; try again")
        return zipfile.ZipFile(temporary)
    except (OSError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{absent}, and the download failed ({reason}). Once there is a network: {by_hand}"
        ) from error
    finally:
        socket.setdefaulttimeout(default)
