"""Read word vectors from a text file; the rows of a vocabulary are kept in a checked cache."""

from __future__ import annotations

import gzip
import hashlib
import logging
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cdep_run.datasets.base import DataError
from cdep_run.features.store import load_or_compute

log = logging.getLogger(__name__)

SAMPLE = 100
"""So many lines at the start say how many numbers a vector has."""

LONGEST_LINE = 1 << 20
"""A file with a line of more bytes holds no vectors."""

BOM = b"\xef\xbb\xbf"
CURE = "Correct that line, or fetch the file again"

Row = NDArray[np.float32]


def read_vectors(
    path: Path, cache_dir: str | Path, vocabulary: list[str]
) -> tuple[Tensor, list[str]]:
    """Read the vectors of the words in a vocabulary.

    Args:
        path: of a text file in UTF-8, packed by gzip or not; a word and its numbers a line,
            between spaces or tabs (GloVe's form), maybe after a line with the count of words and
            of numbers (word2vec's form). Words may hold spaces. Of a word that stands there twice
            the last vector counts.
        cache_dir: folder that keeps the rows for the next time; never beside the file.
        vocabulary: the words; its first two entries, padding and unknown, have no vector.

    Returns:
        float `[V, D]`, zeros where there is no vector, and the words that have none.

    Raises:
        DataError: the file is absent, empty or cut off, or a line does not fit the others.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist; it should hold a word and its numbers a line")
    words = hashlib.sha256("\n".join(vocabulary).encode("utf-8", "surrogatepass")).hexdigest()
    kept = cache_folder(cache_dir) / f"word-vectors-{file_sha256(path)[:16]}-{words[:12]}.pt"
    state = load_or_compute(kept, lambda: _read(path, vocabulary))
    return state["vectors"], state["unknown"]


def _read(path: Path, vocabulary: list[str]) -> dict[str, Any]:
    """The rows of the vocabulary, and its words without a vector, read from the file itself."""
    index = {word.encode("utf-8", "surrogatepass"): i for i, word in enumerate(vocabulary)}
    rows, width = dict[int, Row](), 0
    for number, word, numbers in _entries(path):
        place, width = index.get(word, 0), len(numbers)
        if place > 1:
            rows[place] = _row(numbers, f"{path} is damaged: line {number}")
    vectors = torch.zeros(len(vocabulary), width)
    for place, row in rows.items():
        vectors[place] = torch.from_numpy(row)
    unknown = [word for i, word in enumerate(vocabulary) if i > 1 and i not in rows]
    return {"vectors": vectors, "unknown": unknown}


def _row(numbers: list[bytes], where: str) -> Row:
    """The numbers of a line."""
    try:
        row = np.array([float(number) for number in numbers], np.float32)
    except ValueError as error:
        raise DataError(f"{where} holds something else than numbers ({error}). {CURE}") from error
    if not np.isfinite(row).all():
        raise DataError(f"{where} holds a number that is not finite. {CURE}")
    return row


def _entries(path: Path) -> Iterator[tuple[int, bytes, list[bytes]]]:
    """Yield the number of each line, its word and its numbers, as many in each line."""
    lines = enumerate(_lines(path), 1)
    sample = list(islice(lines, SAMPLE))
    promised = _header([line for _, line in sample[:2]])
    body = sample[1:] if promised else sample
    if not body:
        raise DataError(
            f"{path} is damaged: it holds a first line with counts, and no vectors after it. "
            "Fetch it again"
        )
    width = Counter(len(line.split()) for _, line in body).most_common(1)[0][0] - 1
    if width < 1:
        raise DataError(f"{path} is damaged: line {body[0][0]} holds no numbers. {CURE}")
    if promised and promised[1] != width:
        raise DataError(
            f"{path} is damaged: line 1 promises {promised[1]} numbers a word, the lines after it "
            f"hold {width}. {CURE}"
        )
    count = blank = 0
    for number, line in chain(body, lines):
        count += 1
        fields = line.split()
        if len(fields) == width and line[:1].isspace():
            blank += 1  # the word is a kind of space
            continue
        word = _word(fields, width, f"{path} is damaged: line {number}")
        yield number, word, fields[-width:]
    if blank:
        log.warning("%s: %d lines without a word are left out", path, blank)
    if promised and count != promised[0]:
        raise DataError(
            f"{path} is cut off: line 1 promises {promised[0]} words, {count} are there. Fetch it "
            "again, or, if it was shortened on purpose, correct line 1"
        )


def _header(lines: list[bytes]) -> tuple[int, int] | None:
    """The counts of words and of numbers in word2vec's first line, or None in GloVe's form."""
    fields = lines[0].split() if lines else []
    if len(fields) != 2 or not all(field.isdigit() for field in fields):
        return None
    if len(lines) > 1 and len(lines[1].split()) == 2:
        return None  # vectors of one number
    return int(fields[0]), int(fields[1])


def _word(fields: list[bytes], width: int, where: str) -> bytes:
    """The word of a line: all before its last `width` fields, which may hold spaces."""
    if len(fields) <= width:
        raise DataError(
            f"{where} holds a word and {max(len(fields) - 1, 0)} numbers instead of {width}. {CURE}"
        )
    if len(fields) > width + 1 and all(map(_is_number, fields[1:-width])):
        raise DataError(
            f"{where} holds a word and {len(fields) - 1} numbers instead of {width}. {CURE}"
        )
    return b" ".join(fields[:-width])


def _is_number(text: bytes) -> bool:
    """Whether a field can be read as a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a file, packed or not, without a byte order mark at its start.

    Raises:
        DataError: the file is empty, cut off, or no text.
    """
    with open(path, "rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
    number = 0
    try:
        with gzip.open(path) if packed else open(path, "rb") as file:
            while line := file.readline(LONGEST_LINE):
                number += 1
                if not line.endswith(b"\n"):
                    if len(line) == LONGEST_LINE:
                        raise DataError(
                            f"{path} is damaged: line {number} is longer than any vector. {CURE}"
                        )
                    raise DataError(f"{path} is cut off: its last line has no end. Fetch it again")
                if line.startswith((b"\xff\xfe", b"\xfe\xff")) and number == 1:
                    raise DataError(f"{path} is damaged: it is text in UTF-16; save it in UTF-8")
                yield line.removeprefix(BOM) if number == 1 else line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is damaged or cut off ({error}). Fetch it again") from error
    if not number:
        raise DataError(f"{path} is empty. Fetch it again")


def cache_folder(cache_dir: str | Path) -> Path:
    """Return the cache folder, which is made if it is not there.

    Raises:
        DataError: it cannot be written.
    """
    folder = Path(cache_dir).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise DataError(
            f"dataset.cache_dir={cache_dir} cannot be written ({error}); choose another folder"
        ) from error


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return stream_sha256(file)


def stream_sha256(file: BinaryIO) -> str:
    """Return the SHA-256 of the rest of an open file, in hexadecimal."""
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()
