"""Fetch and parse the trees of the Stanford Sentiment Treebank, and fetch GloVe's word vectors.

No other module imports torchtext, which parses trees. The parsed trees are kept in a cache folder,
in a checked file named by the sums of the trees' files.
"""

from __future__ import annotations

import hashlib
import socket
import tempfile
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import torch
from torch import Tensor

from cdep_run.datasets.archives import unpack_gz, unpack_member
from cdep_run.datasets.base import DataError
from cdep_run.datasets.vectors import cache_folder, file_sha256, read_vectors, stream_sha256
from cdep_run.features.store import load_or_compute

PARTS = ("train", "dev", "test")
SHA256 = {
    "train": "e2f3f41b0b1e6d4dddc0effe3bfc2d27ed8928079aa9a03d652311614fc5feb7",
    "dev": "0e9336aed6e4730e19f58d00a77b3f0297efdb755f7b5e598c98a05e3f97ea40",
    "test": "6e54806dee95cf80cd918e7dfb3f6770f6df24bf826f289a4d1f709e1c8f6761",
}
GLOVE_SHA256 = "617afb2fe6cbd085c235baf7a465b96f4112bd7f7ccb2b2cbd649fed9cbcf2fb"
"""Of the archive glove.6B.zip (862 MB), which holds vectors of 50, 100, 200 and 300 numbers."""

MOST_TREES, MOST_VECTORS = 1 << 27, 8 << 30
"""Bytes that a file of trees, and one of vectors, may unpack to."""

MOST_DOWNLOAD = 4 << 30
"""Bytes after which a download is given up."""

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
    """Read the Stanford Sentiment Treebank (Socher et al. 2013) with all its subtrees.

    Args:
        data_dir: holds `sst/trees/{train,dev,test}.txt`, one bracketed tree a line; or the same
            files packed, as `.txt.gz` or in the archive as published, which are then unpacked.
        download: fetch the archive (6.2 MB unpacked) when nothing of that is there.
        check_sums: the files must be those of the treebank; False: trees of a user's own will do.
        cache_dir: where the parsed trees are kept.

    Raises:
        DataError: a file is absent and cannot be fetched, is damaged, or holds no trees.
    """
    folder = Path(data_dir).expanduser() / "sst" / "trees"
    files = {part: folder / f"{part}.txt" for part in PARTS}
    missing = [path.name for path in files.values() if not path.is_file()]
    if missing:
        _fetch_trees(folder, missing, download)
    sums = {part: file_sha256(path) for part, path in files.items()}
    for part, path in files.items():
        if check_sums and sums[part] != SHA256[part]:
            raise DataError(
                f"{path} is damaged: its SHA-256 should be {SHA256[part]} but is {sums[part]}. "
                "Delete it and run again with dataset.download=true, or, if these are trees of "
                "your own, say dataset.check_sums=false"
            )
    name = hashlib.sha256("".join(sums.values()).encode()).hexdigest()[:16]
    kept = cache_folder(cache_dir) / f"parsed-trees-{name}.pt"
    state = load_or_compute(kept, lambda: _parse(files))
    parts = {part: Phrases(**state["parts"][part]) for part in PARTS}
    return Treebank(parts, state["vocabulary"])


def _parse(files: dict[str, Path]) -> dict:
    """Parse trees by torchtext; returns phrases by part, and the words in alphabetical order."""
    from torchtext.data import Example, Field

    text, label = Field(lower=True), Field(sequential=False)
    fields = [("text", text), ("label", label)]
    words: list[str] = []
    parsed: dict[str, dict[str, list]] = {}
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
        parsed[part] = columns
    vocabulary, index = np.unique(np.array(words), return_inverse=True)
    tokens = torch.from_numpy(index).long() + 2
    shares = tokens.split([sum(columns["lengths"]) for columns in parsed.values()])
    parts = {
        part: {name: torch.tensor(column) for name, column in columns.items()} | {"tokens": share}
        for (part, columns), share in zip(parsed.items(), shares, strict=True)
    }
    return {"parts": parts, "vocabulary": [PADDING, UNKNOWN, *vocabulary.tolist()]}


