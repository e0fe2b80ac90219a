"""Step `sheet`: make a page to look through images and masks and to strike out wrong ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from skimage.measure import approximate_polygon, find_contours

from cdep_run.files import write_atomic
from cdep_run.isic_prep.decode import UNREADABLE, PrepareError
from cdep_run.isic_prep.images import KINDS, each
from cdep_run.isic_prep.masks import struck

TEMPLATE = Path(__file__).with_name("sheet.html")


def outline(mask: NDArray[np.bool_]) -> str:
    """Turn a mask `[H, W]` into its outline, an SVG path in pixels."""
    padded = np.pad(ndimage.binary_fill_holes(mask), 1).astype(float)
    parts = []
    for contour in find_contours(padded, 0.5):
        points = approximate_polygon(contour, 0.7) - 0.5
        parts.append("M" + "L".join(f"{x:.1f} {y:.1f}" for y, x in points) + "Z")
    return "".join(parts)


def _entry(job: tuple[Path, Path]) -> dict[str, object] | str:
    """Make one image's data for the page, or say which file cannot be read."""
    path, masks = job
    try:
        return _readable_entry(path, masks / f"{path.stem}.png")
    except UNREADABLE:
        return path.name


def _readable_entry(path: Path, mask: Path) -> dict[str, object]:
    """Make one image's data: name, class, size, and its mask's outline and share, if it has one."""
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
    images = sorted(p for kind in KINDS for p in (folder / kind).glob("*.jpg"))
    if not images:
        raise PrepareError(f"there are no images in {folder}/benign; run the step resize first")
    out, no_mask = struck(folder)
    jobs = [(path, folder / "patch_masks") for path in images]
    results = list(each(_entry, jobs, workers, "contact sheet"))
    entries = [entry for entry in results if isinstance(entry, dict)]
    damaged = [name for name in results if isinstance(name, str)]
    marks = {name: "mask" for name in no_mask} | {name: "image" for name in out}
    data = json.dumps({"images": entries, "struck": marks}).replace("<", "\\u003c")
    page = TEMPLATE.read_text(encoding="utf-8").replace("/*DATA*/", data)
    write_atomic(folder / "sheet.html", page.encode())
    if damaged:
        print(f"sheet: {len(damaged)} images, or their masks, cannot be read and are left out: "
              f"{', '.join(damaged[:5])}")  # fmt: skip
    print(f"sheet: open {folder / 'sheet.html'} in a browser; save its list as "
          f"{folder / 'struck.txt'}")  # fmt: skip
