"""Does a model of a table still use a column, and what do the other columns carry of it?

    python -m cdep_run.evidence.columns BEFORE AFTER --out columns.json

BEFORE and AFTER are folders of finished runs on the same `dataset=table`. Exchanged: how many
predictions change when the group's cells come from another row. Set: how many change for at least
one of the values that a column can be set to. Proxies: how well the group's value can be told, by
area under the ROC curve (0.5: not at all), from the model's scores and from the other columns.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cdep_run.config.trust import add_plugins_option
from cdep_run.datasets.base import Bunch
from cdep_run.datasets.table import Column
from cdep_run.errors import CdepError, ConfigError
from cdep_run.files import write_json
from cdep_run.results.load import load
from cdep_run.results.text import aligned_table

EXCHANGES = 20
"""So many random exchanges are averaged."""

QUANTILES = (0.05, 0.5, 0.95)
"""Of the training rows: what a column of numbers is set to."""


@dataclass(frozen=True)
class Errors:
    """How a model does on the rows of one value of the group's column.

    Attributes:
        value: of the column; "high" and "low" of one of numbers: above its median or not.
        count: of rows.
        accuracy: share of right answers.
        false_positive, false_negative: of two classes: share of class 0 said to be 1, and of class
            1 said to be 0; None where there is no such row.
    """

    value: str
    count: int
    accuracy: float
    false_positive: float | None
    false_negative: float | None


@dataclass(frozen=True)
class ColumnEvidence:
    """What one model makes of one group of columns; all shares in [0, 1].

    Attributes:
        group: its name.
        accuracy: on the split.
        exchanged: share of predictions that change when the group's cells are another row's.
        changed_by_setting: share that changes for at least one value that a column is set to.
        from_scores: how well the group's value is told by the model's scores.
        from_others: how well it is told by the other columns, whatever the model does.
        errors: by value of the group's first column.
    """

    group: str
    accuracy: float
    exchanged: float
    changed_by_setting: float
    from_scores: float
    from_others: float
    errors: list[Errors]


def column_evidence(
    model: nn.Module, bunch: Bunch, split: str = "test", seed: int = 0
) -> list[ColumnEvidence]:
    """The evidence for every group of a `dataset=table`.

    Args:
        model: in evaluation mode, on the CPU.
        bunch: its data, on the CPU.
        split: whose rows are judged.
        seed: of the exchanges.

    Raises:
        ConfigError: the data are no table, or name no column that must not matter.
    """
    how = bunch.preprocessing or {}
    if how.get("kind") != "table" or not bunch.group_names:
        raise ConfigError(
            f"{bunch.name} is no dataset=table with dataset.must_not_matter; images and text have "
            "their own evidence"
        )
    columns = [Column(**entry | {"values": tuple(entry["values"])}) for entry in how["columns"]]
    part, train = bunch.splits[split], bunch.splits["train"]
    groups = part.batch(torch.zeros(1, dtype=torch.int64)).groups
    assert groups is not None
    return [
        _evidence(model, name, mask, columns, part.inputs, part.labels, train.inputs, seed)
        for name, mask in zip(bunch.group_names, groups.mask[0], strict=True)
    ]


def _evidence(
    model: nn.Module,
    name: str,
    mask: Tensor,
    columns: Sequence[Column],
    inputs: Tensor,
    labels: Tensor,
    train: Tensor,
    seed: int,
) -> ColumnEvidence:
    logits = _logits(model, inputs)
    says = logits.argmax(1)
    exchanged, moved = row_changes(model, mask, columns, inputs, train, seed)
    own = [(c, at) for c, at in zip(columns, _places(columns), strict=True) if mask[at].any()]
    first, at = own[0]
    values, value_names = _values(first, inputs[:, at], train[:, at])
    train_values, _ = _values(first, train[:, at], train[:, at])
    scores = logits.softmax(1)[:, 1:].numpy()
    return ColumnEvidence(
        name,
        (says == labels).float().mean().item(),
        exchanged.mean().item(),
        moved.mean().item(),
        tells(scores, values, scores, values),
        tells(train[:, ~mask].numpy(), train_values, inputs[:, ~mask].numpy(), values),
        _errors(says.numpy(), labels.numpy(), values, value_names),
    )


def row_changes(
    model: nn.Module,
    mask: Tensor,
    columns: Sequence[Column],
    inputs: Tensor,
    train: Tensor,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Return how often each row's prediction changes with the group's columns, `[N]` each.

    First the share of `EXCHANGES` random exchanges with another row that change it; second 1 where
    some value that a column is set to changes it, else 0.

    Args:
        model: in evaluation mode.
        mask: bool `[D]`, the inputs of the group's columns.
        columns: all columns, in the order of the inputs.
        inputs, train: float `[N, D]` and `[M, D]`; the training rows say which values there are.
        seed: of the exchanges.
    """
    says = _logits(model, inputs).argmax(1)
    generator = torch.Generator().manual_seed(seed)
    exchanged = torch.zeros(len(inputs))
    for _ in range(EXCHANGES):
        other = inputs[torch.randperm(len(inputs), generator=generator)]
        after = _logits(model, torch.where(mask, other, inputs)).argmax(1)
        exchanged += (after != says).float() / EXCHANGES
    moved = torch.zeros(len(inputs), dtype=torch.bool)
    for column, at in zip(columns, _places(columns), strict=True):
        for value in _settings(column, train[:, at]) if mask[at].any() else ():
            changed = inputs.clone()
            changed[:, at] = value
            moved |= _logits(model, changed).argmax(1) != says
    return exchanged, moved.float()


