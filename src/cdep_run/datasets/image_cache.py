"""Images and masks decoded once: rows of bytes in a file, found by what the pictures hold."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from cdep_run.datasets import pictures
from cdep_run.datasets.faults import Fault
from cdep_run.datasets.image_masks import MaskSource
from cdep_run.datasets.pictures import NEARLY_ALL, Mask
from cdep_run.features.store import ELSEWHERE, RowError, RowStore
from cdep_run.files import alone_in
from cdep_run.isic_prep import decode
from cdep_run.isic_prep.decode import PrepareError

PORTION = 64
"""Pictures that are decoded before they are written together."""


class Decoded(NamedTuple):
    """What is known of a picture: its name in the rows, its size, how much of it is marked."""

    key: str
    width: int
    height: int
    share: float  # of a mask: how much of it is marked; of an image: 0


@dataclass(frozen=True)
class Job:
    """One picture to decode, or mask to draw.

    Attributes:
        where: what to call it in messages.
        path: of its file; None: the shapes of `source` are drawn.
        source: of a mask: where it comes from; None: it is an image.
        size: (width, height) of the image that shapes are drawn on.
    """

    where: str
    path: Path | None
    source: MaskSource | None = None
    size: tuple[int, int] = (0, 0)

    def signature(self) -> str | None:
        """Of a file as it is now: path, size and time of change; None: there is none."""
        if self.path is None:
            return self._drawn().drawn_key(self.size)
        try:
            state = self.path.stat()
        except OSError:
            return None
        kind = self.source is not None
        text = f"{self.path.resolve()}|{state.st_size}|{state.st_mtime_ns}|{kind}"
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]

    def _drawn(self) -> MaskSource:
        assert self.source is not None
        return self.source

    def mask(self) -> tuple[str, Mask]:
        """The name and the pixels of a mask.

        Raises:
            PrepareError: it cannot be used.
            OSError: its file cannot be read.
        """
        if self.path is None:
            source = self._drawn()
            return source.drawn_key(self.size), pictures.draw(source.shapes, self.size)
        data = self.path.read_bytes()
        return content_key(data), pictures.read_mask(data)


class ImageCache:
    """Pictures of one size, decoded by as many threads as there are cores, and kept on the disk.

    A file is decoded again when its path, size or time of change differs from those seen before; a
    row is named by what the file holds, so that several data sets and copies share it. Each row has
    a checksum, compared whenever it is read.

    Args:
        folder: holds the caches of all sizes.
        size: height and width.
        fit: how pictures become square, one of `pictures.FITS`.

    Raises:
        RowError: the folder cannot be made.
    """

    def __init__(self, folder: Path, size: int, fit: str) -> None:
        self.size, self.fit = size, fit
        code = hashlib.sha256(f"{size} {fit}".encode())
        for module in (pictures, decode):
            code.update(Path(str(module.__file__)).read_bytes())
        self.folder = folder.expanduser() / f"images-{size}-{fit}-{code.hexdigest()[:12]}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RowError(f"{self.folder} cannot be made: {error}; {ELSEWHERE}") from error
        self.open(write=False)

    def open(self, write: bool) -> None:
        """Read the index of what is there; `write=True` for the one process that adds to it."""
        width = -(-self.size * self.size // 8)
        pixels = 3 * self.size * self.size
        self.pixels = RowStore(self.folder / "pixels", pixels, write, "u8", "read")
        self.masks = RowStore(self.folder / "masks", width, write, "u8", "read")
        self.lines = self.folder / "files.csv"
        if write and self.lines.is_file():  # cut off what a killed process left half-written
            whole = self.lines.read_bytes().rpartition(b"\n")
            os.truncate(self.lines, len(whole[0] + whole[1]))
        self.seen = dict(self._seen())

    def _seen(self) -> Iterator[tuple[str, Decoded]]:
        """What is known of files, by their signatures; damaged lines are left out."""
        content = self.lines.read_bytes() if self.lines.is_file() else b""
        for line in content.split(b"\n")[:-1]:
            text, _, checksum = line.rpartition(b",")
            if f"{zlib.crc32(text):08x}".encode() != checksum:
                continue
            signature, key, width, height, share = text.decode().split(",")
            if key in self.pixels.index or key in self.masks.index:
                yield signature, Decoded(key, int(width), int(height), float(share))

    def decode(self, jobs: Sequence[Job]) -> tuple[list[Decoded | None], list[Fault]]:
        """What is known of each job's picture, in order, None where it cannot be used; and why.

        What is not there yet is decoded and added, by one process at a time.

        Raises:
            RowError: the disk is full, or too small for what is to be added.
        """
        signatures = [job.signature() for job in jobs]
        faults: list[Fault] = []
        if any(s is None or s not in self.seen for s in signatures):
            with alone_in(self.folder, wait=True):
                self.open(write=True)
                wanted = [
                    (job, s) for job, s in zip(jobs, signatures, strict=True)
                    if s is None or s not in self.seen
                ]  # fmt: skip
                self._check_space(wanted)
                faults = self._add(wanted)
        return [self.seen.get(s) if s else None for s in signatures], faults

    def _check_space(self, wanted: Sequence[tuple[Job, str | None]]) -> None:
        rows = [self.pixels if job.source is None else self.masks for job, _ in wanted]
        needed, there = sum(store.row_bytes for store in rows), os.statvfs(self.folder)
        free = there.f_bavail * there.f_frsize
        if needed > free:
            raise RowError(
                f"{len(wanted)} decoded pictures take {needed / 1e9:.2f} GB, and {self.folder} has "
                f"{free / 1e9:.2f} GB free; {ELSEWHERE}, dataset.size a smaller size"
            )

    def _add(self, wanted: Sequence[tuple[Job, str | None]]) -> list[Fault]:
        """Decode and write; returns what cannot be used."""
        faults = []
        with (
            ThreadPoolExecutor(cores()) as pool,
            tqdm(total=len(wanted), desc="decoding", unit=" images", disable=None) as bar,
        ):
            for start in range(0, len(wanted), PORTION):
                portion = wanted[start : start + PORTION]
                found = list(pool.map(lambda job: self._decode_one(job[0]), portion))
                rows = []
                for (job, signature), result in zip(portion, found, strict=True):
                    if isinstance(result, str):
                        faults.append(Fault(job.where, result))
                    elif signature is not None:
                        rows.append((signature, *result))
                self._write(rows)
                bar.update(len(portion))
        return faults

    def _decode_one(self, job: Job) -> tuple[Decoded, NDArray[np.uint8]] | str:
        """The row of one picture, or what is wrong with it."""
        try:
            if job.source is not None:
                return self._mask_row(*job.mask())
            assert job.path is not None
            data = job.path.read_bytes()
            image = pictures.read_picture(data)
        except PrepareError as error:
            return str(error)
        except FileNotFoundError:
            return "does not exist"
        except (OSError, MemoryError) as error:
            return f"cannot be read: {error}"
        row = pictures.fit_picture(image, self.size, self.fit)
        return Decoded(content_key(data), *image.size, 0.0), row.reshape(-1)

    def _mask_row(self, key: str, mask: Mask) -> tuple[Decoded, NDArray[np.uint8]]:
        height, width = mask.shape
        row = pictures.pack(pictures.fit_mask_picture(mask, self.size, self.fit))
        return Decoded(f"m{key}", width, height, float(mask.mean())), row

    def _write(self, rows: Sequence[tuple[str, Decoded, NDArray[np.uint8]]]) -> None:
        """Add rows that are not there yet, and the lines that say which file has which."""
        for store, mask in ((self.pixels, False), (self.masks, True)):
            new = {
                known.key: row for _, known, row in rows
                if known.key.startswith("m") == mask and known.key not in store.index
            }  # fmt: skip
            if new:
                store.add(list(new), torch.from_numpy(np.stack(list(new.values()))))
        with open(self.lines, "a", encoding="utf-8") as file:
            for signature, known, _ in rows:
                self.seen[signature] = known
                line = f"{signature},{','.join(map(str, known))}"
                file.write(f"{line},{zlib.crc32(line.encode()):08x}\n")

    def masks_of(self, rows: Sequence[int]) -> Mask:
        """Masks `[n, size, size]` at these rows."""
        return pictures.unpack(self.masks.read(rows), self.size)


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def content_key(data: bytes) -> str:
    """The name of what a file holds."""
    return hashlib.sha256(data).hexdigest()[:32]


def mask_fault(mask: Decoded, image: Decoded) -> str | None:
    """Why a mask cannot be that of an image, if so."""
    if (mask.width, mask.height) != (image.width, image.height):
        return f"is {mask.width}×{mask.height}, the image (upright) is {image.width}×{image.height}"
    if mask.share > NEARLY_ALL:
        return f"marks {mask.share:.0%} of the image: that says that nothing may matter"
    return None
