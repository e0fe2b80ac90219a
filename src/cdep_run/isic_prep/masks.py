"""Step `segment`: a mask beside each image that shows a sticker, found or given."""

from __future__ import annotations

import io
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cdep_run.files import write_atomic
from cdep_run.isic_prep.images import UNREADABLE, PrepareError, decoding_error, each, input_key
from cdep_run.isic_prep.segment import dilate, segment_patches
from cdep_run.isic_prep.settings import Segment
from cdep_run.isic_prep.step_report import Report

COLUMNS = ("isic_id", "status", "fraction", "origin", "detail", "input")
"""`status` is mask, none or remark; `fraction` is of the image; `origin` is own or automatic."""


def struck(folder: Path) -> tuple[set[str], set[str]]:
    """Names of the images, and of the masks, that a person struck out in the contact sheet.

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
    """A mask from the bytes of a picture, nonzero = sticker; `size` is (width, height).

    Raises:
        PrepareError: not a picture, another size than the image's, or nearly everything covered.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            values = np.asarray(image if image.mode in ("1", "L", "I;16") else image.convert("L"))
    except UNREADABLE as error:
        raise decoding_error(data, error) from None
    if values.shape != size[::-1]:
        width, height = values.shape[1], values.shape[0]
        raise PrepareError(f"is {width}×{height}, the image {size[0]}×{size[1]}")
    mask = values > 0
    if mask.mean() > largest:
        raise PrepareError(f"covers {mask.mean():.0%} of the image")
    return mask


def _one(job: tuple[str, Path, Path], options: Segment) -> dict[str, str]:
    """Find or read one image's mask, and write it; its row of the report."""
    name, path, target = job
    data, given = path.read_bytes(), _given(name, options)
    mask, origin, detail = None, "automatic", ""
    image = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    if given:
        try:
            mask, origin = own_mask(given.read_bytes(), image.shape[1::-1], options.largest), "own"
        except PrepareError as error:
            detail = f"own mask not used: it {error}"
    if mask is None and options.automatic:
        mask = segment_patches(image, options)
        if mask.mean() > options.largest:
            detail += f"mask not used: it covers {mask.mean():.0%} of the image"
            mask = None
    row = {"isic_id": name, "origin": origin, "detail": detail, "input": _key(data, name, options)}
    if mask is None or not mask.any():
        target.unlink(missing_ok=True)
        return row | {"status": "none", "fraction": "0"}
    mask = dilate(mask, options.dilate)
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    write_atomic(target, buffer.getvalue())
    return row | {"status": "mask", "fraction": f"{mask.mean():.5f}"}


def _given(name: str, options: Segment) -> Path | None:
    path = Path(options.masks) / f"{name}.png" if options.masks else None
    return path if path and path.is_file() else None


def _key(data: bytes, name: str, options: Segment) -> str:
    """What the mask depends on: the image, the own mask, the settings."""
    given = _given(name, options)
    return input_key(data, given.read_bytes() if given else b"", asdict(options))


def segment(folder: Path, options: Segment, workers: int) -> None:
    """Fill `folder`/patch_masks; what was found is in reports/segment.csv.

    Raises:
        PrepareError: there are no images, or the folder of own masks does not exist.
    """
    if options.masks and not Path(options.masks).is_dir():
        raise PrepareError(f"segment.masks={options.masks} is no folder")
    images = sorted(p for kind in ("benign", "malignant") for p in (folder / kind).glob("*.jpg"))
    if not images:
        raise PrepareError(f"there are no images in {folder}/benign; run the step resize first")
    masks = folder / "patch_masks"
    masks.mkdir(exist_ok=True)
    report = Report(folder / "reports" / "segment.csv", COLUMNS)
    done, jobs, rows = report.rows(), [], []
    for path in images:
        target, old = masks / f"{path.stem}.png", done.get(path.stem)
        current = old and old["input"] == _key(path.read_bytes(), path.stem, options)
        if old and current and target.is_file() == (old["status"] == "mask"):
            rows.append(old)
        else:
            jobs.append((path.stem, path, target))
    for row in each(partial(_one, options=options), jobs, workers, "segment"):
        report.add(row)
        rows.append(row)
    names = {row["isic_id"] for row in rows if row["status"] == "mask"}
    for left in masks.glob("*.png"):
        if left.stem not in names:
            left.unlink()
    unused = _unused(options, {path.stem for path in images})
    report.replace(rows + unused)
    print(f"segment: {len(names)} of {len(rows)} images show a sticker (reports/segment.csv)")
    if unused:
        print(f"segment: {len(unused)} masks in {options.masks} have no image (same report)")


def _unused(options: Segment, images: set[str]) -> list[dict[str, str]]:
    """Rows of the report for own masks that no image bears the name of."""
    given = sorted(path.stem for path in Path(options.masks).glob("*.png")) if options.masks else []
    detail = {"status": "remark", "origin": "own", "detail": "there is no image of this name"}
    return [{"isic_id": name, **detail} for name in given if name not in images]
