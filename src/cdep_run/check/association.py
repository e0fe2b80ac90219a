"""How closely a feature that must not matter goes with the class: the shortcut, in numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

CERTAIN = 0.001
"""From this p-value on down an association is called one."""


@dataclass(frozen=True)
class Association:
    """A feature's values against the classes.

    Attributes:
        name: of the feature.
        values: of the feature, such as "with" and "without".
        classes: names of the classes.
        table: examples by value (rows) and class (columns).
        strength: Cramér's V, sqrt(χ² / (n · (min(rows, columns) − 1))), in [0, 1].
        p_value: that independence would give a table as uneven as this.
        test: "Fisher's exact test" of two by two, else "χ² test", which is rough where fewer than
            5 examples are expected in a cell.
        alone: share of examples whose class is the most frequent one of their value: how often a
            model is right that sees this feature alone.
        majority: share of the largest class: how often one is right that sees nothing.
    """

    name: str
    values: list[str]
    classes: list[str]
    table: list[list[int]]
    strength: float
    p_value: float
    test: str
    alone: float
    majority: float

    @property
    def is_one(self) -> bool:
        """Whether the feature is hardly independent of the class."""
        return self.p_value < CERTAIN

    def sentence(self) -> str:
        """What it says, in words."""
        p = f"p = {self.p_value:.2g}" if self.p_value >= 1e-16 else "p < 1e-16"
        if not self.is_one:
            return f"no association with the class is seen ({p}, {self.test})"
        only = [
            f"{value!r} is of class {self.classes[int(np.argmax(row))]} alone"
            for value, row in zip(self.values, self.table, strict=True)
            if value != "without" and sum(row) > 0 and max(row) == sum(row)
        ]
        return (
            f"goes with the class ({p}, {self.test}; Cramér's V {self.strength:.2f}): who sees it "
            f"alone is right in {self.alone:.0%}, who sees nothing in {self.majority:.0%}"
            + "".join(f"; {said}" for said in only[:3])
        )


def associate(name: str, values: Sequence[str], labels: Sequence[str]) -> Association | None:
    """The association of a feature's values with the classes; None where either has only one.

    Args:
        name: of the feature.
        values, labels: of each example, `[N]`.
    """
    from scipy.stats import chi2_contingency, fisher_exact  # late: takes a second

    kinds, row = np.unique(np.asarray(values, dtype=str), return_inverse=True)
    classes, column = np.unique(np.asarray(labels, dtype=str), return_inverse=True)
    table = np.zeros((len(kinds), len(classes)), dtype=np.int64)
    np.add.at(table, (row, column), 1)
    if min(table.shape) < 2:
        return None
    found: Any = chi2_contingency(table, correction=False)
    two = table.shape == (2, 2)
    p_value = float(fisher_exact(table).pvalue) if two else float(found.pvalue)
    count = int(table.sum())
    return Association(
        name,
        kinds.tolist(),
        classes.tolist(),
        table.tolist(),
        float(np.sqrt(found.statistic / (count * (min(table.shape) - 1)))),
        p_value,
        "Fisher's exact test" if two else "χ² test",
        float(table.max(1).sum() / count),
        float(table.sum(0).max() / count),
    )
