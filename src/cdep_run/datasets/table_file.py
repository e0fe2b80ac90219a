"""Read a user's table: CSV, TSV, JSON lines or Parquet, with every fault named by file and row."""

from __future__ import annotations

import codecs
import csv
import io
import json
import logging
import re
import warnings
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cdep_run.datasets.base import DataError

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
"""What separates the fields of a file, by the end of its name."""

JSON_LINES, PARQUET = (".jsonl", ".ndjson"), (".parquet", ".pq")

MISSING = ("", "NA", "N/A", "NaN", "nan", "null", "None", "?")
"""What a cell of a column of numbers may hold where the value is not known."""

MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it starts with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Byte-order marks at the start of a file, and the encoding that each stands for."""

NAMED = 5
"""So many rows are named in an error."""


def read_table(
    path: str | Path,
    columns: Iterable[str] = (),
    encoding: str | None = None,
    delimiter: str | None = None,
    only: bool = False,
) -> pd.DataFrame:
    """The table in a file; its index holds the row numbers that messages name.

    The index counts rows as a spreadsheet does: the header of a CSV or TSV file is row 1, its first
    example row 2; in JSON lines and Parquet the first example is row 1. Empty lines are left out.
    CSV and TSV give text alone, "" where a cell is empty; JSON lines and Parquet give values as
    they are stored (`as_text` and `numbers` read either).

    Args:
        path: ends in .csv, .tsv, .tab, .jsonl, .ndjson, .parquet or .pq.
        columns: names that must be there.
        encoding: of CSV, TSV and JSON lines; None: what a byte-order mark says, else UTF-8.
        delimiter: between the fields of CSV and TSV; None: a comma for .csv, a tab for the others.
        only: leave out all columns but `columns`.

    Raises:
        DataError: the file is absent, empty, of another kind, damaged, in another encoding, or
            lacks a column; names the row and the nearest column.
    """
    path, columns = Path(path).expanduser(), list(dict.fromkeys(columns))
    kind = path.suffix.lower()
    if not path.is_file():
        raise DataError(f"{path} does not exist" if not path.exists() else f"{path} is no file")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty")
    if kind in PARQUET:
        table = _read_parquet(path)
    elif kind in JSON_LINES:
        table = _read_json_lines(path, encoding)
    elif kind in DELIMITERS:
        table = _read_fields(path, encoding, delimiter or DELIMITERS[kind])
    else:
        known = ", ".join((*DELIMITERS, *JSON_LINES, *PARQUET))
        raise DataError(f"{path}: its name ends in {kind or 'nothing'}; accepted: {known}")
    _require_columns(path, list(table), columns)
    if not len(table):
        raise DataError(f"{path} has a header and no row")
    return table[columns] if only else table


def as_text(column: pd.Series) -> pd.Series:
    """Each value as text, "" where it is missing; whole numbers without a decimal point."""
    values = [
        "" if value is None or value != value else _as_written(value) for value in column.tolist()
    ]
    import pandas as pd

    return pd.Series(values, index=column.index, name=column.name, dtype=object)


def numbers(
    column: pd.Series, decimal: str = ".", missing: Sequence[str] = MISSING
) -> tuple[NDArray[np.float64], list[int]]:
    """A column as numbers, NaN where a value is missing, and the rows that hold none.

    Args:
        column: text or numbers.
        decimal: the sign before the decimals, "." or ",".
        missing: what a cell may hold where the value is not known.

    Returns:
        float64 `[N]`, and the row numbers (index of `column`) of cells that are no number.
    """
    import pandas as pd

    if pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column):
        return column.to_numpy(dtype=np.float64, na_value=np.nan), []
    text = as_text(column).str.strip()
    empty = text.isin(missing)
    if decimal != ".":  # a point is then no number: it could be meant for thousands
        text = text.str.replace(".", "x", regex=False).str.replace(decimal, ".", regex=False)
    values = pd.to_numeric(text.where(~empty), errors="coerce").to_numpy(dtype=np.float64)
    wrong = ~np.isfinite(values) & ~empty.to_numpy()
    return np.where(np.isfinite(values), values, np.nan), column.index[wrong].tolist()


def not_numbers(path: Path, column: pd.Series, rows: Sequence[int]) -> str:
    """What to say of cells that are no number: which, where, and what may help."""
    shown = as_text(column.loc[list(rows[:NAMED])])
    cells = ", ".join(f"row {row}: {value!r}" for row, value in shown.items())
    comma = any(re.fullmatch(r"\s*[-+]?\d*,\d+\s*", value) for value in shown)
    cure = "it has decimal commas: set dataset.decimal=','" if comma else "correct them"
    return (
        f"{path}: column {column.name!r} has {len(rows)} cells that are no number ({cells}); {cure}"
    )


def _as_written(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return value if isinstance(value, str) else str(value)


def _require_columns(path: Path, there: list[str], wanted: list[str]) -> None:
    """Refuse a table without one of the `wanted` columns, and name the nearest ones."""
    problems = []
    for name in wanted:
        if name not in there:
            lower = {str(column).strip().lower(): str(column) for column in there}
            near = get_close_matches(name.lower(), list(lower), 1)
            problems.append(repr(name) + (f" (nearest: {lower[near[0]]!r})" if near else ""))
    if problems:
        raise DataError(
            f"{path} has no column {', '.join(problems)}; it has {', '.join(map(repr, there))}"
        )


def _read_parquet(path: Path) -> pd.DataFrame:
    import pandas as pd

    try:
        table = pd.read_parquet(path)
    except ImportError:
        raise DataError(f"{path}: reading Parquet needs pip install 'cdep-run[parquet]'") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is no Parquet file, or a damaged one: {_line(error)}") from error
    table.columns = [str(name) for name in table]
    table.index = pd.RangeIndex(1, len(table) + 1)
    return table


def _read_json_lines(path: Path, encoding: str | None) -> pd.DataFrame:
    import pandas as pd

    problems, records = [], {}
    for number, line in enumerate(_decoded(path, encoding).split("\n"), 1):
        if not line.strip():
            continue
        try:
            records[number] = json.loads(line)
        except ValueError as error:
            problems.append(f"row {number} is no JSON ({error})")
            continue
        if not isinstance(records[number], dict):
            problems.append(f"row {number} is {line.strip()[:40]}, no object {{column: value}}")
    if problems:
        raise DataError(f"{path}: {_first(problems)}")
    table = pd.DataFrame(list(records.values()), index=list(records), dtype=object)
    table.columns = [str(name) for name in table]
    return table


def _read_fields(path: Path, encoding: str | None, delimiter: str) -> pd.DataFrame:
    """A file of separated fields, each as text."""
    import pandas as pd

    text = _decoded(path, encoding)
    header = _header(path, text, delimiter)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # fields cut off
            table = pd.read_csv(
                io.StringIO(text),
                sep=delimiter,
                dtype=str,
                keep_default_na=False,
                index_col=False,
                skip_blank_lines=False,
            )
    except (ValueError, pd.errors.ParserWarning) as error:
        raise DataError(f"{path}: {_row_problem(text, delimiter, len(header), error)}") from error
    table.columns = header
    table.index = pd.RangeIndex(2, len(table) + 2)
    table = table[~(table == "").all(axis=1)]
    if (table.iloc[:, -1] == "").any():  # perhaps not a cell that is empty, but one that is absent
        _refuse_short_rows(path, text, delimiter, len(header))
    return table


def _header(path: Path, text: str, delimiter: str) -> list[str]:
    """The names in the first line; refuses names twice, and what looks separated otherwise."""
    names = next(csv.reader(io.StringIO(text), delimiter=delimiter), [])
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{path} has the column {', '.join(map(repr, twice))} twice")
    other = [sign for sign in ";\t,|" if sign != delimiter and sign in "".join(names)]
    if len(names) == 1 and other:
        raise DataError(
            f"{path} has one column, {names[0][:60]!r}; if its fields are separated by "
            f"{other[0]!r}, set dataset.delimiter={other[0]!r}"
        )
    return [name or f"column {number}" for number, name in enumerate(names, 1)]


def _refuse_short_rows(path: Path, text: str, delimiter: str, width: int) -> None:
    """Refuse rows, other than empty ones, that have fewer fields than the header."""
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    short = [number for number, fields in enumerate(lines, 1) if 0 < len(fields) < width]
    if short:
        rows = ", ".join(map(str, short[:NAMED]))
        raise DataError(
            f"{path}: {len(short)} rows have fewer than {width} fields (row {rows}); a text with "
            "line breaks or delimiters must stand in double quotes"
        )


def _row_problem(text: str, delimiter: str, width: int, error: BaseException) -> str:
    """Why a file of fields cannot be read: the first row that has too many, or what pandas says."""
    with io.StringIO(text, newline="") as file:
        try:
            for number, fields in enumerate(csv.reader(file, delimiter=delimiter), 1):
                if len(fields) > width:
                    return (
                        f"row {number} has {len(fields)} fields, the header {width}; a text that "
                        f"holds {delimiter!r} must stand in double quotes"
                    )
        except csv.Error as problem:
            return f"is no table of separated fields: {problem}"
    message = _line(error)
    if inside := re.search(r"EOF inside string starting at row (\d+)", message):
        return f"a double quote opened in row {int(inside[1]) + 1} is never closed"
    return f"is no table of separated fields: {message}"


def _decoded(path: Path, encoding: str | None) -> str:
    """The file's text, line ends as \\n; a byte-order mark is obeyed and left out."""
    data = path.read_bytes()
    marked = next((name for mark, name in MARKS.items() if data.startswith(mark)), None)
    chosen = encoding or marked or "utf-8"
    try:
        text = data.decode(chosen)
    except LookupError:
        raise DataError(f"dataset.encoding is {encoding!r}; Python knows no such one") from None
    except UnicodeError as error:
        start = getattr(error, "start", 0)
        row = data[:start].count(b"\n") + 1
        raise DataError(
            f"{path} is not {chosen}: line {row} has the bytes {data[start : start + 4]!r}; set "
            "dataset.encoding, to cp1252 (Windows) or latin-1 for example"
        ) from None
    if "\0" in text:
        raise DataError(f"{path} holds null bytes: it is no text in {chosen}")
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _first(problems: Sequence[str]) -> str:
    """The first few problems, and how many more there are; the log names all."""
    for problem in problems[NAMED:]:
        log.warning(problem)
    more = f"; and {len(problems) - NAMED} more, in the log" if len(problems) > NAMED else ""
    return "; ".join(problems[:NAMED]) + more
