"""What was measured, over all images: means with intervals, their ratios, a table, a figure."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cdep_run.evidence.measure import MEASURES, Found, Options, spread
from cdep_run.evidence.plots import Column, draw
from cdep_run.metrics import CONFIDENCE
from cdep_run.results.text import markdown_table

COLUMNS = ["setting", "id", "measure", "value"]
"""Of `Found.rows`, and of evidence.csv."""

ROWS = MEASURES | {"pasted_relative": "… in standard deviations"}
"""The rows of the table: what is measured, and `pasted` by the spread of the log-odds."""


def summarise(found: Found, order: list[str], options: Options) -> dict[str, dict[str, Any]]:
    """Means over images by setting and measure, each compared with the first setting's.

    An image that several runs of a setting judge, as folds share validation images, counts once,
    with the mean of what they say.

    Returns:
        `images` (how many have a value), `mean` and `interval`; and, of the images that the first
        setting has, too, `ratio` of the means and `ratio_interval`.
    """
    frame = pd.DataFrame(found.rows, columns=COLUMNS)
    wide = {
        str(measure): rows.groupby(["id", "setting"])["value"].mean().unstack("setting")
        for measure, rows in frame.groupby("measure")
    }
    if "pasted" in wide:
        wide["pasted_relative"] = wide["pasted"] / wide.pop("before").std()
    summary: dict[str, dict[str, Any]] = {setting: {} for setting in order}
    for measure in (name for name in ROWS if name in wide):
        for setting in (name for name in order if name in wide[measure]):
            own = wide[measure][setting].dropna().to_numpy()
            mean, interval = bootstrap_means(own[None], np.mean, options)
            one = {"images": len(own), "mean": mean, "interval": interval}
            if setting != order[0] and order[0] in wide[measure]:
                pair = wide[measure][[order[0], setting]].dropna().to_numpy().T
                if pair.size and pair[0].mean() != 0:
                    one["ratio"], one["ratio_interval"] = bootstrap_means(pair, ratio, options)
            summary[setting][measure] = one
    return summary


def ratio(first: NDArray[Any], second: NDArray[Any], axis: int = -1) -> NDArray[Any]:
    """Mean of the second over mean of the first."""
    with np.errstate(divide="ignore", invalid="ignore"):  # a resample of zeros alone
        return second.mean(axis) / first.mean(axis)


def bootstrap_means(
    values: NDArray[np.float64], statistic: Callable[..., Any], options: Options
) -> tuple[float, list[float] | None]:
    """A statistic of `[K, images]` and its 95 % percentile interval; None with fewer than two."""
    from scipy.stats import bootstrap

    if values.shape[1] < 2:
        return float(statistic(*values, axis=-1)) if values.size else float("nan"), None
    ends = bootstrap(
        tuple(values),
        statistic,
        paired=True,
        vectorized=True,
        n_resamples=options.resamples,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(options.seed),
    ).confidence_interval
    found = [float(ends.low), float(ends.high)]
    return float(statistic(*values, axis=-1)), found if np.isfinite(found).all() else None


def markdown(report: dict[str, Any]) -> str:
    """The means of every measure, and their ratio to the first setting's, as a Markdown table."""
    names = list(report["settings"])
    rows = [["mean over images", "images", *names]]
    ratios = [["ratio to the first", "", *names[1:]]]
    for measure, title in ROWS.items():
        cells = [report["settings"][name]["measures"].get(measure) for name in names]
        if cells[0] is None:
            continue
        shown = [number(c and c["mean"], c and c["interval"]) for c in cells]
        rows.append([title, str(cells[0]["images"]), *shown])
        if measure != "area":
            shown = [number(c and c.get("ratio"), c and c.get("ratio_interval")) for c in cells[1:]]
            ratios.append([title, str(cells[0]["images"]), *shown])
    lines = [markdown_table(rows), *(["", markdown_table(ratios)] if len(names) > 1 else [])]
    notes = [f"Left out: {ROWS[m]}: {why}." for m, why in report["left_out"].items()]
    return "\n".join([*lines, *([""] if notes else []), *notes]) + "\n"


def number(value: float | None, interval: list[float] | None) -> str:
    """As "0.85 [0.80, 0.89]"."""
    if value is None:
        return ""
    return f"{value:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def figure(found: Found, order: list[str], examples: int, file: Path) -> None:
    """Image, patch and Grad-CAM of each setting, as Figure 3 of Rieger et al. 2019."""
    names = [n for n in found.images if all((setting, n) in found.pictures for setting in order)]
    names = spread(names, examples)
    if not names:
        return
    columns = [
        Column("image", np.stack([found.images[name][0] for name in names])),
        Column("patch", np.stack([found.images[name][1] for name in names])),
    ]
    for setting in order:
        pictures = [found.pictures[setting, name] for name in names]
        title = re.sub(r", |(?<=\w)=", "\n", setting.replace("dataset.", ""))
        columns.append(Column(title, np.stack([p for p, _ in pictures]), [c for _, c in pictures]))
    draw(columns, "Grad-CAM of the true class", file)
