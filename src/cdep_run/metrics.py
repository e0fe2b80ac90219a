"""Accuracy, macro AUC and macro F1 of a classifier on one split."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def scores(logits: Tensor, labels: Tensor) -> dict[str, float | None]:
    """Judge logits `[N, C]` by labels int64 `[N]`.

    Returns:
        loss: mean cross-entropy in nats. accuracy: share of right answers in [0, 1]. auc: area
        under the ROC curve, mean over classes of one against the rest; of class 1 where C = 2;
        None where a class has no example. f1: mean over classes; a class never predicted counts
        0. mean_logit: mean over examples and classes, which the pair form of CDEP can drive up.
    """
    from sklearn.metrics import f1_score  # imported late: it takes a second

    guess = logits.argmax(1)
    return {
        "loss": F.cross_entropy(logits.double(), labels).item(),
        "accuracy": (guess == labels).double().mean().item(),
        "auc": _auc(logits, labels),
        "f1": float(f1_score(labels, guess, average="macro", zero_division=0)),
        "mean_logit": logits.double().mean().item(),
    }


def _auc(logits: Tensor, labels: Tensor) -> float | None:
    from sklearn.metrics import roc_auc_score

    classes = logits.shape[1]
    if len(torch.unique(labels)) < classes:
        return None
    probability = F.softmax(logits.double(), 1).numpy()
    if classes == 2:
        return float(roc_auc_score(labels, probability[:, 1]))
    return float(roc_auc_score(labels, probability, multi_class="ovr", average="macro"))
