"""Decoyed images: a grey patch in a random corner gives the label away, but only in training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cdep_run.datasets.annotation import ConstantGroups, corners
from cdep_run.datasets.base import Bunch, DataError
from cdep_run.datasets.mnist import NAMES, Images, grey_bunch, hold_out, load
from cdep_run.datasets.projections import Facts, annotated

TEST_PATCHES = ("inverted", "random")


def decoy_mnist(
    data_dir: str | Path,
    source: str,
    download: bool,
    seed: int,
    val_size: int,
    patch_size: int,
    test_patch: str,
    groups: Any,
    train_size: int | None = None,
) -> Bunch:
    """DecoyMNIST, and the same on Fashion-MNIST: see `decoy` for the splits and the patch.

    Args:
        data_dir: folder that holds `<source>/raw/`, as torchvision lays it out.
        source: "MNIST" or "FashionMNIST".
        download: fetch the files when absent.
        seed: of the division into train and val, and of the corners.
        val_size: number of training images held out.
        patch_size: width of the patch in pixels: 5 (Rieger et al.), 4 (Ross et al.).
        test_patch: "inverted" (published CDEP code) or "random" (Ross et al.).
        groups: what must not matter: "corners", or a map, see `projections.annotated`.
        train_size: use only so many training images; None: all of them.

    Raises:
        DataError: files absent or damaged, or arguments that do not fit.
    """
    train_part, test = load(data_dir, source, download)
    generator = torch.Generator().manual_seed(seed)
    train, val = hold_out(train_part, val_size, train_size, generator)
    parts = (train, val, test, patch_size, test_patch, groups, generator)
    return decoy(f"decoy_{NAMES[source]}", *parts)


def decoy_digits(
    seed: int,
    val_size: int,
    test_size: int,
    ink: int,
    patch_size: int,
    test_patch: str,
    groups: Any,
    train_size: int | None = None,
) -> Bunch:
    """The decoy task on scikit-learn's bundled 1,797 handwritten digits; needs no download.

    8×8 images in 17 grey levels (UCI optical recognition of handwritten digits, test part, CC BY
    4.0), up-sampled to 28×28. `test_size` images are drawn at random for the test. `ink` is the
    grey level of a full stroke: at 255 so few examples are learnt from their shape before the net
    finds the patch, and nothing is left to show. Other arguments as in `decoy_mnist`.
    """
    from sklearn.datasets import load_digits

    if not 1 <= ink <= 255:
        raise DataError(f"dataset.ink={ink} must lie between 1 and 255")
    digits = load_digits()
    shapes = enlarge(torch.from_numpy(digits.images), ink)
    images = Images(shapes, torch.from_numpy(digits.target).long())
    generator = torch.Generator().manual_seed(seed)
    rest, test = hold_out(images, test_size, None, generator)
    train, val = hold_out(rest, val_size, train_size, generator)
    return decoy("decoy_digits", train, val, test, patch_size, test_patch, groups, generator)


def decoy(
    name: str,
    train: Images,
    val: Images,
    test: Images,
    patch_size: int,
    test_patch: str,
    groups: Any,
    generator: torch.Generator,
) -> Bunch:
    """Put a square grey patch into a random corner of each image.

    Splits: train and val with grey level 255 - 25·label; val_shifted, the images and corners of
    val with 25·label; test with 25·label, or 255 - 25·(a random digit) for `test_patch="random"`;
    test_clean, the test images as they are. One group of features must not matter: all four
    corners, or a linear map of the image. λ is chosen on val_shifted.
    Source: Ross et al., IJCAI 2017; Rieger et al. 2019 (arXiv:1909.13584) and its published code.
    Choosing on val would choose the shortcut, and the published code has no val_shifted.
    """
    if not 1 <= patch_size <= 14:
        raise DataError(f"dataset.patch_size={patch_size} must lie between 1 and 14 pixels")
    if test_patch not in TEST_PATCHES:
        raise DataError(
            f"dataset.test_patch={test_patch} is unknown; choose from {', '.join(TEST_PATCHES)}"
        )
    corner_train, corner_val, corner_test = (
        torch.randint(4, (len(part.labels),), generator=generator) for part in (train, val, test)
    )
    digits = torch.randint(10, (len(test.labels),), generator=generator)
    test_level = 25 * test.labels if test_patch == "inverted" else 255 - 25 * digits
    splits = {
        "train": _patched(train, corner_train, 255 - 25 * train.labels, patch_size),
        "val": _patched(val, corner_val, 255 - 25 * val.labels, patch_size),
        "val_shifted": _patched(val, corner_val, 25 * val.labels, patch_size),
        "test": _patched(test, corner_test, test_level, patch_size),
        "test_clean": test,
    }
    masks = ConstantGroups(corners(patch_size, 28, 28))
    annotation = annotated(groups, "corners", masks, Facts((1, 28, 28)))
    return grey_bunch(name, splits, "val_shifted", annotation)


def _patched(part: Images, corner: Tensor, level: Tensor, size: int) -> Images:
    """A copy with a patch of grey `level` `[N]` in `corner` `[N]`: 0 and 1 top, 2 and 3 bottom."""
    images = part.images.clone()
    for k, (top, bottom, left, right) in enumerate((corners(size, 28, 28).boxes or ((),))[0]):
        there = corner == k
        images[there, top:bottom, left:right] = level[there, None, None].to(torch.uint8)
    return Images(images, part.labels)


def enlarge(images: Tensor, ink: int) -> Tensor:
    """Bilinear up-sampling from `[N, 8, 8]` with values 0 to 16 to uint8 `[N, 28, 28]`, 0 to `ink`.

    The weights are multiples of 1/14, so that all sums are whole numbers, and exact: the same
    image on every machine.
    """
    weights = F.interpolate(torch.eye(8, dtype=torch.float64)[None], size=28, mode="linear")[0]
    weights = (14 * weights).round()  # [8, 28]
    levels = weights.T @ images.double() @ weights  # a full stroke: 14 · 14 · 16
    return (levels.long() * ink // (14 * 14 * 16)).to(torch.uint8)
