"""Step `paste`: make copies of images with a pasted sticker, and their exact masks."""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from cdep_run.errors import PathError
from cdep_run.files import inside, write_atomic
from cdep_run.isic_prep.decode import PrepareError, read_rgb
from cdep_run.isic_prep.images import each, read_table, unreadable
from cdep_run.isic_prep.settings import Paste
from cdep_run.isic_prep.step_report import write_table
from cdep_run.isic_prep.stickers import paste_sticker


def _paste_one(job: tuple[Path, Path, Path, int]) -> float | str:
    """Paste a sticker onto one image; returns its share of the image, or why there is none."""
    source, target, mask_target, seed = job
    try:
        image, _ = read_rgb(source.read_bytes())
    except (OSError, PrepareError) as error:
        return f"{source.name} {unreadable(error) if isinstance(error, OSError) else error}"
    pasted, mask = paste_sticker(np.asarray(image), seed)
    for path, pixels in ((target, pasted), (mask_target, mask)):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")  # as JPEG, pixels beside it would change, too
        write_atomic(path, buffer.getvalue())
    return float(mask.mean())


def paste(folder: Path, options: Paste, workers: int) -> None:
    """Fill `folder`/pasted with images, patch_masks and metadata.csv, laid out as `folder` is.

    Stickers are pasted onto benign training images and malignant test images that show none, onto
    as many as the shares say. Which images those are, and what the stickers look like, depends on
    the seed and the images' names alone.

    Raises:
        PrepareError: there are no splits yet, or metadata.csv names files outside `folder`.
    """
    if not (folder / "splits.csv").is_file():
        raise PrepareError(f"{folder}/splits.csv does not exist; run the step splits first")
    text = {"isic_id": str}
    columns = ["isic_id", "benign_malignant", "patches", "file"]
    table = read_table(folder / "metadata.csv", columns, dtype=text, low_memory=False)
    table = table.merge(
        read_table(folder / "splits.csv", [*text, "split"], dtype=text), on="isic_id"
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
    try:
        originals = [inside(folder, str(file), links=True) for file in table["file"]]
        for name in table["isic_id"]:
            inside(out, f"benign/{name}.png")
    except PathError as error:
        raise PrepareError(f"{folder / 'metadata.csv'}: {error}") from error
    table["file"] = table["benign_malignant"] + "/" + table["isic_id"] + ".png"
    table["patch_mask"] = "patch_masks/" + table["isic_id"] + ".png"
    jobs = [
        (path, out / file, out / mask, int(seed))
        for path, file, mask, seed in zip(
            originals, table["file"], table["patch_mask"], seeds, strict=True
        )
    ]
    results = list(each(_paste_one, jobs, workers, "paste"))
    table["patch_fraction"] = pd.to_numeric(pd.Series(results, table.index), errors="coerce")
    table = table[table["patch_fraction"].notna()].assign(patches=1)
    for why in (result for result in results if isinstance(result, str)):
        print(f"paste: left out: {why}")
    write_table(out / "metadata.csv", table.drop(columns=["split", "fold"]))
    print(f"paste: {len(table)} images in {out}")
