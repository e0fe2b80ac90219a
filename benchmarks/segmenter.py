"""How well stickers are found on real photographs: python benchmarks/segmenter.py DATA_DIR/isic

DATA_DIR/isic holds metadata.csv (isic_id, file, patches, patch_mask) and the looked-over, undilated
masks. Prints, for the images with a mask, mean IoU and the share found (IoU of 0.5 or more); for
those that show none, the share with a false one; for stickers pasted onto patch-free images, the
same; in two random halves, as a look at how much the numbers depend on the images; and the time of
one processor core.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import time
import zlib
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from cdep_run.isic_prep.segment import segment_patches
from cdep_run.isic_prep.settings import Segment, load
from cdep_run.isic_prep.stickers import paste_sticker

SETTINGS = Path(__file__).parents[1] / "data_prep" / "isic.yaml"


def measure(job: tuple[str, Path, Path | None, bool], options: Segment) -> dict[str, float | str]:
    """IoU of one image's mask with the true one; with no true mask, the area found."""
    name, path, mask, paste = job
    image = np.asarray(Image.open(path))
    truth = np.asarray(Image.open(mask)) > 0 if mask else np.zeros(image.shape[:2], bool)
    if paste:
        image, truth = paste_sticker(image, zlib.crc32(name.encode()))
    start = time.process_time()
    found = segment_patches(image, options)
    seconds = time.process_time() - start
    union = (found | truth).sum()
    iou = (found & truth).sum() / union if union else 1.0
    half = zlib.crc32(name.encode()) % 2
    return {"isic_id": name, "half": half, "iou": iou, "area": found.mean(), "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--limit", type=int, help="at most so many images of each kind")
    parser.add_argument("--csv", type=Path, help="write each image's numbers here")
    parser.add_argument("overrides", nargs="*", help="such as segment.far=10")
    arguments = parser.parse_intermixed_args()
    options = load(SETTINGS, arguments.overrides).segment
    folder, table = arguments.folder, pd.read_csv(arguments.folder / "metadata.csv")
    table = table.sample(frac=1, random_state=0)
    masked, free = table[table["patch_mask"].notna()], table[table["patches"] == 0]
    kinds = {
        "real stickers": [(r.isic_id, folder / r.file, folder / r.patch_mask, False)
                          for r in masked.itertuples()],
        "without stickers": [(r.isic_id, folder / r.file, None, False) for r in free.itertuples()],
        "pasted stickers": [(r.isic_id, folder / r.file, None, True)
                            for r in free.iloc[:300].itertuples()],
    }  # fmt: skip
    print("| images | half | number | mean IoU | found | false | core s / image |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    tables = []
    with ProcessPoolExecutor(arguments.workers) as pool:
        for kind, jobs in kinds.items():
            results = pool.map(
                partial(measure, options=options), jobs[: arguments.limit], chunksize=4
            )
            bar = tqdm(
                results, total=len(jobs[: arguments.limit]), desc=kind, leave=False, disable=None
            )
            rows = pd.DataFrame(list(bar)).assign(kind=kind)
            tables.append(rows)
            for half, part in [("all", rows), *rows.groupby("half")]:
                if kind == "without stickers":
                    scores = f"– | – | {(part['area'] > 0).mean():.1%}"
                else:
                    scores = f"{part['iou'].mean():.3f} | {(part['iou'] >= 0.5).mean():.1%} | –"
                seconds = f"{part['seconds'].mean():.2f}"
                print(f"| {kind} | {half} | {len(part)} | {scores} | {seconds} |", flush=True)
    if arguments.csv:
        pd.concat(tables).to_csv(arguments.csv, index=False)


if __name__ == "__main__":
    main()
