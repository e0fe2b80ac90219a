"""Step `resize`: turn originals of any kind into RGB JPEGs of one size, or report why not."""

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
from PIL import Image
from tqdm import tqdm

from cdep_run.files import safe_name, write_atomic
from cdep_run.isic_prep.archive import SUFFIXES, diagnoses, label_of
from cdep_run.isic_prep.decode import PrepareError, read_rgb
from cdep_run.isic_prep.settings import Resize
from cdep_run.isic_prep.step_report import Report

KINDS = ("benign", "malignant")

ENDINGS = {*SUFFIXES.values(), ".jpeg", ".tiff", ".jp2", ".ppm", ".pgm", ".dds", ".tga"}
"""Endings of the names of pictures."""

COLUMNS = ("isic_id", "status", "detail", "sha256", "input")
"""`status` is ok or skipped; `sha256` is of the new pixels; `input` names what they came from."""

SMALLEST_SIDE = 32
LONGEST_SHAPE = 4
"""A picture with a shorter side in pixels, or longer than so many times its width, is remarked."""

FLAT = 4
"""A picture whose grey levels differ by no more than this has nothing on it, and is remarked."""

SUSPICIOUS = "look at it:"
"""Begins the details of pictures that are used but may be none of skin."""

In = TypeVar("In")
Out = TypeVar("Out")


def each(function: Callable[[In], Out], items: list[In], workers: int, name: str) -> Iterator[Out]:
    """Apply `function` to every item by several processes; yields the results in order.

    Raises:
        PrepareError: a process was ended from outside.
    """
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


def oddities(image: Image.Image) -> list[str]:
    """Say what is suspicious about an RGB picture that can be used all the same."""
    width, height = image.size
    remarks = []
    if min(image.size) < SMALLEST_SIDE or max(image.size) > LONGEST_SHAPE * min(image.size):
        remarks.append(f"only {width}×{height} pixels")
    darkest, lightest = np.array(image.getextrema()).T
    if (lightest - darkest <= FLAT).all():
        levels = ", ".join(map(str, lightest))
        remarks.append(f"all of one colour ({levels})")
    return [f"{SUSPICIOUS} {remark}" for remark in remarks]


