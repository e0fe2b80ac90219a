"""Step `resize`: originals of any kind become RGB JPEGs of one size, or a line in the report."""

from __future__ import annotations

import hashlib
import io
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from cdep_run.errors import CdepError
from cdep_run.files import write_atomic
from cdep_run.isic_prep.archive import SUFFIXES, diagnoses, label_of
from cdep_run.isic_prep.settings import Resize
from cdep_run.isic_prep.step_report import Report

COLUMNS = ("isic_id", "status", "detail", "sha256", "input")
"""`status` is ok or skipped; `sha256` is of the new pixels; `input` names what they came from."""

UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What Pillow raises at bytes that are no picture."""

In = TypeVar("In")
Out = TypeVar("Out")


class PrepareError(CdepError):
    """The given images or metadata cannot be used."""


def decoding_error(data: bytes, error: Exception) -> PrepareError:
    """What to say of the bytes of a file that Pillow refused with `error`."""
    if not data:
        return PrepareError("the file is empty")
    if isinstance(error, UnidentifiedImageError):  # its own words name a Python object
        return PrepareError("cannot be decoded: it is no picture of a known kind")
    return PrepareError(f"cannot be decoded: {str(error) or type(error).__name__}")


def each(function: Callable[[In], Out], items: list[In], workers: int, name: str) -> Iterator[Out]:
    """`function` of every item, in order, by several processes, with a progress bar."""
    bar = partial(tqdm, total=len(items), desc=name, unit=" images", disable=None)
    if workers == 1:
        yield from bar(map(function, items))
        return
    pool = ProcessPoolExecutor(workers, initializer=_end_on_interrupt)
    try:
        yield from bar(pool.map(function, items, chunksize=4))
    except BrokenProcessPool:
        raise PrepareError(
            f"{name}: a worker process was ended, perhaps for want of memory; the same command "
            f"goes on from here, with fewer workers than {workers} if need be"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _end_on_interrupt() -> None:
    """Ctrl-C reaches every process: a worker ends at once, without a traceback of its own.

    Ignoring it would leave the pool waiting for good after a second Ctrl-C.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def read_rgb(data: bytes) -> tuple[Image.Image, str]:
    """An RGB picture, upright, from the bytes of a file; and what had to be changed for it.

    CMYK, palette and grey are converted, 16 bits become 8, transparency is laid on white, an EXIF
    rotation is carried out.

    Raises:
        PrepareError: the bytes are no whole picture.
    """
    try:
        with Image.open(io.BytesIO(data)) as opened:
            opened.load()
            image = ImageOps.exif_transpose(opened)
            changes = (
                ["EXIF rotation carried out"]
                if image.size != opened.size or (opened.getexif().get(0x0112, 1) not in (0, 1))
                else []
            )
    except UNREADABLE as error:
        raise decoding_error(data, error) from None
    if image.mode == "RGB" and "transparency" not in image.info:
        return image, "; ".join(changes)
    changes.append(f"{image.mode} made RGB")
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image, dtype=np.float64)
        if image.mode == "F" and values.max(initial=0) <= 1:
            values = values * 65535
        image = Image.fromarray(np.clip(values / 257, 0, 255).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB"), "; ".join(changes)


def squash(image: Image.Image, size: int, quality: int) -> bytes:
    """The JPEG of a picture squashed to a square, as the paper's code does."""
    small = image.resize((size, size), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _one(job: tuple[str, Path, Path, int, int]) -> dict[str, str]:
    """Resize one file; its row of the report."""
    name, source, target, size, quality = job
    data = source.read_bytes()
    row = {"isic_id": name, "input": input_key(data, size, quality)}
    try:
        image, changes = read_rgb(data)
    except PrepareError as error:
        target.unlink(missing_ok=True)
        return row | {"status": "skipped", "detail": f"{source.name}: {error}", "sha256": ""}
    if image.size == (size, size) and not changes and data.startswith(b"\xff\xd8"):
        jpeg = data  # compressing it again would only lose
    else:
        jpeg = squash(image, size, quality)
    pixels = np.asarray(Image.open(io.BytesIO(jpeg)))
    write_atomic(target, jpeg)
    digest = hashlib.sha256(pixels.tobytes()).hexdigest()
    return row | {"status": "ok", "detail": changes, "sha256": digest}


def input_key(data: bytes, *settings: Any) -> str:
    """A short name of a file's content and the settings it is treated with."""
    return hashlib.sha256(repr(settings).encode() + data).hexdigest()[:16]


def usable(metadata: pd.DataFrame, rows: list[dict[str, str]]) -> pd.DataFrame:
    """One row an image with its label in `benign_malignant`; the others go to the report.

    Raises:
        PrepareError: a column is missing.
    """
    if "isic_id" not in metadata or not {"diagnosis_1", "benign_malignant"} & {*metadata}:
        raise PrepareError(
            f"metadata has the columns {', '.join(map(str, metadata))}; needed: isic_id, and "
            "diagnosis_1 or benign_malignant"
        )

    def skip(table: pd.DataFrame, detail: str) -> None:
        for name in table["isic_id"].unique():
            rows.append(_skipped(str(name), detail))

    nameless = metadata["isic_id"].isna() | ~metadata["isic_id"].astype(str).str.fullmatch(
        r"[\w-]+"
    )
    skip(metadata[nameless].fillna({"isic_id": ""}), "metadata: no usable isic_id")
    table = metadata[~nameless].copy()
    table["isic_id"] = table["isic_id"].astype(str)
    labels = np.array([label_of(row) for row in table.fillna("").to_dict("records")], dtype=object)
    unlabelled = pd.isna(labels)
    for row in table[unlabelled].fillna("").drop_duplicates("isic_id").to_dict("records"):
        said = " and ".join(sorted(diagnoses(row)))
        detail = f"the diagnosis is {said}" if said else "no diagnosis"
        rows.append(_skipped(row["isic_id"], f"metadata: {detail}"))
    table = table[~unlabelled].assign(benign_malignant=labels[~unlabelled])
    disagree = table.groupby("isic_id")["benign_malignant"].transform("nunique") > 1
    skip(table[disagree], "metadata: listed twice, with different labels")
    table = table[~disagree]
    twice = table.duplicated("isic_id")
    for name in table[twice]["isic_id"].unique():
        rows.append(
            {**_skipped(name, "metadata: listed twice; the first row counts"), "status": "remark"}
        )
    return table[~twice]


def read_table(path: Path, columns: Iterable[str], **how: Any) -> pd.DataFrame:
    """A CSV file that has, among others, these columns; `how` goes to `pandas.read_csv`.

    Raises:
        PrepareError: it is no table, or a column is missing.
    """
    try:
        table = pd.read_csv(path, **how)
    except ValueError as error:
        raise PrepareError(f"{path} is no CSV table: {error}") from None
    if missing := [name for name in columns if name not in table]:
        raise PrepareError(
            f"{path} has the columns {', '.join(map(str, table))}; missing: {', '.join(missing)}"
        )
    return table


def _skipped(name: str, detail: str) -> dict[str, str]:
    return {"isic_id": name, "status": "skipped", "detail": detail, "sha256": "", "input": ""}


def find_files(source: Path, names: Iterable[str]) -> dict[str, list[Path]]:
    """The pictures of each name, searched in `source` and its folders, masks aside."""
    wanted, found = set(names), dict[str, list[Path]]()
    suffixes = {*SUFFIXES.values(), ".jpeg", ".tiff"}
    for folder, folders, files in os.walk(source, followlinks=True):
        folders[:] = sorted(name for name in folders if "mask" not in name)
        for path in (Path(folder, name) for name in sorted(files)):
            if path.stem in wanted and path.suffix.lower() in suffixes:
                found.setdefault(path.stem, []).append(path)
    return found


def source_of(folder: Path, options: Resize) -> Path:
    """Where the originals and their metadata.csv are.

    Raises:
        PrepareError: it is the folder that the results go to.
    """
    source = Path(options.source) if options.source else folder / "raw"
    if source.resolve() == folder.resolve():
        raise PrepareError("resize.source is the folder itself; choose another `folder`")
    return source


def find_metadata(folder: Path, options: Resize) -> pd.DataFrame:
    """The metadata of the originals, all columns as text.

    Raises:
        PrepareError: there is none, or it is no table.
    """
    path = source_of(folder, options) / "metadata.csv"
    if not path.is_file():
        raise PrepareError(f"{path} does not exist; run the step download, or set resize.source")
    return read_table(path, ["isic_id"], dtype=str)


def resize(folder: Path, options: Resize, workers: int) -> None:
    """Fill `folder`/benign and `folder`/malignant; what was done is in reports/resize.csv.

    Raises:
        PrepareError: there is no metadata, or nothing usable in it.
    """
    source = source_of(folder, options)
    notes: list[dict[str, str]] = []
    table = usable(find_metadata(folder, options), notes)
    files = find_files(source, table["isic_id"])
    report = Report(folder / "reports" / "resize.csv", COLUMNS)
    done, jobs, rows = report.rows(), [], []
    for name, label in zip(table["isic_id"], table["benign_malignant"], strict=True):
        for kind in ("benign", "malignant"):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            if kind != label:
                (folder / kind / f"{name}.jpg").unlink(missing_ok=True)  # relabelled since
        if name not in files:
            rows.append(_skipped(name, f"no picture of this name in {source.name}"))
            continue
        if len(files[name]) > 1:
            other = f"{files[name][0].name} is used, {files[name][1].name} is not"
            notes.append({**_skipped(name, other), "status": "remark"})
        picture, target = files[name][0], folder / label / f"{name}.jpg"
        old = done.get(name)
        key = input_key(picture.read_bytes(), options.size, options.quality)
        if old and old["input"] == key and (target.is_file() or old["status"] == "skipped"):
            rows.append(old)
        else:
            jobs.append((name, picture, target, options.size, options.quality))
    for row in each(_one, jobs, workers, "resize"):
        report.add(row)
        rows.append(row)
    rows = _without_twins(rows, folder)
    for kind in ("benign", "malignant"):  # images that metadata no longer names
        kept = {row["isic_id"] for row in rows if row["status"] == "ok"}
        for left in (folder / kind).glob("*.jpg"):
            if left.stem not in kept:
                left.unlink()
    report.replace(rows + notes)
    counts = pd.Series([row["status"] for row in rows + notes]).value_counts().to_dict()
    print(f"resize: {counts} (reports/resize.csv)")
    if not counts.get("ok"):
        raise PrepareError(f"no image in {source} can be used; reports/resize.csv says why")


def _without_twins(rows: list[dict[str, str]], folder: Path) -> list[dict[str, str]]:
    """Pictures with the very same pixels under two names: the first name keeps it."""
    first: dict[str, str] = {}
    result = []
    for row in sorted(rows, key=lambda row: row["isic_id"]):
        if (
            row["status"] == "ok"
            and first.setdefault(row["sha256"], row["isic_id"]) != row["isic_id"]
        ):
            row = row | {
                "status": "skipped",
                "detail": f"the same picture as {first[row['sha256']]}",
            }
        result.append(row)
    return result
