"""Divide examples into train, val and test: as a column says, or made from a seed."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cdep_run.datasets.base import DataError
from cdep_run.datasets.table_file import as_text

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

Names = NDArray[np.str_]

NOTICEABLE = 0.02
"""A split whose share differs by more than this from the wanted one is said to."""

NAMES = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
         "dev": "val", "test": "test", "testing": "test"}  # fmt: skip
"""What a column may call the splits, in lower case; any other name that starts with test stays."""


def class_names(labels: Iterable[str], positive: str | None, where: str) -> list[str]:
    """The classes in the order of their numbers: numbers first, then words; the positive one last.

    Args:
        labels: those that there are.
        positive: of two classes the one to be found; None: they are on a par.
        where: what to call the data in an error.

    Raises:
        DataError: there are not two or more classes, or none of two is called so.
    """
    names = sorted(set(labels), key=_number_first)
    if len(names) < 2:
        raise DataError(
            f"{where} has only the class {names[0]!r}; a classifier needs two or more" if names
            else f"{where} has no example that can be used"
        )  # fmt: skip
    if positive is None:
        return names
    if len(names) > 2 or positive not in names:
        raise DataError(
            f"dataset.positive is {positive!r}; the classes are {', '.join(names)}, and there must "
            "be two of them"
        )
    return sorted(names, key=lambda name: name == positive)


def _number_first(name: str) -> tuple[bool, float, str]:
    try:
        return False, float(name), name
    except ValueError:
        return True, 0.0, name


def divided_rows(
    frame: pd.DataFrame,
    labels: Sequence[str],
    columns: Mapping[str, str | None],
    shares: Mapping[str, float],
    seed: int,
) -> Names:
    """The split of each row of a table: as a column says, or made; see `make_splits`.

    Args:
        frame: its index holds the row numbers.
        labels: the class of each row.
        columns: the names of the columns split and group, None where there is none.
        shares: of the splits that are made.
        seed: of the division.

    Raises:
        DataError: a split is missing or has an unknown name, or the classes cannot be divided.
    """
    if (split := columns.get("split")) is not None:
        names = given_splits(as_text(frame[split]).tolist(), frame.index.tolist())
        if absent := sorted({*labels} - {*np.array(labels)[names == "train"]}):
            raise DataError(f"the split train has no row of class {', '.join(absent)}")
        return names
    group = columns.get("group")
    groups = None if group is None else as_text(frame[group]).tolist()
    return make_splits(np.array(labels), groups, shares, seed)


def used_rows(split_of: Names, train_size: int | None, seed: int) -> NDArray[np.bool_]:
    """Which rows are used: all, or at most so many training rows, drawn at random."""
    chosen = np.ones(len(split_of), dtype=bool)
    if train_size is not None:
        train = np.random.default_rng(seed).permutation(np.flatnonzero(split_of == "train"))
        chosen[train[max(train_size, 1) :]] = False
    return chosen


def given_splits(column: Sequence[str], rows: Sequence[Any]) -> Names:
    """The split of each example as a column gives it, `[N]`.

    Args:
        column: train, val, test or another name that starts with test; some synonyms are known.
        rows: what to call each example in an error; of a number, row …

    Raises:
        DataError: another name, or a split train or val that has no example.
    """
    lower = [value.strip().lower() for value in column]
    names = [name if name.startswith("test_") else NAMES.get(name, "") for name in lower]
    wrong = [
        f"{f'row {row}' if isinstance(row, int) else row}: {value!r}"
        for row, value, name in zip(rows, column, names, strict=True)
        if not name
    ]
    if wrong:
        raise DataError(
            f"{len(wrong)} rows are in no known split ({', '.join(wrong[:5])}); accepted: train, "
            "val, test, or a further test split's name test_…"
        )
    absent = [name for name in ("train", "val") if name not in names]
    if absent:
        raise DataError(
            f"no row is in the split {' or '.join(absent)}; the splits named are "
            f"{', '.join(sorted(set(names)))}: early stopping and λ need val"
        )
    return np.array(names)


def make_splits(
    labels: Sequence[Any] | NDArray[Any],
    groups: Sequence[Any] | NDArray[Any] | None,
    shares: Mapping[str, float],
    seed: int,
) -> Names:
    """Divide examples at random so that each class has the same shares in every split.

    Examples of one group (such as the pictures of one patient) stay together: groups are taken
    largest first, and go to the split that misses most of what they hold among those that have
    room for them; the examples without others of their group come last and make up for what the
    groups left uneven. Shares that the groups do not allow are logged.

    Args:
        labels: the class, or any stratum, of each example, `[N]`.
        groups: what examples must agree in to stay together, `[N]`; "" and None: alone. None: all
            examples are alone.
        shares: of the splits by name, such as {train: 0.8, val: 0.1, test: 0.1}; they sum to 1.
        seed: of the division.

    Returns:
        The name of each example's split, `[N]`.

    Raises:
        DataError: shares that do not sum to 1, or a class that a split must do without.
    """
    names, wanted = list(shares), np.array(list(shares.values()), dtype=float)
    if abs(wanted.sum() - 1) > 1e-6 or (wanted <= 0).any() or "train" not in names:
        raise DataError(
            f"the shares are {dict(shares)}; they must be above 0, sum to 1 and name train"
        )
    classes, strata = np.unique(np.asarray(labels), return_inverse=True)
    counts = np.bincount(strata, minlength=len(classes))
    if (rare := counts < len(names)).any():
        said = ", ".join(f"{classes[k]} ({counts[k]})" for k in np.flatnonzero(rare)[:10])
        raise DataError(
            f"{rare.sum()} classes have fewer examples than there are splits ({said}); give them "
            "more, leave them out, or give the splits in a column"
        )
    number = _numbered(groups, len(strata))
    parts = _divide(strata, number, wanted, np.random.default_rng(seed))
    _check_classes(names, classes, strata, parts, number)
    _say_shares(names, wanted, parts, number)
    return np.array(names)[parts]


def _numbered(groups: Sequence[Any] | NDArray[Any] | None, count: int) -> NDArray[np.int64]:
    """A number for each example's group; those without a group have one of their own."""
    if groups is None:
        return np.arange(count)
    first: dict[Any, int] = {}
    return np.array(
        [place if group in ("", None) else first.setdefault(group, place)
         for place, group in enumerate(groups)], dtype=np.int64
    )  # fmt: skip