def squash(image: Image.Image, size: int, quality: int) -> bytes:
    """Squash a picture to a square, as the paper's code does, and return it as a JPEG."""
    small = image.resize((size, size), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _resize_one(job: tuple[str, Path, Path], options: Resize) -> dict[str, str]:
    """Resize one file; returns its row of the report.

    Args:
        job: the image's id, the picture, and where the JPEG goes.
        options: size, quality and the largest picture that is accepted.
    """
    name, source, target = job
    try:
        data = source.read_bytes()
        image, changes = read_rgb(data, round(options.largest * 1e6))
    except (OSError, PrepareError) as error:
        target.unlink(missing_ok=True)
        why = unreadable(error) if isinstance(error, OSError) else str(error)
        key = "" if isinstance(error, OSError) else _key(data, options)
        return _skipped(name, f"{source.name}: {why}") | {"input": key}
    if image.size == (options.size, options.size) and not changes and data.startswith(b"\xff\xd8"):
        jpeg = data  # compressing it again would only lose
    else:
        jpeg = squash(image, options.size, options.quality)
    pixels = np.asarray(Image.open(io.BytesIO(jpeg)))
    write_atomic(target, jpeg)
    return {
        "isic_id": name,
        "status": "ok",
        "detail": "; ".join([*filter(None, [changes]), *oddities(image)]),
        "sha256": hashlib.sha256(pixels.tobytes()).hexdigest(),
        "input": _key(data, options),
    }


def unreadable(error: OSError) -> str:
    """Say in a few words why a file cannot be read; the path is said elsewhere."""
    return f"cannot be read: {error.strerror or error}"


def _key(data: bytes, options: Resize) -> str:
    """A short name of all that the resized image depends on."""
    return input_key(data, options.size, options.quality, options.largest)


def input_key(data: bytes, *settings: Any) -> str:
    """Make a short name of a file's content and the settings that it is treated with."""
    return hashlib.sha256(repr(settings).encode() + data).hexdigest()[:16]


def usable(metadata: pd.DataFrame, rows: list[dict[str, str]]) -> pd.DataFrame:
    """Return one row an image with its label in `benign_malignant`.

    Args:
        metadata: columns isic_id and diagnosis_1 or benign_malignant, and any others.
        rows: gets a row of the report for each image that is left out or listed twice.

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

    names = metadata["isic_id"].fillna("").astype(str)
    nameless = names.map(lambda name: safe_name(name) != name)
    skip(metadata[nameless].fillna({"isic_id": ""}), "metadata: no usable isic_id")
    table = metadata[~nameless].copy()
    table["isic_id"] = table["isic_id"].astype(str)
    labels = np.array([label_of(row) for row in _filled(table)], dtype=object)
    unlabelled = pd.isna(labels)
    for row in _filled(table[unlabelled].drop_duplicates("isic_id")):
        diagnosis = " and ".join(sorted(diagnoses(row)))
        detail = f"the diagnosis is {diagnosis}" if diagnosis else "no diagnosis"
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


def _filled(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table, with "" for what is blank."""
    return table.astype(object).fillna("").to_dict("records")


def read_table(path: Path, columns: Iterable[str], **how: Any) -> pd.DataFrame:
    """Read a CSV file that has these columns, and maybe others; `how` goes to `pandas.read_csv`.

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
    """A row of the report for an image that is left out."""
    return {"isic_id": name, "status": "skipped", "detail": detail, "sha256": "", "input": ""}


def find_files(source: Path, names: Iterable[str]) -> dict[str, list[Path]]:
    """Find the pictures of each name in `source` and its folders, except folders of masks.

    A file whose ending is none of a picture counts where there is no other of its name, so that the
    report can say what is wrong with it.
    """
    wanted, pictures, others = set(names), dict[str, list[Path]](), dict[str, list[Path]]()
    visited = set[str]()
    for folder, folders, files in os.walk(source, followlinks=True):
        if os.path.realpath(folder) in visited:  # links may lead round in a circle
            folders.clear()
            continue
        visited.add(os.path.realpath(folder))
        folders[:] = sorted(name for name in folders if "mask" not in name)
        for path in (Path(folder, name) for name in sorted(files)):
            if path.stem in wanted:
                kind = pictures if path.suffix.lower() in ENDINGS else others
                kind.setdefault(path.stem, []).append(path)
    return others | pictures


def source_of(folder: Path, options: Resize) -> Path:
    """Return the folder with the originals and their metadata.csv.

    Raises:
        PrepareError: it is the folder that the results go to.
    """
    source = Path(options.source) if options.source else folder / "raw"
    if source.resolve() == folder.resolve():
        raise PrepareError("resize.source is the folder itself; choose another `folder`")
    return source


def find_metadata(folder: Path, options: Resize) -> pd.DataFrame:
    """Read the metadata of the originals, all columns as text.

    Raises:
        PrepareError: there is none, or it is no table.
    """
    path = source_of(folder, options) / "metadata.csv"
    if not path.is_file():
        raise PrepareError(f"{path} does not exist; run the step download, or set resize.source")
    return read_table(path, ["isic_id"], dtype=str)


def resize(folder: Path, options: Resize, workers: int) -> None:
    """Fill `folder`/benign and `folder`/malignant; reports/resize.csv has a line for each image.

    Raises:
        PrepareError: there is no metadata, or nothing usable in it.
    """
    source = source_of(folder, options)
    notes: list[dict[str, str]] = []
    table = usable(find_metadata(folder, options), notes)
    files = find_files(source, table["isic_id"])
    report = Report(folder / "reports" / "resize.csv", COLUMNS)
    done, jobs, rows = report.rows(), [], []
    for kind in KINDS:
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for name, label in zip(table["isic_id"], table["benign_malignant"], strict=True):
        target = folder / label / f"{name}.jpg"
        for kind in KINDS:
            if kind != label:
                (folder / kind / target.name).unlink(missing_ok=True)  # relabelled since
        if name not in files:
            rows.append(_skipped(name, f"no picture of this name in {source.name}"))
            continue
        if len(files[name]) > 1:
            other = f"{files[name][0].name} is used, {files[name][1].name} is not"
            notes.append({**_skipped(name, other), "status": "remark"})
        if old := _up_to_date(done.get(name), files[name][0], target, options):
            rows.append(old)
        else:
            jobs.append((name, files[name][0], target))
    for row in each(partial(_resize_one, options=options), jobs, workers, "resize"):
        report.add(row)
        rows.append(row)
    rows = _without_twins(rows)
    _remove_others(folder, {row["isic_id"] for row in rows if row["status"] == "ok"})
    report.replace(rows + notes)
    _print_counts(rows + notes)
    if not any(row["status"] == "ok" for row in rows):
        raise PrepareError(f"no image in {source} can be used; reports/resize.csv says why")


def _up_to_date(
    row: dict[str, str] | None, picture: Path, target: Path, options: Resize
) -> dict[str, str] | None:
    """The row of an earlier run if neither picture nor settings have changed since, else None."""
    if row is None or not row["input"]:
        return None
    try:
        same = row["input"] == _key(picture.read_bytes(), options)
    except OSError:
        return None
    left_out = row["status"] == "skipped" and not row["sha256"]  # not only for being a twin
    return row if same and (target.is_file() or left_out) else None


def _remove_others(folder: Path, kept: set[str]) -> None:
    """Delete images of an earlier run that are none any more."""
    for path in (path for kind in KINDS for path in (folder / kind).glob("*.jpg")):
        if path.stem not in kept:
            path.unlink()


def _print_counts(rows: list[dict[str, str]]) -> None:
    """Print how many images are ok, skipped or remarked upon."""
    counts = pd.Series([row["status"] for row in rows]).value_counts().to_dict()
    print(f"resize: {counts} (reports/resize.csv)")
    if odd := sum(SUSPICIOUS in row["detail"] for row in rows):
        print(f"resize: {odd} images are suspicious; look for {SUSPICIOUS!r} in the report")


def _without_twins(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Skip pictures with the very same pixels as another one; the first name keeps the picture."""
    first: dict[str, str] = {}
    result = []
    for row in sorted(rows, key=lambda row: row["isic_id"]):
        twin = first.setdefault(row["sha256"], row["isic_id"]) if row["status"] == "ok" else None
        if twin not in (None, row["isic_id"]):
            row = row | {"status": "skipped", "detail": f"the same picture as {twin}"}
        result.append(row)
    return result
