"""Finding one class: each number against one computed another way, and what a run keeps."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import expit

from cdep_run.metrics import (
    DETECTION,
    Predictions,
    best_threshold,
    bootstrap_interval,
    detection,
    judge,
    subset_scores,
)
from running import run


def counts(labels: np.ndarray, says: np.ndarray) -> tuple[int, int, int, int]:
    """True and false positives, true and false negatives."""
    pairs = list(zip(labels.tolist(), says.tolist(), strict=True))
    return tuple(pairs.count(p) for p in ((1, True), (0, True), (0, False), (1, False)))


def f1(labels: np.ndarray, says: np.ndarray) -> float:
    tp, fp, _, fn = counts(labels, says)
    return 2 * tp / (2 * tp + fp + fn) if tp else 0.0


def drawn(count: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities that overlap, with ties."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(count) % 3 == 0).astype(int)
    return labels, expit(rng.normal(labels, 1).round(1))


def test_detection_agrees_with_counting() -> None:
    labels, p = drawn()
    found = dict(zip(DETECTION, detection(labels, p, 0.55), strict=True))
    pairs = [(a > b) + 0.5 * (a == b) for a in p[labels == 1] for b in p[labels == 0]]
    assert found["auc"] == pytest.approx(np.mean(pairs))
    assert found["best_f1"] == max(f1(labels, p >= t / 10) for t in range(1, 11))
    tp, fp, tn, fn = counts(labels, p >= 0.55)
    assert found["f1_at_threshold"] == pytest.approx(2 * tp / (2 * tp + fp + fn))
    assert found["sensitivity"] == tp / (tp + fn) and found["specificity"] == tn / (tn + fp)
    precision = recall = area = 0.0
    for t in sorted(set(p), reverse=True):
        tp, fp, _, fn = counts(labels, p >= t)
        precision, before, recall = tp / (tp + fp), recall, tp / (tp + fn)
        area += (recall - before) * precision
    assert found["average_precision"] == pytest.approx(area)


def test_each_example_may_have_its_own_threshold() -> None:
    labels, p = drawn()
    thresholds = np.where(np.arange(len(p)) < 30, 0.3, 0.7)
    found = detection(labels, p, thresholds)[DETECTION.index("f1_at_threshold")]
    assert found == pytest.approx(f1(labels, p >= thresholds))


def test_the_chosen_threshold_is_the_best_of_all() -> None:
    labels, p = drawn()
    best = max(sorted(set(p)), key=lambda t: f1(labels, p >= t))
    assert best_threshold(labels, p) == best


def test_an_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    def covers(seed: int) -> bool:
        rng = np.random.default_rng(seed)
        labels = np.repeat([0, 1], 40)
        values = rng.normal(labels, 1)
        low, high = bootstrap_interval(
            labels, lambda i: np.array([values[i][labels[i] == 1].mean()]), 200, seed
        )
        return bool(low[0] < 1 < high[0])

    assert 0.85 <= np.mean([covers(seed) for seed in range(60)]) <= 1


def test_resamples_keep_the_share_of_each_class_and_repeat_themselves() -> None:
    labels, p = drawn()

    def mean_label(index: np.ndarray) -> np.ndarray:
        return np.array([labels[index].mean(), p[index].mean()])

    ends = [bootstrap_interval(labels, mean_label, 50, seed=1) for _ in range(2)]
    np.testing.assert_array_equal(ends[0], ends[1])
    (low, high) = ends[0]
    assert (low[0], high[0]) == pytest.approx((1 / 3, 1 / 3))
    assert low[1] < p.mean() < high[1]


def test_the_threshold_comes_from_the_split_named_and_serves_all() -> None:
    labels, p = drawn()
    log_odds = np.log(p / (1 - p))
    ids = [str(i) for i in range(len(p))]
    everything = Predictions(labels, log_odds, ids)
    benign = Predictions(labels[labels == 0], log_odds[labels == 0], ids[:40])
    found = judge({"val": everything, "test": everything, "test_b": benign}, "val", 20, 0)
    assert found["threshold"] == {"value": best_threshold(labels, p), "chosen_on": "val"}
    assert found["metrics"]["test"]["f1_at_threshold"] == found["metrics"]["val"]["f1_at_threshold"]
    assert found["metrics"].keys() == {"val", "test"}  # no AUC without malignant examples
    low, high = found["intervals"]["test"]["auc"]
    assert low < found["metrics"]["test"]["auc"] < high and found["intervals"].keys() == {"test"}
    assert not judge({"val": everything, "test": everything}, "val", 0, 0)["intervals"]


def test_a_run_keeps_its_predictions_where_a_class_is_to_be_found(tmp_path: Path) -> None:
    result = run(tmp_path, "dataset=tiny_spots", "training.resamples=20")
    with (tmp_path / "predictions.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    assert [row["id"] for row in rows[:2]] == ["test_0_0", "test_0_1"]
    labels = np.array([int(row["label"]) for row in rows])
    p = expit([float(row["log_odds"]) for row in rows])
    again = detection(labels, p, result["threshold"]["value"])
    stored = result["metrics"]["test"]
    np.testing.assert_array_equal(again, [stored[name] for name in DETECTION])
    assert result["intervals"]["test"]["auc"][0] <= stored["auc"]
    assert result["intervals"].keys() == {"test", "test_patch_free"}
    assert (stored["accuracy"], "average_precision" in result["history"][-1]) == (
        np.mean((p > 0.5) == labels),
        False,
    )


def test_the_worst_group_is_the_class_with_or_without_the_feature_that_is_known_least() -> None:
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1])
    present = torch.tensor([True, True, False, False, False, False, False])
    right = torch.tensor([True, True, True, False, True, True, False])
    says = torch.where(right, labels, 1 - labels)
    logits = torch.nn.functional.one_hot(says, 2).float()
    found = subset_scores(logits, labels, present)
    assert found == {
        "accuracy_with": 1.0,
        "accuracy_without": pytest.approx(3 / 5),
        "worst_group_accuracy": 0.5,  # class 0 without it; class 1 with it has no example
    }
    nothing = subset_scores(logits, labels, torch.zeros(7, dtype=torch.bool))
    assert nothing["accuracy_with"] is None
