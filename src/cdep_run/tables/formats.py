"""A table as Markdown, LaTeX (booktabs), CSV and HTML."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pandas as pd

from cdep_run.files import write_atomic
from cdep_run.results.text import markdown_table
from cdep_run.tables.build import Table

LATEX = {
    **{char: f"\\{char}" for char in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"λ": r"$\lambda$", "±": r"$\pm$", "−": "$-$", "×": r"$\times$", "≥": r"$\geq$"},
    **{"–": "--", "†": r"\textdagger{}", "✓": r"$\surd$"},
}

FORMULA = ("=", "+", "-", "@")
"""What a formula begins with in spreadsheets."""

STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;margin:1rem;max-width:75rem}div{overflow-x:auto}"
    "table{border-collapse:collapse;border-block:2px solid}th{border-bottom:1px solid}"
    "th,td{padding:.2rem .7rem;text-align:left;white-space:nowrap}pre{overflow-x:auto}"
)


def markdown(table: Table) -> str:
    """With notes and commands beneath."""
    body = [[f"**{text}**" if bold else text for text, bold in row] for row in table.body]
    return "\n\n".join(
        [
            f"## {one_line(table.title)}",
            markdown_table([table.head, *body]),
            "\n".join(f"- {one_line(note)}" for note in table.notes),
            *(
                ["\n".join(f"    {one_line(command)}" for command in table.commands)]
                if table.commands
                else []
            ),
        ]
    )


def latex(table: Table) -> str:
    """A `table` that needs `\\usepackage{booktabs}`; the commands stand in comments."""
    rows = [
        " & ".join(f"\\textbf{{{tex(text)}}}" if bold else tex(text) for text, bold in row)
        for row in [[(text, False) for text in table.head], *table.body]
    ]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{tex(table.title)}. {' '.join(tex(note) for note in table.notes)}}}",
            rf"\begin{{tabular}}{{{'l' * len(table.head)}}}",
            r"\toprule",
            rows[0] + r" \\",
            r"\midrule",
            *(row + r" \\" for row in rows[1:]),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            *(f"% {one_line(command)}" for command in table.commands),
        ]
    )


def tex(text: str) -> str:
    """`text` with what LaTeX would take for a command escaped; `code` in typewriter."""
    escaped = "".join(LATEX.get(char, char) for char in one_line(text))
    return re.sub(r"`([^`]*)`", r"\\texttt{\1}", escaped)


def csv(table: Table) -> str:
    """One row for each number, in full digits; no cell is a formula to a spreadsheet."""
    return harmless(table.numbers).to_csv(index=False)


def harmless(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the frame with an apostrophe before texts that a spreadsheet would compute."""

    def cell(value: object) -> object:
        starts_a_formula = isinstance(value, str) and value.lstrip().startswith(FORMULA)
        return f"'{value}" if starts_a_formula else value

    return frame.map(cell)


def one_line(text: str) -> str:
    """Return text without line breaks, which would end a comment, a heading or a cell."""
    return " ".join(text.split())


def page(table: Table) -> str:
    """A page of its own that asks the network for nothing."""
    head = "".join(f"<th>{html.escape(text)}</th>" for text in table.head)
    rows = "".join(
        "<tr>" + "".join(f"<td>{bolded(text, bold)}</td>" for text, bold in row) + "</tr>\n"
        for row in table.body
    )
    notes = "".join(f"<li>{coded(note)}</li>\n" for note in table.notes)
    commands = html.escape("\n".join(table.commands))
    title = html.escape(table.title)
    return (
        '<!doctype html>\n<html lang="en"><meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n<h1>{title}</h1>\n"
        f"<div><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table></div>\n"
        f"<ul>\n{notes}</ul>\n<pre>{commands}</pre>\n</html>"
    )


def bolded(text: str, bold: bool) -> str:
    """A cell's text as HTML."""
    return f"<b>{html.escape(text)}</b>" if bold else html.escape(text)


def coded(text: str) -> str:
    """A note as HTML."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", html.escape(text))


FORMATS = {"md": markdown, "tex": latex, "csv": csv, "html": page}
"""By the ending of the file."""


def write(table: Table, folder: Path, name: str) -> None:
    """Write the table in every format.

    Raises:
        OSError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for ending, text in FORMATS.items():
        write_atomic(folder / f"{name}.{ending}", (text(table).rstrip() + "\n").encode())