def _divide(
    strata: NDArray[np.int64],
    groups: NDArray[np.int64],
    shares: NDArray[np.float64],
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """The number of each example's part `[N]`."""
    members, of = np.unique(groups, return_inverse=True)
    sizes = np.bincount(of)
    content = np.zeros((len(members), strata.max() + 1))
    np.add.at(content, (of, strata), 1)
    total = content.sum(0)
    missing = np.outer(shares, total)  # [part, stratum]: examples that a part still wants
    chosen = np.full(len(members), -1)
    together = np.flatnonzero(sizes > 1)
    together = together[np.lexsort((rng.random(len(together)), -sizes[together]))]
    for group in together:
        need = (missing / total * content[group]).sum(1) / shares
        room = missing.sum(1) >= sizes[group]
        need = np.where(room, need, -np.inf) if room.any() else missing.sum(1)
        part = int(rng.choice(np.flatnonzero(need >= need.max() - 1e-9)))
        chosen[group] = part
        missing[part] -= content[group]
    for stratum in range(len(total)):
        alone = rng.permutation(np.flatnonzero((sizes == 1) & (content[:, stratum] > 0)))
        quota = _quota(missing[:, stratum], len(alone), total[stratum] >= len(shares))
        chosen[alone] = np.repeat(np.arange(len(shares)), quota)
    return chosen[of]


def _quota(missing: NDArray[np.float64], count: int, each: bool) -> NDArray[np.int64]:
    """How many of `count` single examples each part gets: as it misses them, largest rest first.

    `each`: parts that still miss some get one or more, as far as they go.
    """
    wanted = missing.clip(0)
    if not wanted.sum():
        wanted = np.ones(len(missing))
    exact = wanted / wanted.sum() * count
    quota = np.floor(exact).astype(np.int64)
    order = np.argsort(-(exact - quota), kind="stable")
    quota[order[: count - quota.sum()]] += 1
    for part in np.flatnonzero((quota == 0) & (missing > 0)):
        if each and quota.max() > 1:
            quota[quota.argmax()] -= 1
            quota[part] = 1
    return quota


def _check_classes(
    names: Sequence[str],
    classes: NDArray[Any],
    strata: NDArray[np.int64],
    parts: NDArray[np.int64],
    groups: NDArray[np.int64],
) -> None:
    """Refuse a division in which a split has no example of a class."""
    there = np.zeros((len(names), len(classes)), dtype=bool)
    there[parts, strata] = True
    if not there.all():
        part, stratum = np.argwhere(~there)[0]
        of_class = groups[strata == stratum]
        raise DataError(
            f"the split {names[part]} would have no example of class {classes[stratum]}, whose "
            f"{len(of_class)} examples are in {len(set(of_class.tolist()))} groups; choose other "
            "shares or another seed, or give the splits in a column"
        )


def _say_shares(
    names: Sequence[str],
    wanted: NDArray[np.float64],
    parts: NDArray[np.int64],
    groups: NDArray[np.int64],
) -> None:
    """Log the shares where the groups did not allow the wanted ones."""
    got = np.bincount(parts, minlength=len(names)) / len(parts)
    if (np.abs(got - wanted) > NOTICEABLE).any():
        largest = np.unique(groups, return_counts=True)[1].max()
        said = ", ".join(
            f"{n} {g:.1%} instead of {w:.1%}" for n, g, w in zip(names, got, wanted, strict=True)
        )
        log.warning(
            "the splits hold %s of the examples: groups stay whole, and the largest has %d of %d",
            said, largest, len(parts),
        )  # fmt: skip
