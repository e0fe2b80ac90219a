"""Check text of one's own: rows, copies, lengths, and words that give the class away."""

from __future__ import annotations

from typing import Any

import numpy as np

from cdep_run.check.association import associate
from cdep_run.check.findings import CheckReport, add_counts, add_duplicates, same
from cdep_run.datasets.base import DataError
from cdep_run.datasets.spans import TextGroup, text_groups
from cdep_run.datasets.splits import class_names, divided_rows
from cdep_run.datasets.text import UserText, read_user_text


def inspect(node: dict[str, Any]) -> CheckReport:
    """Look at all rows and groups of a `dataset=text`.

    Args:
        node: the settings of the data set.

    Raises:
        DataError: the table cannot be read at all, or a group is described wrongly.
    """
    groups = text_groups(node["must_not_matter"])
    keys = ("table", "columns", "empty", "encoding", "delimiter")
    found = read_user_text(**{key: node[key] for key in keys}, groups=groups)
    report = CheckReport(node["name"])
    report.add_faults("rows", found.faults)
    try:
        classes = class_names(found.labels, node["positive"], found.path.name)
        options = node["columns"], node["shares"], node["seed"]
        splits = divided_rows(found.frame, found.labels, *options).tolist()
    except DataError as error:
        report.add("fault", "classes and splits", found.path.name, str(error))
        classes, splits = sorted(set(found.labels)), ["train"] * len(found.labels)
    add_counts(report, found.labels, splits, classes)
    names = [f"row {row}" for row in found.frame.index]
    alike = same(" ".join(text.lower().split()) for text in found.texts)
    add_duplicates(report, alike, names, splits, found.labels)
    _lengths(report, found, node["max_length"])
    for number, group in enumerate(groups):
        _group(report, found, number, group, splits)
    return report


def _lengths(report: CheckReport, found: UserText, max_length: int) -> None:
    """How long the texts are, in words parted by blanks."""
    lengths = np.array([len(text.split()) for text in found.texts])
    report.add(
        "note", "lengths", found.path.name,
        f"texts have {lengths.min()} to {lengths.max()} words, half of them {np.median(lengths):g} "
        "or fewer",
    )  # fmt: skip
    if long := int((lengths > max_length).sum()):
        report.add(
            "note", "lengths", f"row {found.frame.index[lengths.argmax()]}",
            f"{long} texts have more words than dataset.max_length={max_length}, this one "
            f"{lengths.max()}: the model reads their beginning",
        )  # fmt: skip


def _group(
    report: CheckReport, found: UserText, number: int, group: TextGroup, splits: list[str]
) -> None:
    """Where a group stands, and whether it goes with the class: the shortcut itself."""
    places = [of_groups[number] for of_groups in found.spans]
    there = ["with" if spans else "without" for spans in places]
    trained = [i for i, split in enumerate(splits) if split == "train"]
    seen = {
        " ".join(found.texts[i][start:end].lower().split())
        for i in trained
        for start, end in places[i]
    }
    absent = [p for p in group.phrases if " ".join(p.lower().split()) not in seen]
    if not seen or absent:
        what = f"{', '.join(absent)} of it" if absent and seen else "it"
        report.add(
            "warning", "words", group.name,
            f"no training text holds {what}: the penalty cannot work there",
        )  # fmt: skip
    result = associate(group.name, there, found.labels)
    if result is not None:
        report.associations.append(result)
        level = "warning" if result.is_one else "note"
        report.add(level, "shortcut", group.name, result.sentence())
