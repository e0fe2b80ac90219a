"""Tables as text: Markdown for files, aligned columns for a terminal, safe cells for CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table whose head is the first of `rows`; no line break at its end."""
    head, *body = rows
    lines = (head, ["---"] * len(head), *body)
    escaped = ([markdown_cell(cell) for cell in line] for line in lines)
    return "\n".join("| " + " | ".join(line) + " |" for line in escaped)


def markdown_cell(text: str) -> str:
    """Return text for a cell or a list of Markdown: in one line, and none of it HTML."""
    one_line = " ".join(text.split())
    return one_line.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")


def printable(text: str) -> str:
    """Return text without line breaks and without what would command a terminal."""
    return "".join(char if char.isprintable() else " " for char in text)


def aligned_table(rows: Sequence[Mapping[str, str]], last: Sequence[str] = ()) -> str:
    """Return rows of named cells as aligned columns of text, under a line with the names.

    Args:
        rows: cells by column name; a cell that a row lacks stays empty.
        last: columns that stand at the end; the others stand as they first appear.
    """
    names = [*dict.fromkeys(name for row in rows for name in row if name not in last), *last]
    cells = [names, *([printable(row.get(name, "")) for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )


def spreadsheet_safe(cell: str) -> str:
    """Return a CSV cell that no spreadsheet takes for a formula: an apostrophe before = + - @.

    Numbers stay as they are, negative ones too.
    """
    if cell[:1] not in ("=", "+", "-", "@", "\t", "\r"):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell
