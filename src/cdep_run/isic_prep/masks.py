"""Step `segment`: write a mask for each image that shows a sticker, a found or a given one."""

from __future__ import annotations

import io
import os
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cdep_run.files import write_atomic
from cdep_run.isic_prep.decode import PrepareError, read_mask, read_rgb
from cdep_run.isic_prep.images import KINDS, each, input_key, unreadable
from cdep_run.isic_prep.segment import dilate, segment_patches
from cdep_run.isic_prep.settings import Segment
from cdep_run.isic_prep.step_report import Report

COLUMNS = ("isic_id", "status", "fraction", "origin", "detail", "input")
"""`status` is mask, none (no sticker), skipped (the image cannot be used) or remark; `fraction` is
the mask's share of the image; `origin` is own or automatic."""


def struck(folder: Path) -> tuple[set[str], set[str]]:
    """Return the names of images, and of masks, that a person struck out in the contact sheet.

    `struck.txt` has a line `<isic_id> image` or `<isic_id> mask` for each; # starts a comment.

    Raises:
        PrepareError: a line of another form.
    """
    path = folder / "struck.txt"
    result: dict[str, set[str]] = {"image": set(), "mask": set()}
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    for number, line in enumerate(lines, 1):
        words = line.split("#")[0].split()
        if words and (len(words) != 2 or words[1] not in result):
            accepted = "'<isic_id> mask' or '<isic_id> image'"
            raise PrepareError(f"{path.name}, line {number}: {line!r}; expected {accepted}")
        if words:
            result[words[1]].add(words[0])
    return result["image"], result["mask"]


def own_mask(data: bytes, size: tuple[int, int], largest: float) -> NDArray[np.bool_]:
    """Decode a given mask; see `read_mask` for what it marks.

    Args:
        data: the bytes of a picture.
        size: width and height of the image that the mask belongs to.
        largest: the largest share of the image that the mask may cover.

    Raises:
        PrepareError: not a picture, another size than the image's, or nearly everything covered.
    """
    mask = read_mask(data)
    if mask.shape != size[::-1]:
        height, width = mask.shape
        raise PrepareError(f"is {width}×{height}, the image {size[0]}×{size[1]}")
    if mask.mean() > largest:
        raise PrepareError(f"covers {mask.mean():.0%} of the image")
    return mask


def _segment_one(job: tuple[str, Path, Path], options: Segment) -> dict[str, str]:
    """Find or read one image's mask, and write it; returns its row of the report."""
    name, path, target = job
    row = {"isic_id": name, "origin": "automatic", "detail": "", "fraction": "0", "input": ""}
    try:
        data = path.read_bytes()
        image = np.asarray(read_rgb(data)[0])
        row["input"] = _key(data, name, options)
    except (OSError, PrepareError) as error:
        why = unreadable(error) if isinstance(error, OSError) else error
        target.unlink(missing_ok=True)
        cure = "delete it and run the step resize again"
        return row | {"status": "skipped", "detail": f"{path.name}: {why}; {cure}"}
    mask, remarks = _given_mask(name, image.shape[1::-1], options)
    if mask is not None:
        row["origin"] = "own"
    elif options.automatic:
        mask = segment_patches(image, options)
        if mask.mean() > options.largest:
            remarks.append(f"mask not used: it covers {mask.mean():.0%} of the image")
            mask = None
    row["detail"] = "; ".join(remarks)
    if mask is None or not mask.any():
        target.unlink(missing_ok=True)
        return row | {"status": "none"}
    mask = dilate(mask, options.dilate)
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    write_atomic(target, buffer.getvalue())
    return row | {"status": "mask", "fraction": f"{mask.mean():.5f}"}


def _given_mask(
    name: str, size: tuple[int, int], options: Segment
) -> tuple[NDArray[np.bool_] | None, list[str]]:
    """The user's own mask of an image, if there is one that can be used, and remarks about it."""
    path = _given_path(name, options)
    if path is None:
        return None, []
    try:
        mask = own_mask(path.read_bytes(), size, options.largest)
    except (OSError, PrepareError) as error:
        why = unreadable(error) if isinstance(error, OSError) else error
        return None, [f"own mask not used: it {why}"]
    empty = "own mask marks nothing: the image counts as free of stickers"
    return mask, [] if mask.any() else [empty]


def _given_path(name: str, options: Segment) -> Path | None:
    """Where the user's own mask of an image is, or None."""
    path = Path(options.masks) / f"{name}.png" if options.masks else None
    return path if path and os.path.lexists(path) else None


def _key(data: bytes, name: str, options: Segment) -> str:
    """A short name of all that a mask depends on: the image, the own mask, the settings.

    Raises:
        OSError: the own mask cannot be read.
    """
    given = _given_path(name, options)
    return input_key(data, given.read_bytes() if given else b"", asdict(options))


def segment(folder: Path, options: Segment, workers: int) -> None:
    """Fill `folder`/patch_masks; reports/segment.csv has a line for each image.

    Raises:
        PrepareError: there are no images, or the folder of own masks does not exist.
    """
    if options.masks and not Path(options.masks).is_dir():
        raise PrepareError(f"segment.masks={options.masks} is no folder")
    images = sorted(p for kind in KINDS for p in (folder / kind).glob("*.jpg"))
    if not images:
        raise PrepareError(f"there are no images in {folder}/benign; run the step resize first")
    masks = folder / "patch_masks"
    masks.mkdir(exist_ok=True)
    report = Report(folder / "reports" / "segment.csv", COLUMNS)
    done, jobs, rows = report.rows(), [], []
    for path in images:
        target, old = masks / f"{path.stem}.png", done.get(path.stem)
        if old and _up_to_date(old, path, target, options):
            rows.append(old)
        else:
            jobs.append((path.stem, path, target))
    for row in each(partial(_segment_one, options=options), jobs, workers, "segment"):
        report.add(row)
        rows.append(row)
    names = {row["isic_id"] for row in rows if row["status"] == "mask"}
    for left in masks.glob("*.png"):
        if left.stem not in names:
            left.unlink()
    unused = _unused(options, {path.stem for path in images})
    report.replace(rows + unused)
    print(f"segment: {len(names)} of {len(rows)} images show a sticker (reports/segment.csv)")
    remarked = sum(bool(row["detail"]) for row in rows)
    if remarked:
        print(f"segment: {remarked} images or their own masks are remarked upon (same report)")
    if unused:
        print(f"segment: {len(unused)} masks in {options.masks} have no image (same report)")


def _up_to_date(row: dict[str, str], path: Path, target: Path, options: Segment) -> bool:
    """Whether a row of an earlier run still holds: image, own mask and settings are as before."""
    try:
        same = row["input"] == _key(path.read_bytes(), path.stem, options)
    except OSError:
        return False
    return same and target.is_file() == (row["status"] == "mask")


def _unused(options: Segment, images: set[str]) -> list[dict[str, str]]:
    """Rows of the report for own masks that have no image of their name."""
    given = sorted(path.stem for path in Path(options.masks).glob("*.png")) if options.masks else []
    detail = {"status": "remark", "origin": "own", "detail": "there is no image of this name"}
    return [{"isic_id": name, **detail} for name in given if name not in images]
