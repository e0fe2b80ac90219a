"""MNIST and Fashion-MNIST: finding, checking and reading the files; the plain data sets."""

from __future__ import annotations

import hashlib
import os
import socket
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from cdep_run.datasets.archives import unpack_gz
from cdep_run.datasets.base import Annotation, Bunch, DataError, TensorSplit, fingerprint
from cdep_run.datasets.projections import group_name

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
SHA256 = {
    "MNIST": dict(
        zip(
            FILES,
            (
                "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
                "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
                "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
                "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
            ),
            strict=True,
        )
    ),
    "FashionMNIST": dict(
        zip(
            FILES,
            (
                "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
                "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
                "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
                "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
            ),
            strict=True,
        )
    ),
}
"""SHA-256 of the unpacked files; the keys are the names of torchvision's classes."""

MOST = 1 << 27
"""Bytes that a packed file may unpack to; the largest has 47 MB."""

NAMES = {"MNIST": "mnist", "FashionMNIST": "fashion_mnist"}


class Images(NamedTuple):
    """Grey images uint8 `[N, 28, 28]`, 0 is background, and their labels int64 `[N]`."""

    images: Tensor
    labels: Tensor

    def at(self, index: Tensor | slice) -> Images:
        """The examples at `index`."""
        return Images(self.images[index], self.labels[index])


class GreySplit(TensorSplit):
    """Images stored as grey levels uint8 `[N, 28, 28]`, given out as float `[n, 1, 28, 28]`."""

    def prepare(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Grey levels scaled from [0, 255] to [-1, 1]."""
        return inputs[:, None].float() / 127.5 - 1


def mnist(
    data_dir: str | Path,
    source: str,
    download: bool,
    seed: int,
    val_size: int,
    train_size: int | None = None,
) -> Bunch:
    """The plain task, without a shortcut and so without groups.

    Splits: train and val from the training part, test is the test part.

    Args:
        data_dir: folder that holds `<source>/raw/`, as torchvision lays it out, packed or not.
        source: "MNIST" or "FashionMNIST".
        download: fetch the files when absent.
        seed: of the division into train and val.
        val_size: number of training images held out.
        train_size: use only so many of the rest; None: all of them.

    Raises:
        DataError: files absent or damaged, or sizes that do not fit.
    """
    train_part, test = load(data_dir, source, download)
    generator = torch.Generator().manual_seed(seed)
    train, val = hold_out(train_part, val_size, train_size, generator)
    return grey_bunch(NAMES[source], {"train": train, "val": val, "test": test}, "val")


def grey_bunch(
    name: str,
    splits: Mapping[str, Images],
    selection_split: str,
    annotation: Annotation | None = None,
) -> Bunch:
    """A bunch of ten-class grey images that share one annotation."""
    grey: dict[str, TensorSplit] = {k: GreySplit(*part, annotation) for k, part in splits.items()}
    data = (name, grey, 10, (1, 28, 28), selection_split, fingerprint(grey))
    return Bunch(*data, lambda x: (x.cpu() + 1) / 2, group_names=group_name(annotation))


def hold_out(
    part: Images, val_size: int, train_size: int | None, generator: torch.Generator
) -> tuple[Images, Images]:
    """Divide at random into training images, at most `train_size`, and `val_size` others."""
    most = len(part.labels) - val_size
    wanted = most if train_size is None else train_size
    if val_size < 1 or not 1 <= wanted <= most:
        raise DataError(
            f"val_size={val_size} and train_size={train_size} do not fit {len(part.labels)} "
            "training images: both at least 1, together at most as many"
        )
    order = torch.randperm(len(part.labels), generator=generator)
    return part.at(order[:wanted]), part.at(order[most:])


def load(
    data_dir: str | Path,
    source: str,
    download: bool,
    sums: Mapping[str, Mapping[str, str]] = SHA256,
) -> tuple[Images, Images]:
    """Training part and test part of `source`, after a check of every file's SHA-256.

    The files are read here and not by torchvision: its import would take as long as everything
    else in this module together, and a file whose sum is right needs no parser.

    Raises:
        DataError: unknown source, or a file absent and not to be had, or damaged.
    """
    if source not in sums:
        raise DataError(f"dataset.source={source} is unknown; choose from {', '.join(sums)}")
    folder = Path(data_dir).expanduser() / source / "raw"
    for name in sums[source]:
        packed = folder / f"{name}.gz"
        if packed.is_file() and not (folder / name).is_file():
            unpack_gz(packed, folder / name, MOST)
    missing = [name for name in sums[source] if not (folder / name).is_file()]
    if missing:
        _fetch(folder, source, missing, download)
    images, labels, test_images, test_labels = (
        _read(folder / name, source, expected) for name, expected in sums[source].items()
    )
    return Images(images, labels), Images(test_images, test_labels)


def _read(path: Path, source: str, expected: str) -> Tensor:
    """The array of one idx file: images uint8 `[N, 28, 28]` or labels int64 `[N]`."""
    data = bytearray(path.read_bytes())
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        raise DataError(
            f"{path} is damaged: its SHA-256 should be {expected} but is {found} "
            f"({len(data)} bytes). Delete it and run again with dataset.download=true, "
            f"or {_by_hand(path.parent, source, [path.name])}"
        )
    if "images" in path.name:
        return torch.frombuffer(data, dtype=torch.uint8, offset=16).view(-1, 28, 28)
    return torch.frombuffer(data, dtype=torch.uint8, offset=8).long()


def _fetch(folder: Path, source: str, missing: list[str], download: bool) -> None:
    """Download `source` by torchvision, which checks its sums, and move the missing files in."""
    absent = f"{', '.join(missing)} not found in {folder}"
    by_hand = _by_hand(folder, source, missing)
    if not download:
        raise DataError(
            f"{absent}. Set data_dir to the folder that holds {source}/raw, "
            f"or dataset.download=true, or {by_hand}"
        )
    timeout = socket.getdefaulttimeout()
    try:
        socket.setdefaulttimeout(30)  # seconds without an answer; torchvision sets no limit
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            _torchvision_class(source)(temporary, download=True)
            for name in missing:
                os.replace(Path(temporary, source, "raw", name), folder / name)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{absent}, and the download failed ({reason}). Once there is a network: {by_hand}"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)


def _by_hand(folder: Path, source: str, names: list[str]) -> str:
    """What to fetch, from where and to where, for those who do it themselves."""
    mirror = _torchvision_class(source).mirrors[0]
    urls = " ".join(f"{mirror}{name}.gz" for name in names)
    return f"fetch {urls} and unpack into {folder} with gunzip"


def _torchvision_class(source: str):  # type: ignore[no-untyped-def]
    """torchvision's class, imported only when something has to be fetched."""
    from torchvision import datasets

    return getattr(datasets, source)