def _lines(path: Path) -> list[str]:
    """The lines of a text file, which has some."""
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
    """Read the vectors of the words from a file in `data_dir`/glove; see `read_vectors`.

    Args:
        data_dir: holds `glove/<name>.txt`, or `glove/<name>.txt.gz`, or GloVe's archive
            `glove/glove.6B.zip`, which is then unpacked.
        name: such as "glove.6B.300d".
        download: fetch the GloVe 6B archive (862 MB) when nothing of that is there.
        cache_dir, vocabulary: see `read_vectors`.

    Raises:
        DataError: as `read_vectors`; the file is absent and cannot be fetched.
    """
    path = Path(data_dir).expanduser() / "glove" / f"{name}.txt"
    packed = path.with_name(f"{path.name}.gz")
    if not path.is_file() and packed.is_file():
        path = packed
    if not path.is_file():
        _fetch_vectors(path, download)
    return read_vectors(path, cache_dir, vocabulary)


def _fetch_trees(folder: Path, missing: list[str], download: bool) -> None:
    """Put the missing files into `folder`: unpacked from what lies there, else downloaded."""
    from torchtext.datasets import SST

    for name in [name for name in missing if (folder / f"{name}.gz").is_file()]:
        unpack_gz(folder / f"{name}.gz", folder / name, MOST_TREES)
        missing = [other for other in missing if other != name]
    if not missing:
        return
    url = SST.urls[0]
    by_hand = f"fetch {url} and put it, or its three .txt files, into {folder}"
    absent = f"{', '.join(missing)} not found in {folder}"
    with _archive(url, (folder, folder.parent), absent, by_hand, download) as archive:
        folder.mkdir(parents=True, exist_ok=True)
        for name in missing:
            unpack_member(archive, f"trees/{name}", folder / name, MOST_TREES, Path(url).name)


def _fetch_vectors(path: Path, download: bool) -> None:
    """Make the file of vectors from GloVe's archive, which lies beside it or is downloaded."""
    from torchtext.vocab import GloVe

    url = GloVe.url["6B"]
    absent = f"{path.name} not found in {path.parent}"
    others = sorted(other.stem for other in path.parent.glob("*.txt"))
    there = f"; or use what is there: dataset.vectors={others[0]}" if others else ""
    by_hand = f"fetch {url} and put it, or its {path.name}, into {path.parent}{there}"
    if not path.stem.startswith("glove.6B."):
        raise DataError(f"{absent}, and only glove.6B.* can be downloaded{there}")
    with _archive(url, (path.parent,), absent, by_hand, download, GLOVE_SHA256) as archive:
        path.parent.mkdir(parents=True, exist_ok=True)
        unpack_member(archive, path.name, path, MOST_VECTORS, Path(url).name)


@contextmanager
def _archive(
    url: str,
    folders: tuple[Path, ...],
    absent: str,
    by_hand: str,
    download: bool,
    expected: str | None = None,
) -> Iterator[zipfile.ZipFile]:
    """Open the zip file at `url`: the copy in one of the folders, else one that is downloaded.

    Args:
        url: where the archive is published.
        folders: where a file of its name may lie already.
        absent: what is not there, for the error.
        by_hand: what to do without a network, for the error.
        download: whether it may be downloaded, to a temporary file.
        expected: its SHA-256, if it is known.
    """
    copies = [folder / Path(url).name for folder in folders]
    copy = next((path for path in copies if path.is_file()), None)
    if copy is None and not download:
        raise DataError(f"{absent}. Set data_dir, or dataset.download=true, or {by_hand}")
    try:
        with open(copy, "rb") if copy else _downloaded(url) as file:
            actual = stream_sha256(file)
            if expected is not None and actual != expected:
                raise DataError(
                    f"{copy or url} has the SHA-256 {actual}, expected {expected}; fetch it again"
                )
            with zipfile.ZipFile(file) as archive:
                yield archive
    except zipfile.BadZipFile as error:
        raise DataError(f"{copy or url} is damaged ({error}); {by_hand}") from error
    except _Unreachable as error:
        raise DataError(
            f"{absent}, and the download failed ({error}). Once there is a network: {by_hand}"
        ) from error


class _Unreachable(Exception):
    """A download failed."""


def _downloaded(url: str) -> BinaryIO:
    """Fetch a file to a temporary one, which goes when it is closed."""
    temporary = tempfile.TemporaryFile()  # noqa: SIM115 (closed by the caller)
    default = socket.getdefaulttimeout()
    try:
        socket.setdefaulttimeout(TIMEOUT)
        with urllib.request.urlopen(url) as answer:
            while block := answer.read(1 << 20):
                temporary.write(block)
                if temporary.tell() > MOST_DOWNLOAD:
                    raise OSError(f"more than {MOST_DOWNLOAD} bytes came")
        temporary.seek(0)
        return cast(BinaryIO, temporary)
    except OSError as error:
        temporary.close()
        raise _Unreachable(" ".join(str(error).split())) from error
    finally:
        socket.setdefaulttimeout(default)
