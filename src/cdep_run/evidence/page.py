"""The evidence as one sentence and as a page that needs no network."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cdep_run.evidence.measure import MEASURES

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:62rem;padding:0 1rem}"
    "table{border-collapse:collapse}th,td{padding:.3rem .8rem;border-bottom:1px solid #ccc;"
    "text-align:left}td+td,th+th{text-align:right}.scroll{overflow-x:auto}img{max-width:100%}"
    ".verdict{font-size:1.25rem;border-left:4px solid #0072b2;padding-left:1rem}"
)

ACTIONS = {
    "inserted_changed": "putting the words into a text",
    "swapped_changed": "exchanging the word for the other class's",
    "deleted_changed": "deleting the words",
    "cutout_changed": "pasting the feature",
    "painted_changed": "painting the feature over",
    "set_changed": "setting the columns to some other value",
    "exchanged_changed": "exchanging the feature with another example's",
    "removed_changed": "removing the projected part",
}
"""What is done to an example, by measure; the first that was measured makes the verdict."""

QUESTIONS = (
    "Whether other shortcuts than the one that was named are used: only the named feature is moved "
    "or explained here.",
    "Whether the model is right for the right reasons on data that differ from this split in "
    "anything else.",
    "Whether a change that no image, text or row would show in practice, such as a patch with a "
    "sharp edge, moves the model by its strangeness alone.",
)
"""What this evidence cannot answer."""


def verdict(report: Mapping[str, Any]) -> str:
    """Return what the evidence comes to in one sentence: reliance and accuracy, each setting.

    Args:
        report: as `cdep_run.evidence.write` makes it, without its verdict.
    """
    settings = report["settings"]
    measured = [m for m in ACTIONS if any(m in one["measures"] for one in settings.values())]
    if not measured:
        return "Nothing was measured that shows how far predictions depend on the feature."
    parts = []
    for name, one in settings.items():
        if (found := one["measures"].get(measured[0])) is None:
            continue
        accuracy = one["scores"].get(report["split"], {}).get("accuracy")
        right = "" if accuracy is None else f" at {100 * accuracy:.1f} % accuracy"
        parts.append(f"{100 * found['mean']:.1f} % of predictions under {name}{right}")
    action = ACTIONS[measured[0]]
    return f"{action[0].upper()}{action[1:]} changes {', '.join(parts)}."


def page(report: Mapping[str, Any], folder: Path) -> str:
    """Return the page: verdict, scores, measures with intervals, pictures, open questions.

    Args:
        report: as `cdep_run.evidence.write` makes it.
        folder: where evidence.png lies, if there is one.
    """
    names = list(report["settings"])
    parts = [
        f'<p class="verdict">{html.escape(report["verdict"])}</p>',
        "<h2>Scores</h2>",
        _table(["split, metric", *names], _score_rows(report, names)),
        f"<h2>What the feature does, on {html.escape(report['split'])}</h2>",
        "<p>Means with 95 % bootstrap intervals over examples. Log-odds are changes of the "
        "log-odds of the class to be found, else of the true class.</p>",
        _table(["measure", "examples", *names], _measure_rows(report, names)),
    ]
    picture = folder / "evidence.png"
    if picture.is_file():
        data = base64.b64encode(picture.read_bytes()).decode()
        parts += [
            "<h2>Where the nets look</h2>",
            f'<img alt="Images, the feature, and Grad-CAM of each net" '
            f'src="data:image/png;base64,{data}">',
        ]
    if report["left_out"]:
        reasons = (f"{MEASURES.get(m, m)}: {why}" for m, why in report["left_out"].items())
        parts += ["<h2>Not measured</h2>", _list(reasons)]
    parts += ["<h2>What this cannot answer</h2>", _list(QUESTIONS)]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>Evidence</title><style>{STYLE}</style></head><body><h1>Does it still use the "
        f"feature?</h1>{''.join(parts)}</body></html>\n"
    )


def _score_rows(report: Mapping[str, Any], names: list[str]) -> list[list[str]]:
    scores = {name: report["settings"][name]["scores"] for name in names}
    keys = dict.fromkeys(
        (split, metric)
        for one in scores.values()
        for split, values in one.items()
        for metric in values
        if metric == "auc" or "accuracy" in metric
    )
    return [
        [f"{split}, {metric.replace('_', ' ')}"]
        + [_percent(scores[name].get(split, {}).get(metric)) for name in names]
        for split, metric in keys
    ]


def _measure_rows(report: Mapping[str, Any], names: list[str]) -> list[list[str]]:
    rows = []
    for measure, title in MEASURES.items():
        cells = [report["settings"][name]["measures"].get(measure) for name in names]
        if any(cells):
            count = max(cell["images"] for cell in cells if cell)
            share = measure.endswith("_changed")
            rows.append([title, str(count), *(_cell(cell, share) for cell in cells)])
    return rows


def _cell(cell: Mapping[str, Any] | None, share: bool) -> str:
    if cell is None:
        return "–"
    scale, digits, unit = (100, 1, " %") if share else (1, 3, "")
    text = f"{scale * cell['mean']:.{digits}f}{unit}"
    if cell["interval"] is None:
        return text
    low, high = (f"{scale * end:.{digits}f}" for end in cell["interval"])
    return f"{text} [{low}, {high}]"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _table(head: list[str], rows: list[list[str]]) -> str:
    def line(cells: list[str], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f'<div class="scroll"><table>{line(head, "th")}{body}</table></div>'


def _list(texts: Any) -> str:
    return f"<ul>{''.join(f'<li>{html.escape(text)}</li>' for text in texts)}</ul>"
