"""How well a classifier does on one split: scores of any task, and those of finding one class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Values = NDArray[np.float64]

THRESHOLDS = np.linspace(0.1, 1.0, 10)
"""Of the probability, over which the paper takes the best F1 (Rieger et al. 2019, Table 1)."""

DETECTION = ("auc", "average_precision", "best_f1", "f1_at_threshold", "sensitivity", "specificity")
"""The names of what `detection` returns, in its order."""

CONFIDENCE = 0.95

SCORES = ("loss", "accuracy", "auc", "f1", "mean_logit")
"""The names of what `scores` returns, in its order."""

SUBSET_SCORES = ("accuracy_with", "accuracy_without", "worst_group_accuracy")
"""The names of what `subset_scores` returns, in its order."""

LOWER_IS_BETTER = ("/loss", "/penalty")
"""How the names of metrics end of which less is better; of all others more is."""


def scores(
    logits: Tensor, labels: Tensor, class_weights: Tensor | None = None
) -> dict[str, float | None]:
    """Judge logits `[N, C]` by labels int64 `[N]`.

    Returns:
        loss: mean cross-entropy in nats, weighted by class if `class_weights` `[C]` are given.
        accuracy: share of right answers in [0, 1]. auc: area under the ROC curve, mean over classes
        of one against the rest; of class 1 where C = 2; None where a class has no example. f1: mean
        over classes; a class never predicted counts 0. mean_logit: mean over examples and classes,
        which the pair form of CDEP can drive up.
    """
    from sklearn.metrics import f1_score  # imported late: it takes a second

    weights = None if class_weights is None else class_weights.double()
    guess = logits.argmax(1)
    return {
        "loss": F.cross_entropy(logits.double(), labels, weights).item(),
        "accuracy": (guess == labels).double().mean().item(),
        "auc": _auc(logits, labels),
        "f1": float(f1_score(labels, guess, average="macro", zero_division=0)),
        "mean_logit": logits.double().mean().item(),
    }


def subset_scores(logits: Tensor, labels: Tensor, present: Tensor) -> dict[str, float | None]:
    """Accuracy with and without a feature that must not matter, and the worst of any subset.

    Source of worst-group accuracy: Sagawa et al. 2020 (arXiv:1911.08731); a subset is a class with
    or without the feature. Subsets without an example do not count.

    Args:
        logits: `[N, C]`.
        labels: int64 `[N]`.
        present: bool `[N]`, whether an example shows the feature.

    Returns:
        accuracy_with, accuracy_without (None where there is no such example) and
        worst_group_accuracy, each in [0, 1].
    """
    right = (logits.argmax(1) == labels).double()
    present = present.to(labels.device)

    def mean(chosen: Tensor) -> float | None:
        return right[chosen].mean().item() if chosen.any() else None

    each = [mean((labels == label) & (present == there))
            for label in labels.unique() for there in (False, True)]  # fmt: skip
    worst = min(value for value in each if value is not None)
    return dict(zip(SUBSET_SCORES, (mean(present), mean(~present), worst), strict=True))


def _auc(logits: Tensor, labels: Tensor) -> float | None:
    from sklearn.metrics import roc_auc_score

    classes = logits.shape[1]
    if len(torch.unique(labels)) < classes:
        return None
    probability = F.softmax(logits.double(), 1).numpy()
    if classes == 2:
        return float(roc_auc_score(labels, probability[:, 1]))
    return float(roc_auc_score(labels, probability, multi_class="ovr", average="macro"))


# --- Finding one class among two -----------------------------------------------------------------


@dataclass(frozen=True)
class Predictions:
    """What a model says of N examples of a task whose class 1 is to be found.

    Attributes:
        labels: int `[N]`, 0 or 1.
        log_odds: float `[N]`, logit of class 1 minus logit of class 0.
        ids: names of the examples, `[N]`.
    """

    labels: NDArray[np.int64]
    log_odds: Values
    ids: list[str]

    @property
    def probability(self) -> Values:
        """Of class 1, `[N]`."""
        from scipy.special import expit

        return expit(self.log_odds)


def best_threshold(labels: NDArray[np.int64], probability: Values) -> float:
    """The probability from which on to say "class 1" for the highest F1; the lowest of several."""
    from sklearn.metrics import precision_recall_curve

    precision, recall, thresholds = precision_recall_curve(labels, probability)
    f1 = 2 * precision * recall / np.maximum(precision + recall, np.finfo(float).tiny)
    return float(thresholds[f1[:-1].argmax()])


def detection(labels: NDArray[np.int64], probability: Values, threshold: float | Values) -> Values:
    """How well class 1 is found, by the names in `DETECTION`.

    auc: area under the ROC curve. average_precision: area under the precision-recall curve, as
    scikit-learn sums it. best_f1: F1 of class 1, best over `THRESHOLDS` on these very labels, as
    the paper reports it: chosen on the split itself. f1_at_threshold, sensitivity, specificity: at
    `threshold`.

    Args:
        labels: int `[N]`, 0 or 1, both there.
        probability: of class 1, `[N]`.
        threshold: from which on class 1 is said; one, or one for each example.

    Returns:
        `[6]`, each in [0, 1].
    """
    from sklearn.metrics import (
        average_precision_score,
        precision_recall_fscore_support,
        roc_auc_score,
    )

    # One column for each threshold of the paper, for the chosen one, and for its "class 0":
    # scikit-learn judges them all in one call, which a bootstrap needs.
    tried, says = probability[:, None] >= THRESHOLDS, probability >= threshold
    guesses = np.column_stack([tried, says, ~says])
    truths = np.column_stack([np.repeat(labels[:, None], len(THRESHOLDS) + 1, 1), 1 - labels])
    _, recall, f1, _ = precision_recall_fscore_support(
        truths, guesses, average=None, zero_division=0
    )
    return np.array(
        [
            roc_auc_score(labels, probability),
            average_precision_score(labels, probability),
            f1[:-2].max(),
            f1[-2],
            recall[-2],
            recall[-1],
        ]
    )


def bootstrap_interval(
    labels: NDArray[np.int64],
    statistic: Callable[[NDArray[np.int64]], Values],
    resamples: int,
    seed: int,
) -> tuple[Values, Values]:
    """95 % percentile bootstrap interval; examples of class 0 and of class 1 are drawn apart.

    So no resample lacks a class, and the share of class 1 stays as it is.

    Args:
        labels: int `[N]`, 0 or 1, each twice or more.
        statistic: from the index of a resample, int `[N]`, to `[K]` values.
        resamples: how many.
        seed: of the drawing.

    Returns:
        Lower and upper ends, `[K]` each.
    """
    from scipy.stats import bootstrap

    def of_many(first: NDArray[np.int64], second: NDArray[np.int64], axis: int = -1) -> Values:
        index = np.concatenate([first, second], axis)
        return np.moveaxis(np.apply_along_axis(statistic, -1, index), -1, 0)

    ends = bootstrap(
        (np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)),
        of_many,
        n_resamples=resamples,
        vectorized=True,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return ends.low, ends.high


def judge(
    predictions: Mapping[str, Predictions], chosen_on: str, resamples: int, seed: int
) -> dict[str, dict]:
    """Judge every split by `detection`, the threshold chosen on one of them.

    Args:
        predictions: by split.
        chosen_on: the split on which the threshold is chosen, for the highest F1.
        resamples: of the bootstrap; 0: no intervals.
        seed: of the bootstrap.

    Returns:
        threshold: its `value` and `chosen_on`. metrics: by split and name; a split without both
        classes has none. intervals: of the splits whose names start with "test", lower and upper
        end by split and name, where each class has two examples or more.
    """
    source = predictions[chosen_on]
    threshold = best_threshold(source.labels, source.probability)
    found: dict[str, dict] = {
        "threshold": {"value": threshold, "chosen_on": chosen_on},
        "metrics": {},
        "intervals": {},
    }
    for split, said in predictions.items():
        labels, probability = said.labels, said.probability
        fewest = np.bincount(labels, minlength=2).min()
        if not fewest:
            continue
        values = detection(labels, probability, threshold)
        found["metrics"][split] = dict(zip(DETECTION, values.tolist(), strict=True))
        if resamples and fewest > 1 and split.startswith("test"):
            found["intervals"][split] = intervals(said, threshold, resamples, seed)
    return found


def intervals(
    said: Predictions, threshold: float | Values, resamples: int, seed: int
) -> dict[str, list[float]]:
    """`bootstrap_interval` of each of `detection`'s values, by name: lower and upper end."""
    labels, probability = said.labels, said.probability
    each = np.broadcast_to(threshold, labels.shape)
    low, high = bootstrap_interval(
        labels, lambda i: detection(labels[i], probability[i], each[i]), resamples, seed
    )
    ends = zip(low.tolist(), high.tolist(), strict=True)
    return dict(zip(DETECTION, map(list, ends), strict=True))