@torch.no_grad()
def _logits(model: nn.Module, inputs: Tensor) -> Tensor:
    return model(inputs).float()


def _places(columns: Sequence[Column]) -> list[slice]:
    """Where each column's inputs are."""
    ends = np.cumsum([len(column.inputs()) for column in columns]).tolist()
    return [slice(end - len(c.inputs()), end) for c, end in zip(columns, ends, strict=True)]


def _settings(column: Column, train: Tensor) -> list[Tensor]:
    """The inputs `[D]` of each value that a column is set to."""
    if column.kind == "categorical":
        return list(torch.eye(len(column.values)))
    known = train[train[:, 1] == 0, 0] if column.indicator else train[:, 0]
    ends = torch.quantile(known.double()[: 1 << 24], torch.tensor(QUANTILES).double()).float()
    return [torch.tensor([end, 0.0][: train.shape[1]]) for end in ends.tolist()]


def _values(column: Column, inputs: Tensor, train: Tensor) -> tuple[NDArray[np.int64], list[str]]:
    """The number of each row's value, and the values' names."""
    if column.kind == "categorical":
        names = [value or "missing" for value in column.values]
        known = inputs.any(1)
        number = torch.where(known, inputs.argmax(1), len(names))
        return number.numpy(), [*names, "not seen in training"]
    return (inputs[:, 0] > train[:, 0].median()).long().numpy(), ["low", "high"]


def tells(
    fit: NDArray[np.float32],
    fit_values: NDArray[np.int64],
    inputs: NDArray[np.float32],
    values: NDArray[np.int64],
) -> float:
    """Area under the ROC curve of a logistic regression from inputs to values.

    Of several values, each against the rest, weighted by how frequent it is.

    Args:
        fit, fit_values: what it is fitted on, `[M, F]` and `[M]`.
        inputs, values: what it is judged by, `[N, F]` and `[N]`.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    both = np.isin(values, np.unique(fit_values))
    inputs, values = inputs[both], values[both]
    if len(np.unique(values)) < 2 or not fit.shape[1]:
        return 0.5
    scores = LogisticRegression(max_iter=1000).fit(fit, fit_values)
    probability = scores.predict_proba(inputs)
    found, weights = [], []
    for place, value in enumerate(scores.classes_):
        count = int((values == value).sum())
        if 0 < count < len(values):
            found.append(roc_auc_score(values == value, probability[:, place]))
            weights.append(count)
    return float(np.average(found, weights=weights))


def _errors(
    says: NDArray[np.int64],
    labels: NDArray[np.int64],
    values: NDArray[np.int64],
    names: Sequence[str],
) -> list[Errors]:
    """How the model does on each value's rows."""
    found = []
    two = labels.max(initial=0) <= 1
    for number, name in enumerate(names):
        own = values == number
        if not own.any():
            continue
        rates: list[float | None] = []
        for label in (0, 1):
            chosen = own & (labels == label)
            rates.append(float((says[chosen] != label).mean()) if two and chosen.any() else None)
        right = float((says[own] == labels[own]).mean())
        found.append(Errors(name, int(own.sum()), right, rates[0], rates[1]))
    return found


def as_text(results: dict[str, list[ColumnEvidence]]) -> str:
    """Two tables: what changes, and errors by value, a line for each run."""
    used, errors = [], []
    for run, found in results.items():
        for one in found:
            changes = {"exchanged": one.exchanged, "set": one.changed_by_setting}
            told = {"told by scores": one.from_scores, "told by others": one.from_others}
            used.append(
                {"run": run, "group": one.group, "accuracy": f"{one.accuracy:.1%}"}
                | {key: f"{value:.2%}" for key, value in changes.items()}
                | {key: f"{value:.3f}" for key, value in told.items()}
            )
            errors += [
                {"run": run, one.group: e.value, "rows": str(e.count),
                 "accuracy": f"{e.accuracy:.1%}", "false positives": _percent(e.false_positive),
                 "false negatives": _percent(e.false_negative)}
                for e in one.errors
            ]  # fmt: skip
    return f"{aligned_table(used)}\n\n{aligned_table(errors)}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", help="folders of finished runs")
    parser.add_argument("--split", default="test", help="whose rows")
    parser.add_argument("--out", type=Path, help="write all of it as JSON, too")
    add_plugins_option(parser)
    given = parser.parse_args(arguments)
    try:
        results = {str(run): column_evidence(*load(run), given.split) for run in given.runs}
    except CdepError as error:
        print(f"cdep_run.evidence.columns: error: {error}", file=sys.stderr)
        return 1
    print(as_text(results))
    if given.out:
        write_json(given.out, {run: [asdict(e) for e in found] for run, found in results.items()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
