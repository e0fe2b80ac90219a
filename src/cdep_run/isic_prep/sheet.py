"""Step `sheet`: a page to look through images and masks quickly, and to strike out wrong ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from skimage.measure import approximate_polygon, find_contours

from cdep_run.files import write_atomic
from cdep_run.isic_prep.images import PrepareError, each
from cdep_run.isic_prep.masks import struck

TEMPLATE = Path(__file__).with_name("sheet.html")


def outline(mask: NDArray[np.bool_]) -> str:
    """The mask's outline as an SVG path in pixels."""
    padded = np.pad(ndimage.binary_fill_holes(mask), 1).astype(float)
    parts = []
    for contour in find_contours(padded, 0.5):
        points = approximate_polygon(contour, 0.7) - 0.5
        parts.append("M" + "L".join(f"{x:.1f} {y:.1f}" for y, x in points) + "Z")
    return "".join(parts)


def _entry(job: tuple[Path, Path]) -> dict[str, object]:
    """One image's data for the page."""
    path, masks = job
    mask = masks / f"{path.stem}.png"
    with Image.open(path) as image:
        entry: dict[str, object] = {"id": path.stem, "label": path.parent.name, "size": image.size}
    if mask.is_file():
        pixels = np.asarray(Image.open(mask)) > 0
        entry |= {"outline": outline(pixels), "share": round(float(pixels.mean()), 4)}
    return entry


def sheet(folder: Path, workers: int) -> None:
    """Write `folder`/sheet.html, which shows the pictures beside it.

    Raises:
        PrepareError: there are no images.
    """
    images = sorted(p for kind in ("benign", "malignant") for p in (folder / kind).glob("*.jpg"))
    if not images:
        raise PrepareError(f"there are no images in {folder}/benign; run the step resize first")
    out, no_mask = struck(folder)
    jobs = [(path, folder / "patch_masks") for path in images]
    entries = list(each(_entry, jobs, workers, "contact sheet"))
    marks = {name: "mask" for name in no_mask} | {name: "image" for name in out}
    data = json.dumps({"images": entries, "struck": marks}).replace("</", "<\\/")
    page = TEMPLATE.read_text(encoding="utf-8").replace("/*DATA*/", data)
    write_atomic(folder / "sheet.html", page.encode())
    print(f"sheet: open {folder / 'sheet.html'} in a browser; save its list as "
          f"{folder / 'struck.txt'}")  # fmt: skip
