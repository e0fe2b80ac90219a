"""Counterexamples: train on inputs in which the group says nothing, under their true labels.

Source: Teso & Kersting, "Explanatory Interactive Machine Learning", AIES 2019 (CAIPI).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from cdep_run.attribution import features, logits_of, statistics_at_rest
from cdep_run.batch import Batch
from cdep_run.penalties.base import groups_of, mean_annotated, option
from cdep_run.penalties.counterfactual import changed
from cdep_run.variants import CHANGES


class Counterexamples:
    """Cross-entropy at inputs whose group is changed, summed over groups, mean over annotated ones.

    Args:
        change: what takes the group's place, one of `CHANGES`.

    Raises:
        PenaltyError: `change` is unknown.
    """

    needs_groups = True

    def __init__(self, change: str = "exchange"):
        self.change = option("penalty.change", change, CHANGES)

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits `[N, C]` and the penalty, a scalar in nats, λ not applied."""
        groups = groups_of(batch, self)
        logits = logits_of(model(batch.inputs))
        value = logits.new_zeros(len(logits))
        with statistics_at_rest(model):
            function, inputs = features(model, batch.inputs)
            for other in changed(groups, inputs, self.change):
                z = logits_of(function(other))
                value = value + F.cross_entropy(z, batch.labels, reduction="none")
        return logits, mean_annotated(value, groups)
