"""Step `paste`: copies of images with a pasted sticker, and their exact masks."""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from cdep_run.files import write_atomic
from cdep_run.isic_prep.images import PrepareError, each
from cdep_run.isic_prep.settings import Paste
from cdep_run.isic_prep.step_report import write_table
from cdep_run.isic_prep.stickers import paste_sticker


def _one(job: tuple[Path, Path, Path, int]) -> float:
    """Paste onto one image; the sticker's share of it."""
    source, target, mask_target, seed = job
    pasted, mask = paste_sticker(np.asarray(Image.open(source).convert("RGB")), seed)
    for path, pixels in ((target, pasted), (mask_target, mask)):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")  # as JPEG, pixels beside it would change, too
        write_atomic(path, buffer.getvalue())
    return float(mask.mean())


def paste(folder: Path, options: Paste, workers: int) -> None:
    """Fill `folder`/pasted: images, patch_masks and metadata.csv, laid out as `folder` is.

    Benign training images and malignant test images that show no sticker get one, as many as the
    shares say; the seed and the image's name alone decide which and what.

    Raises:
        PrepareError: there are no splits yet.
    """
    if not (folder / "splits.csv").is_file():
        raise PrepareError(f"{folder}/splits.csv does not exist; run the step splits first")
    table = pd.read_csv(folder / "metadata.csv", dtype={"isic_id": str}, low_memory=False).merge(
        pd.read_csv(folder / "splits.csv", dtype={"isic_id": str}), on="isic_id"
    )
    seeds = np.array([zlib.crc32(f"{options.seed} {name}".encode()) for name in table["isic_id"]])
    draw = seeds / 2**32
    kind = table["split"] + " " + table["benign_malignant"]
    share = kind.map(
        {"train benign": options.benign_train, "test malignant": options.malignant_test}
    )
    chosen = (table["patches"] == 0) & (draw < share.fillna(0))
    table, seeds = table[chosen].copy(), seeds[chosen]
    out = folder / "pasted"
    for name in ("benign", "malignant", "patch_masks"):
        (out / name).mkdir(parents=True, exist_ok=True)
    originals = [folder / file for file in table["file"]]
    table["file"] = table["benign_malignant"] + "/" + table["isic_id"] + ".png"
    table["patch_mask"] = "patch_masks/" + table["isic_id"] + ".png"
    jobs = [
        (path, out / file, out / mask, int(seed))
        for path, file, mask, seed in zip(
            originals, table["file"], table["patch_mask"], seeds, strict=True
        )
    ]
    table["patch_fraction"] = list(each(_one, jobs, workers, "paste"))
    table["patches"] = 1
    write_table(out / "metadata.csv", table.drop(columns=["split", "fold"]))
    print(f"paste: {len(table)} images in {out}")
