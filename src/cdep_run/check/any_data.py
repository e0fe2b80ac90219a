"""Check a data set of any other kind by what it gives to training: its splits."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from cdep_run.check.findings import CheckReport, add_counts, add_duplicates, same
from cdep_run.datasets.base import Bunch
from cdep_run.training.build import build


def inspect(node: dict[str, Any]) -> CheckReport:
    """Build the data set, which refuses what it cannot use, and look at its splits.

    Args:
        node: the settings of the data set.

    Raises:
        CdepError: the data set refuses the data.
    """
    return inspect_bunch(node["name"], build(node))


def inspect_bunch(name: str, bunch: Bunch) -> CheckReport:
    """Class counts, copies across splits, and inputs that never vary, of any data set."""
    report = CheckReport(name)
    classes = bunch.classes or [str(k) for k in range(bunch.num_classes)]
    labels, splits, names, keys = [], [], [], []
    for split_name, split in bunch.splits.items():
        if split_name.startswith(("val_", "test_")):
            continue  # made from the same examples
        split.check()
        own = split.ids or [f"{split_name} {k}" for k in range(len(split))]
        labels += [classes[k] for k in split.labels.tolist()]
        splits += [split_name] * len(split)
        names += list(own)
        if split.inputs.shape[1:].numel():
            keys += [hashlib.sha256(row.numpy().tobytes()).digest() for row in split.inputs]
            if split_name == "train":
                _constant(report, split.inputs)
    add_counts(report, labels, splits, classes)
    if len(keys) == len(labels):
        add_duplicates(report, same(keys), names, splits, labels)
    return report


def _constant(report: CheckReport, inputs: torch.Tensor) -> None:
    """Note inputs that are the same in all training examples."""
    same_everywhere = (inputs == inputs[:1]).all(0)
    if count := int(same_everywhere.sum()):
        report.add(
            "note",
            "constant inputs",
            "train",
            f"{count} of {same_everywhere.numel()} inputs never vary",
        )
