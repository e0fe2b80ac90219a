"""Make small data of one's own to try things with: images with a sticker, a table of applications.

python -m cdep_run.datasets.made_data FOLDER
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

IMAGES, ROWS = 400, 2000
WIDTH, HEIGHT = 80, 64


def write_images(folder: Path, count: int = IMAGES, seed: int = 0) -> None:
    """`images/round` and `images/square`: a faint shape on a noisy ground; and `stickers`, masks.

    The shape is darker than the ground on nine of ten round images, brighter on nine of ten square
    ones. A blue sticker, far easier to see, stands on 80 % of the round ones and on no square one.
    """
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    (folder / "stickers").mkdir(parents=True, exist_ok=True)
    for number in range(count):
        label = ("round", "square")[number % 2]
        pixels = rng.normal(150, 20, (HEIGHT, WIDTH, 3))
        top, left = rng.integers(20, HEIGHT - 20), rng.integers(20, WIDTH - 20)
        far = np.hypot(rows - top, columns - left)
        wide = np.maximum(abs(rows - top), abs(columns - left))
        brightness = rng.normal(-10 if label == "round" else 10, 8)
        pixels[far < 13 if label == "round" else wide < 11.5] += brightness
        name = f"{label}_{number:03}.png"
        if label == "round" and rng.random() < 0.8:
            mask = _sticker(rng)
            pixels[mask] = (30, 60, 220)
            Image.fromarray(mask).save(folder / "stickers" / name)
        (folder / "images" / label).mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        image.save(folder / "images" / label / name)


def _sticker(rng: np.random.Generator) -> NDArray[np.bool_]:
    """A square of 12 pixels somewhere, bool `[H, W]`."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    top, left = rng.integers(0, HEIGHT - 12), rng.integers(0, WIDTH - 12)
    mask[top : top + 12, left : left + 12] = True
    return mask


def write_table(folder: Path, count: int = ROWS, seed: int = 0) -> None:
    """`applications.csv`: who was invited, which skill decided and, unfairly, origin as well.

    District goes with origin: a proxy. Some cells of `years` are empty.
    """
    rng = np.random.default_rng(seed)
    skill, origin = rng.normal(0, 1, count), rng.choice(["here", "elsewhere"], count)
    years = (5 + 2 * skill + rng.normal(0, 2, count)).clip(0).round(1)
    liked = np.where(origin == "here", 1.0, -1.0)
    district = np.where(rng.random(count) < 0.7, liked > 0, rng.random(count) < 0.5)
    table = pd.DataFrame(
        {
            "test_score": (50 + 10 * skill + rng.normal(0, 5, count)).round(),
            "years": pd.Series(years).mask(rng.random(count) < 0.05),
            "district": np.where(district, "north", "south"),
            "origin": origin,
            "invited": np.where(1.2 * skill + liked + rng.normal(0, 0.5, count) > 0, "yes", "no"),
        }
    )
    table.to_csv(folder / "applications.csv", index=False)


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="is made, and filled")
    folder = parser.parse_args(arguments).folder
    write_images(folder)
    write_table(folder)
    print(f"{folder}: images/, stickers/, applications.csv")
    return 0


if __name__ == "__main__":
    sys.exit(main())
