"""Rare classes: how much each counts in the loss, and how often it is drawn."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import WeightedRandomSampler

from cdep_run.datasets.base import Bunch
from cdep_run.errors import ConfigError


def class_counts(bunch: Bunch) -> Tensor:
    """Training examples of each class, int64 `[C]`, on the CPU."""
    return torch.bincount(bunch.splits["train"].labels.cpu(), minlength=bunch.num_classes)


def class_weights(setting: str | list[float], bunch: Bunch) -> Tensor | None:
    """How much an example of each class counts in the task loss, float `[C]`; None: all the same.

    Args:
        setting: "data": as the data set says; "none"; "balanced": n / (C · count of the class), so
            that all classes count the same; or a number for each class.

    Raises:
        ConfigError: not a number of 0 or more for each class, or a class without examples.
    """
    if setting == "data":
        return bunch.class_weights
    if setting == "none":
        return None
    device = bunch.splits["train"].labels.device
    if setting == "balanced":
        counts = _all_present(class_counts(bunch), "training.class_weights=balanced")
        return (counts.sum() / (len(counts) * counts)).float().to(device)
    if isinstance(setting, str) or len(setting) != bunch.num_classes or min(setting) < 0:
        raise ConfigError(
            f"training.class_weights is {setting}; accepted: data, none, balanced, or "
            f"{bunch.num_classes} numbers of 0 or more, one for each class"
        )
    return torch.tensor(setting, dtype=torch.float32, device=device)


def balanced_order(bunch: Bunch, batch_size: int) -> list[Tensor]:
    """The index of each batch of an epoch in which all classes are drawn alike, with replacement.

    Draws from torch's global CPU generator; as many examples as there are.
    """
    labels = bunch.splits["train"].labels
    counts = _all_present(class_counts(bunch), "training.sampling=balanced")
    weights = (1 / counts.double())[labels.cpu()]
    drawn = list(WeightedRandomSampler(weights, len(labels)))  # type: ignore[arg-type]
    return list(torch.tensor(drawn).to(labels.device).split(batch_size))


def _all_present(counts: Tensor, what: str) -> Tensor:
    absent = [str(i) for i in (counts == 0).nonzero().flatten().tolist()]
    if absent:
        raise ConfigError(f"{what}, but no training example is of class {', '.join(absent)}")
    return counts
