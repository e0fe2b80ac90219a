"""Tables of users: what is read, and what is refused, with file, row and cure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cdep_run.datasets.base import DataError
from cdep_run.datasets.table_file import as_text, not_numbers, numbers, read_table

ROWS = [("a", "1"), ("b, c", "2"), ('say "x"\nand go', "")]


def fields(table: pd.DataFrame) -> list[tuple[str, ...]]:
    return list(zip(*(as_text(table[name]) for name in table), strict=True))


@pytest.mark.parametrize(
    ("name", "encoding", "asked"),
    [("t.csv", "utf-8", None), ("t.csv", "utf-8-sig", None), ("t.csv", "utf-16", None),
     ("t.csv", "cp1252", "cp1252"), ("t.tsv", "utf-8", None)],
)  # fmt: skip
def test_a_text_file_is_read_whatever_its_encoding_quotes_and_line_breaks(
    tmp_path: Path, name: str, encoding: str, asked: str | None
) -> None:
    rows = [*ROWS, ("Größe", "3")]
    table = pd.DataFrame(rows, columns=["text", "label"])
    table.to_csv(
        tmp_path / name,
        index=False,
        encoding=encoding,
        sep="\t" if name.endswith("tsv") else ",",
        lineterminator="\r\n",
    )
    read = read_table(tmp_path / name, ["text", "label"], encoding=asked)
    assert fields(read) == rows
    assert read.index.tolist() == [2, 3, 4, 5]


def test_json_lines_and_parquet_hold_the_same_as_csv(tmp_path: Path) -> None:
    table = pd.DataFrame({"text": ["a", "b\nc"], "label": [1, 0], "share": [0.5, None]})
    table.to_json(tmp_path / "t.jsonl", orient="records", lines=True)
    table.to_parquet(tmp_path / "t.parquet")
    table.to_csv(tmp_path / "t.csv", index=False)
    read = [read_table(tmp_path / f"t.{end}") for end in ("jsonl", "parquet", "csv")]
    assert all(fields(other) == fields(read[0]) for other in read)
    assert as_text(read[1]["label"]).tolist() == ["1", "0"]
    assert all(np.isnan(numbers(t["share"])[0]).tolist() == [False, True] for t in read)


def test_only_the_columns_asked_for_are_kept_and_empty_lines_are_no_rows(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1,2\n\n3,4\n\n")
    read = read_table(tmp_path / "t.csv", ["b"], only=True)
    assert (list(read), read["b"].tolist(), read.index.tolist()) == (["b"], ["2", "4"], [2, 4])


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.csv", b"", r"t\.csv is empty"),
        ("t.csv", b"text,label\n", "has a header and no row"),
        ("t.csv", b"Text,Lable\na,b\n", r"no column 'text' \(nearest: 'Text'\), 'label' \(nearest"),
        ("t.csv", b"text,label,text\na,b,c\n", "has the column 'text' twice"),
        ("t.csv", b"text;label\na;b\n", r"one column, .*set dataset.delimiter=';'"),
        ("t.csv", b"text,label\na,b\nc\n", r"1 rows have fewer than 2 fields \(row 3\)"),
        ("t.csv", b"text,label\na,b\nc,d,e\n", "row 3 has 3 fields, the header 2"),
        ("t.csv", b'text,label\n"a,b\nc,d\n', "a double quote opened in row 2 is never closed"),
        ("t.csv", b"text,label\na,b\n\xfcber,d\n", r"not utf-8: line 3 .*dataset.encoding"),
        ("t.csv", b"text,label\na\0,b\n", "null bytes"),
        ("t.jsonl", b'{"text": 1}\n{"text": \n[1]\n', r"row 2 is no JSON .*; row 3 is \[1\], no"),
        ("t.parquet", b"PAR1nonsense", "is no Parquet file, or a damaged one"),
        ("t.xlsx", b"PK", r"its name ends in \.xlsx; accepted: \.csv"),
    ],
)
def test_a_faulty_file_is_refused_by_row_with_a_cure(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=words):
        read_table(tmp_path / name, ["text", "label"])


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no\.csv does not exist"):
        read_table(tmp_path / "no.csv")


def test_decimal_commas_are_named_and_read_once_that_is_asked_for() -> None:
    column = pd.Series(["1,5", "2", "NA", "-3,25"], index=[2, 3, 4, 5], name="width")
    _, rows = numbers(column)
    assert rows == [2, 5]
    assert "column 'width' has 2 cells" in (said := not_numbers(Path("t.csv"), column, rows))
    assert "row 2: '1,5'" in said and "set dataset.decimal=','" in said
    values, rows = numbers(column, decimal=",")
    assert rows == []
    np.testing.assert_array_equal(values, [1.5, 2, np.nan, -3.25])
    assert numbers(pd.Series(["1.5"]), decimal=",")[1] == [0]
