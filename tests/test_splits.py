"""Divisions of a user's examples: shares, classes and groups."""

from __future__ import annotations

import numpy as np
import pytest

from cdep_run.datasets.base import DataError
from cdep_run.datasets.splits import given_splits, make_splits

SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}


def share(names: np.ndarray, split: str) -> float:
    return float((names == split).mean())


def test_every_class_has_the_same_shares_and_the_seed_decides_who() -> None:
    labels = np.repeat(["rare", "often"], [30, 970])
    names = make_splits(labels, None, SHARES, seed=1)
    for label in ("rare", "often"):
        for split, wanted in SHARES.items():
            assert share(names[labels == label], split) == pytest.approx(wanted, abs=0.001)
    assert (names == make_splits(labels, None, SHARES, seed=1)).all()
    assert (names != make_splits(labels, None, SHARES, seed=2)).any()


def test_groups_stay_whole_and_examples_without_one_are_alone() -> None:
    rng = np.random.default_rng(0)
    groups = [f"p{k}" if k < 80 else "" for k in rng.integers(0, 100, 600)]
    labels = rng.integers(0, 2, 600)
    names = make_splits(labels, groups, SHARES, seed=0)
    for group in set(groups) - {""}:
        assert len({n for n, g in zip(names, groups, strict=True) if g == group}) == 1
    for split, wanted in SHARES.items():
        assert share(names, split) == pytest.approx(wanted, abs=0.02)


@pytest.mark.parametrize("seed", range(5))
def test_one_very_large_group_leaves_the_shares_as_they_were_asked_for(seed: int) -> None:
    groups = ["big"] * 600 + [f"p{k // 4}" for k in range(400)]
    labels = np.arange(1000) % 2
    names = make_splits(labels, groups, SHARES, seed)
    assert {*names[:600]} == {"train"}
    for split, wanted in SHARES.items():
        assert share(names, split) == pytest.approx(wanted, abs=0.02)


def test_shares_that_the_groups_do_not_allow_are_said(caplog: pytest.LogCaptureFixture) -> None:
    groups = ["big"] * 900 + [str(k) for k in range(100)]
    names = make_splits(np.arange(1000) % 2, groups, SHARES, seed=0)
    assert share(names, "train") == pytest.approx(0.9, abs=0.01)
    assert "train 90.0% instead of 80.0%" in caplog.text
    assert "the largest has 900 of 1000" in caplog.text


def test_a_class_of_three_reaches_every_split_and_one_of_two_is_refused_by_name() -> None:
    labels = ["rare"] * 3 + ["often"] * 97
    assert {*make_splits(labels, None, SHARES, seed=0)[:3]} == {"train", "val", "test"}
    with pytest.raises(DataError, match=r"fewer examples than there are splits \(rare \(2\)\)"):
        make_splits(labels[1:], None, SHARES, seed=0)


def test_a_class_within_one_group_is_refused_by_name() -> None:
    labels = ["rare"] * 10 + ["often"] * 90
    groups = ["one"] * 10 + [str(k) for k in range(90)]
    with pytest.raises(DataError, match="no example of class rare, whose 10 examples are in 1 gro"):
        make_splits(labels, groups, SHARES, seed=0)


def test_shares_that_do_not_sum_to_one_are_refused() -> None:
    with pytest.raises(DataError, match="must be above 0, sum to 1"):
        make_splits([0, 1], None, {"train": 0.8, "val": 0.1}, seed=0)


def test_a_column_of_splits_is_read_with_its_synonyms_and_faults_are_named() -> None:
    said = ["Train", "dev", "test", "test_other "]
    assert given_splits(said, range(4)).tolist() == ["train", "val", "test", "test_other"]
    with pytest.raises(DataError, match=r"2 rows are in no known split \(row 7: 'x', row 9: ''"):
        given_splits(["train", "x", "val", ""], [6, 7, 8, 9])
    with pytest.raises(DataError, match="no row is in the split val; the splits named are test, t"):
        given_splits(["train", "test"], [1, 2])
