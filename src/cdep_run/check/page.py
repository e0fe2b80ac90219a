"""The findings of a check as a page of its own, and as text for a terminal."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence

from cdep_run.check.association import Association
from cdep_run.check.findings import LEVELS, CheckReport, Finding, Picture
from cdep_run.results.text import aligned_table

IN_TERMINAL = 15
"""So many findings of a topic are printed; the page has all, up to the next number."""

ON_PAGE = 500

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""What the page may do: show what it holds itself, run nothing, ask nobody for anything."""

STYLE = """:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0 }
th, td { padding: .25rem .75rem; border-bottom: 1px solid #8884; text-align: left;
  vertical-align: top; overflow-wrap: anywhere }
td.number { text-align: right; font-variant-numeric: tabular-nums }
.fault { color: #b00020; font-weight: 600 } .warning { color: #a15c00; font-weight: 600 }
@media (prefers-color-scheme: dark) { .fault { color: #ff8a95 } .warning { color: #ffb95c } }
figure { display: inline-block; margin: .25rem; width: 7rem; vertical-align: top }
figure img { width: 6rem } figcaption { font-size: .7rem; overflow-wrap: anywhere }"""


def as_text(report: CheckReport) -> str:
    """Counts, findings and verdict, as aligned columns."""
    parts = [f"{report.name}"]
    if report.counts:
        rows = [
            {"class": label} | {split: str(n) for split, n in counts.items()}
            for label, counts in report.counts.items()
        ]
        parts.append(aligned_table(rows))
    rows, left_out = [], 0
    for finding in _ordered(report):
        alike = [r for r in rows if (r["level"], r["topic"]) == (finding.level, finding.topic)]
        if len(alike) >= IN_TERMINAL:
            left_out += 1
            continue
        rows.append(
            {
                "level": finding.level,
                "topic": finding.topic,
                "where": finding.where,
                "what": finding.what,
            }
        )
    if rows:
        parts.append(aligned_table(rows))
    if left_out:
        parts.append(f"and {left_out} more, on the page")
    return "\n\n".join([*parts, report.verdict()])


def as_html(report: CheckReport) -> str:
    """A page of its own; all text from the data is escaped."""
    title = f"Check of {html.escape(report.name)}"
    parts = [
        f"<h1>{title}</h1><p>{html.escape(report.verdict())}</p>",
        _counts(report),
        "".join(map(_association, report.associations)),
        "".join(
            _section(level, [f for f in _ordered(report) if f.level == level]) for level in LEVELS
        ),
        "".join(
            f"<h2>{html.escape(name)}</h2>{_figures(shown)}"
            for name, shown in report.pictures.items()
        ),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head><body>{''.join(parts)}</body></html>"
    )


def _ordered(report: CheckReport) -> list[Finding]:
    """Faults first, then warnings, of these the shortcut first."""
    return sorted(
        report.findings, key=lambda f: (LEVELS.index(f.level), f.topic != "shortcut", f.topic)
    )


def _counts(report: CheckReport) -> str:
    if not report.counts:
        return ""
    splits = list(next(iter(report.counts.values())))
    rows = [
        [label, *(str(counts[split]) for split in splits)]
        for label, counts in report.counts.items()
    ]
    return f"<h2>Examples</h2>{_table(['class', *splits], rows)}"


def _association(found: Association) -> str:
    rows = [[value, *map(str, row)] for value, row in zip(found.values, found.table, strict=True)]
    heading = html.escape(f"{found.name} and the class")
    text = html.escape(f"{found.name} {found.sentence()}")
    return f"<h2>{heading}</h2><p>{text}</p>{_table([found.name, *found.classes], rows)}"


def _section(level: str, findings: Sequence[Finding]) -> str:
    if not findings:
        return ""
    rows = [
        f"<tr><td>{html.escape(f.topic)}</td><td>{html.escape(f.where)}</td>"
        f"<td>{html.escape(f.what)}{_figures(f.pictures)}</td></tr>"
        for f in findings[:ON_PAGE]
    ]
    more = len(findings) - ON_PAGE
    rest = f"<p>and {more} more</p>" if more > 0 else ""
    return (
        f'<h2 class="{level}">{level}s ({len(findings)})</h2><table>{"".join(rows)}</table>{rest}'
    )


def _table(head: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    cells = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    body = "".join(
        f"<tr><td>{html.escape(first)}</td>"
        + "".join(f'<td class="number">{html.escape(cell)}</td>' for cell in others)
        + "</tr>"
        for first, *others in rows
    )
    return f"<table><tr>{cells}</tr>{body}</table>"


def _figures(pictures: Iterable[Picture]) -> str:
    return "".join(
        f'<figure><img alt="" src="data:image/jpeg;base64,{base64.b64encode(p.data).decode()}">'
        f"<figcaption>{html.escape(p.caption)}</figcaption></figure>"
        for p in pictures
    )
