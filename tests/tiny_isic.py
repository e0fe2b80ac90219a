"""A prepared ISIC folder of 48 images, 24 pixels wide, whose benign half mostly shows a sticker."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import nn

from cdep_run.datasets.base import Bunch
from cdep_run.datasets.isic import isic
from cdep_run.models.frozen import FrozenTrunk

SIZE, COUNT = 24, 48


def name(number: int) -> str:
    return f"ISIC_{number:07d}"


def tiny_isic(folder: Path) -> Path:
    """Fill `folder`/isic and return `folder`: images 0 to 23 are benign, 0 to 9 have a sticker."""
    rng = np.random.default_rng(0)
    for part in ("benign", "malignant", "patch_masks"):
        (folder / "isic" / part).mkdir(parents=True)
    rows = []
    for number in range(COUNT):
        label, patched = "benign" if number < 24 else "malignant", number < 10
        pixels = rng.integers(120, 220, (SIZE, SIZE, 3), dtype=np.uint8)
        mask = np.zeros((SIZE, SIZE), dtype=bool)
        if number >= 24:
            pixels[8:16, 8:16] //= 2
        if patched:
            mask[number % 3 : number % 3 + 7, -6:] = True
            pixels[mask] = (20, 90, 200)
            Image.fromarray(mask).save(folder / "isic" / "patch_masks" / f"{name(number)}.png")
        Image.fromarray(pixels).save(folder / "isic" / label / f"{name(number)}.png")
        rows.append(
            {
                "isic_id": name(number),
                "benign_malignant": label,
                "file": f"{label}/{name(number)}.png",
                "patches": int(patched),
                "patch_mask": f"patch_masks/{name(number)}.png" if patched else "",
            }
        )
    pd.DataFrame(rows).to_csv(folder / "isic" / "metadata.csv", index=False)
    return folder


def bunch_of(folder: Path, **options: Any) -> Bunch:
    """The data set with shares that leave enough of 48 images in each split."""
    defaults = {
        "seed": 0,
        "shares": {"train": 0.5, "val": 0.25, "test": 0.25},
        "folds": 3,
        "groups": ["patient_id"],
        "cache_dir": folder / "cache",
    }
    return isic(folder, **defaults | options)


def net(seed: int = 0, trainable: Sequence[str] = ()) -> FrozenTrunk:
    """A small trunk with batch norm and pooling under a head with dropout."""
    torch.manual_seed(seed)
    trunk = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(3),
        nn.Conv2d(4, 5, 3),
        nn.ReLU(),
        nn.Flatten(),
    )
    head = nn.Sequential(nn.Linear(180, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 2))
    return FrozenTrunk(trunk, head, (3, SIZE, SIZE), trainable)


def tiny_trunk(
    input_shape: tuple[int, ...], num_classes: int, trainable: Sequence[str]
) -> FrozenTrunk:
    """As `net`, from a configuration; its trunk is the same whatever the run's seed."""
    return net(trainable=trainable)
