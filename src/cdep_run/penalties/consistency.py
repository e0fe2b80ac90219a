"""Counterfactual consistency: the output must not change when the group does.

Source: Garg et al., "Counterfactual Fairness in Text Classification through Robustness", AIES 2019
(counterfactual logit pairing); the divergence form follows Zhang et al., ICML 2019 (TRADES).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from cdep_run.attribution import features, logits_of
from cdep_run.batch import Batch
from cdep_run.penalties.base import groups_of, mean_annotated, option
from cdep_run.penalties.counterfactual import changed, outputs_alike
from cdep_run.variants import CHANGES, FORMS


def logit_difference(logits: Tensor, other: Tensor) -> Tensor:
    """‖d − mean_k d‖², d = z − z̃: squared logits, a constant over the classes left out; `[N]`."""
    difference = logits - other
    return (difference - difference.mean(1, keepdim=True)).square().sum(1)


def divergence(logits: Tensor, other: Tensor) -> Tensor:
    """KL(p ‖ p̃) of the class probabilities of z and z̃, in nats; `[N]`."""
    p, q = F.log_softmax(logits, 1), F.log_softmax(other, 1)
    return (p.exp() * (p - q)).sum(1)


DIFFERENCES = {"logits": logit_difference, "divergence": divergence}
"""Functions of two outputs `[N, C]` to `[N]`, by the names in `FORMS["consistency"]`."""


class Consistency:
    """Difference between the outputs of x and of x with one group changed.

    Summed over groups, mean over annotated examples. Dropout drops the same units in both.

    Args:
        form: how the outputs are compared, one of `FORMS["consistency"]`.
        change: what takes the group's place, one of `CHANGES`.

    Raises:
        PenaltyError: `form` or `change` is unknown.
    """

    needs_groups = True

    def __init__(self, form: str = "logits", change: str = "exchange"):
        self.form = option("penalty.form", form, FORMS["consistency"])
        self.change = option("penalty.change", change, CHANGES)

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits `[N, C]` and the penalty, a scalar (unit: see the form), λ not applied."""
        groups = groups_of(batch, self)
        function, inputs = features(model, batch.inputs)
        others = changed(groups, inputs, self.change)
        logits, changed_logits = outputs_alike(model, function, inputs, others)
        logits = logits_of(logits)
        values = [DIFFERENCES[self.form](logits, logits_of(z)) for z in changed_logits]
        return logits, mean_annotated(sum(values, logits.new_zeros(len(logits))), groups)
