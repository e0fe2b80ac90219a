"""`cdep-run predict RUN PATH…`: what a finished run says of new images, texts or table rows.

The run alone is needed, not its data: preprocessing and class names are in its record.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdep_run.errors import CdepError, ConfigError
from cdep_run.files import write_atomic
from cdep_run.results.text import spreadsheet_safe

if TYPE_CHECKING:
    from torch import Tensor

    from cdep_run.results.load import LoadedRun

READERS = 2
"""Threads that decode the next images while the model works on the last ones."""


@dataclass
class Portion:
    """Some examples, ready for the model.

    Attributes:
        names: what each example is called: a file, or "FILE row N".
        inputs: `[n, …]`; None: none of them can be read.
        problems: by name, why an example cannot be read; it has no place in `inputs`.
    """

    names: list[str]
    inputs: Tensor | None
    problems: dict[str, str]


@dataclass
class Prediction:
    """What the model says of one example.

    Attributes:
        name: of the example.
        label: the most probable class; None: the example cannot be read.
        probabilities: of each class, in the order of the run's classes.
        problem: why the example cannot be read, or "".
    """

    name: str
    label: str | None
    probabilities: list[float]
    problem: str = ""


def predict(
    run: LoadedRun, paths: Sequence[Path], batch_size: int = 64, column: str | None = None
) -> Iterator[Prediction]:
    """Yield what `run` says of every example, in the order of the paths.

    Args:
        run: from `cdep_run.load`.
        paths: of images or folders of them; of tables (CSV, TSV, JSON lines, Parquet) for text and
            table runs.
        batch_size: examples that the model sees at a time.
        column: of texts; None: as it was called in training.

    Raises:
        ConfigError: the run's data set does not say how examples become inputs.
        DataError: a table cannot be read.
    """
    import torch

    classes = class_names(run)
    device = next((p.device for p in run.model.parameters()), torch.device("cpu"))
    with torch.inference_mode():
        for portion in portions(run.preprocessing, paths, batch_size, column):
            answers: Iterator[list[float]] = iter(())
            if portion.inputs is not None:
                logits = run.model(portion.inputs.to(device))
                answers = iter(_probabilities(logits).tolist())
            for name in portion.names:
                if name in portion.problems:
                    yield Prediction(name, None, [], portion.problems[name])
                    continue
                values = next(answers)
                yield Prediction(name, classes[values.index(max(values))], values)


def class_names(run: LoadedRun) -> list[str]:
    """Return what each class is called: its number where the data set has no name for it."""
    return run.classes or [str(k) for k in range(run.result["model"]["num_classes"])]


def _probabilities(logits: Tensor) -> Tensor:
    """Return class probabilities `[N, C]`; one logit z is read as the pair (0, z)."""
    import torch

    if logits.shape[1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], 1)
    return logits.double().softmax(1)


def portions(
    preprocessing: dict[str, Any] | None,
    paths: Sequence[Path],
    batch_size: int,
    column: str | None = None,
) -> Iterator[Portion]:
    """Yield the examples of `paths` as inputs, `batch_size` at a time.

    Raises:
        ConfigError: no preprocessing is known, or there is nothing to predict.
        DataError: a table cannot be read.
    """
    kinds = ("images", "text", "table")
    kind = (preprocessing or {}).get("kind")
    if preprocessing is None or kind not in kinds:
        raise ConfigError(
            "the run's data set does not say how raw examples become inputs; predict works for "
            f"runs on dataset={', '.join(kinds)}"
        )
    absent = [str(path) for path in paths if not path.exists()]
    if absent:
        raise ConfigError(f"{', '.join(absent)} {'do' if len(absent) > 1 else 'does'} not exist")
    if kind == "text":
        return text_portions(preprocessing, paths, batch_size, column)
    made = image_portions if kind == "images" else table_portions
    return made(preprocessing, paths, batch_size)


def image_portions(
    preprocessing: dict[str, Any], paths: Sequence[Path], batch_size: int
) -> Iterator[Portion]:
    """Yield images; the next portion is decoded while the caller works on this one.

    Raises:
        ConfigError: no file with the name of a picture is among the paths.
    """
    from cdep_run.datasets.pictures import SUFFIXES

    files = [
        file
        for path in paths
        for file in (sorted(path.rglob("*")) if path.is_dir() else [path])
        if file.suffix.lower() in SUFFIXES or file == path
    ]
    if not files:
        raise ConfigError(f"no pictures ({', '.join(SUFFIXES)}) in {', '.join(map(str, paths))}")
    parts = [files[i : i + batch_size] for i in range(0, len(files), batch_size)]
    with ThreadPoolExecutor(READERS) as readers:
        coming = [readers.submit(_read_images, preprocessing, part) for part in parts[:READERS]]
        for number in range(len(parts)):
            portion = coming.pop(0).result()
            if number + READERS < len(parts):
                coming.append(readers.submit(_read_images, preprocessing, parts[number + READERS]))
            yield portion


def _read_images(preprocessing: dict[str, Any], files: Sequence[Path]) -> Portion:
    """Decode some files; one that is no picture becomes a problem of its own."""
    import numpy as np
    import torch

    from cdep_run.datasets.pictures import prepare

    pixels, problems = [], {}
    for file in files:
        try:
            pixels.append(prepare(file.read_bytes(), preprocessing))
        except (CdepError, OSError, ValueError) as error:
            problems[str(file)] = str(error).partition("\n")[0]
    inputs = torch.from_numpy(np.stack(pixels)) if pixels else None
    return Portion([str(file) for file in files], inputs, problems)


def text_portions(
    preprocessing: dict[str, Any], paths: Sequence[Path], batch_size: int, column: str | None
) -> Iterator[Portion]:
    """Yield the texts of tables; the column is the one of the training table unless told."""
    from cdep_run.datasets.table_file import as_text, read_table
    from cdep_run.datasets.text import encode

    wanted = column or preprocessing["column"]
    for path in paths:
        frame = read_table(path, [wanted])
        texts = as_text(frame[wanted]).tolist()
        for start in range(0, len(texts), batch_size):
            some = slice(start, start + batch_size)
            names = [f"{path} row {row}" for row in frame.index[some]]
            problems = {
                name: "the text is empty"
                for name, text in zip(names, texts[some], strict=True)
                if not text.strip()
            }
            kept = [t for t in texts[some] if t.strip()]
            yield Portion(names, encode(kept, preprocessing) if kept else None, problems)


def table_portions(
    preprocessing: dict[str, Any], paths: Sequence[Path], batch_size: int
) -> Iterator[Portion]:
    """Yield the rows of tables that hold the columns the model was trained with."""
    from cdep_run.datasets.table import encode
    from cdep_run.datasets.table_file import read_table

    for path in paths:
        frame = read_table(path, [column["name"] for column in preprocessing["columns"]])
        inputs = encode(frame, preprocessing)
        for start in range(0, len(frame), batch_size):
            some = slice(start, start + batch_size)
            names = [f"{path} row {row}" for row in frame.index[some]]
            yield Portion(names, inputs[some], {})


def as_csv(predictions: Sequence[Prediction], classes: Sequence[str]) -> bytes:
    """Return predictions as CSV: example, class, a probability for each class, problem."""
    text = io.StringIO()
    writer = csv.writer(text)
    head = ["example", "class", *(f"p({name})" for name in classes), "problem"]
    writer.writerow(map(spreadsheet_safe, head))
    for one in predictions:
        shown = [f"{value:.6g}" for value in one.probabilities] or [""] * len(classes)
        cells = [one.name, one.label or "", *shown, one.problem]
        writer.writerow(map(spreadsheet_safe, cells))
    return text.getvalue().encode()


def main(words: Sequence[str]) -> int:
    """Predict as the command line says; exit code 1 if an example cannot be read."""
    parser = argparse.ArgumentParser(
        prog="cdep-run predict",
        description="Classify new images, texts or table rows with a finished run.",
    )
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("paths", type=Path, nargs="+", help="images, folders of images, or tables")
    parser.add_argument("--out", type=Path, help="CSV file to write; default: standard output")
    parser.add_argument("--column", help="of the texts, where it has another name than in training")
    parser.add_argument("--batch", type=int, default=64, help="examples at a time (64)")
    parser.add_argument(
        "--plugin", action="append", default=[], help="package of yours that the run may name"
    )
    given = parser.parse_args(words)
    if given.batch < 1:
        raise ConfigError(f"--batch is {given.batch}; it must be 1 or more")
    from cdep_run.results.load import load_run

    run = load_run(given.run, given.plugin)
    found = list(predict(run, given.paths, given.batch, given.column))
    table = as_csv(found, class_names(run))
    if given.out is None:
        sys.stdout.write(table.decode())
    else:
        write_atomic(given.out, table)
        print(f"{given.out}: {len(found)} predictions")
    problems = [one for one in found if one.problem]
    for one in problems:
        print(f"cdep-run: {one.name}: {one.problem}", file=sys.stderr)
    return int(bool(problems))
