"""The report's figures for papers: SVG and PDF, colour-blind safe, with units."""

from __future__ import annotations

import textwrap
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cdep_run.files import safe_name
from cdep_run.report.collect import Cell, Report

COLOURS = {"none": "#666666", "cdep": "#0072B2", "rrr": "#D55E00", "eg": "#009E73"}
"""Okabe and Ito's; any other penalty gets `OTHER`."""
OTHER = "#CC79A7"
MARKERS = {"none": "x", "cdep": "o", "rrr": "s", "eg": "^"}
DASHES = ("-", "--", ":", "-.")
LINE = 34  # characters of a label in one line


def write_figures(report: Report, folder: Path) -> list[Path]:
    """Accuracy against λ, and time and memory, of every data set; returns the files written."""
    import matplotlib

    matplotlib.use("Agg")  # no display needed
    from matplotlib import pyplot as plt

    matplotlib.rcParams |= {"svg.fonttype": "none", "pdf.fonttype": 42, "font.size": 9}
    folder.mkdir(parents=True, exist_ok=True)
    by_set: dict[str, list[Cell]] = defaultdict(list)
    for cell in report.cells:
        by_set[cell.dataset].append(cell)
    written = []
    for dataset, cells in by_set.items():
        title = "\n".join([dataset, *report.common.get(dataset, [])])
        for name, figure in drawn(plt, title, cells):
            for ending in ("svg", "pdf"):
                written.append(folder / f"{safe_name(dataset)}_{name}.{ending}")
                figure.savefig(written[-1], bbox_inches="tight")
            plt.close(figure)
    return written


def drawn(plt: Any, title: str, cells: list[Cell]) -> Iterator[tuple[str, Any]]:
    """The figures of one data set by name."""
    if any(len(points) > 1 for points in curves(cells).values()):
        yield "lambda", lambda_figure(plt, title, cells)
    if any(cell.seconds_per_epoch for cell in cells):
        yield "cost", cost_figure(plt, title, cells)


def curves(cells: list[Cell]) -> dict[str, list[Cell]]:
    """Cells with a test accuracy by label, rising in λ, without those of no penalty."""
    found: dict[str, list[Cell]] = defaultdict(list)
    for cell in cells:
        if cell.penalty != "none" and "test/accuracy" in cell.scores:
            found[cell.label].append(cell)
    return found


def lambda_figure(plt: Any, title: str, cells: list[Cell]) -> Any:
    """Test accuracy against λ with ± one standard deviation over seeds; filled: the chosen λ."""
    figure, axis = plt.subplots(figsize=(4.2, 2.9))
    used: dict[str, int] = defaultdict(int)
    for cell in (c for c in cells if c.penalty == "none" and "test/accuracy" in c.scores):
        middle, spread, _ = cell.scores["test/accuracy"]
        axis.axhline(
            100 * middle,
            color=COLOURS["none"],
            dashes=(2, 2),
            label=textwrap.fill(cell.label, LINE),
        )
        if spread:
            band = 100 * (middle - spread), 100 * (middle + spread)
            axis.axhspan(*band, color=COLOURS["none"], alpha=0.15, lw=0)
    for label, points in curves(cells).items():
        penalty = points[0].penalty
        colour, x = COLOURS.get(penalty, OTHER), [cell.strength for cell in points]
        y = [100 * cell.scores["test/accuracy"][0] for cell in points]
        error = [100 * (cell.scores["test/accuracy"][1] or 0) for cell in points]
        axis.errorbar(
            x,
            y,
            error,
            color=colour,
            ls=DASHES[used[penalty] % len(DASHES)],
            marker=MARKERS.get(penalty, "D"),
            markerfacecolor="white",
            capsize=2,
            label=textwrap.fill(label, LINE),
        )
        for cell in (c for c in points if c.chosen):
            axis.plot(
                cell.strength,
                100 * cell.scores["test/accuracy"][0],
                color=colour,
                marker=MARKERS.get(penalty, "D"),
                zorder=5,
            )
        used[penalty] += 1
    axis.set(xscale="log", xlabel="λ (strength of the penalty)", ylabel="test accuracy (%)")
    axis.set_title(title)
    axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.2), ncols=2)
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def cost_figure(plt: Any, title: str, cells: list[Cell]) -> Any:
    """Seconds an epoch and peak memory of the chosen setting of each label."""
    shown = [cell for cell in cells if cell.chosen] or cells
    figure, axes = plt.subplots(1, 2, figsize=(6.2, 0.5 + 0.35 * len(shown)), sharey=True)
    names = [textwrap.fill(cell.label, LINE) for cell in shown]
    colours = [COLOURS.get(cell.penalty, OTHER) for cell in shown]
    axes[0].barh(names, [cell.seconds_per_epoch or 0 for cell in shown], color=colours)
    axes[0].set(xlabel="time (s / epoch)")
    axes[1].barh(names, [(cell.peak_memory_bytes or 0) / 2**20 for cell in shown], color=colours)
    axes[1].set(xlabel=f"peak memory (MiB, {shown[0].memory_kind})")
    axes[0].invert_yaxis()
    axes[0].set_title(title, loc="left")
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure
