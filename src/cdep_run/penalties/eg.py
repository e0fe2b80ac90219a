"""EG: penalise the expected gradients inside the feature groups. Source: Erion et al. 2019."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cdep_run.attribution import expected_gradients, features, logits_of, statistics_at_rest
from cdep_run.batch import Batch, covering
from cdep_run.penalties.base import PenaltyError, groups_of, mean_annotated, option
from cdep_run.variants import FORMS


class ExpectedGradients:
    """Σ |φ| over the features of the groups, mean over annotated examples.

    φ is the mean over `samples` references x′ drawn from the batch and α ~ U(0, 1). Of a group
    that is a linear map P of the inputs φ = P(x − x′) ⊙ Pᵀ ∂p_y/∂x.

    Args:
        samples: references for each example and step.
        form: "paper", as above (fresh references every step, as EG's authors train); "published",
            the CDEP code's variant: |·| is taken for each sample before they are averaged.

    Raises:
        PenaltyError: the form is unknown, or `samples` is below 1.
    """

    needs_groups = True

    def __init__(self, samples: int = 1, form: str = "paper"):
        if samples < 1:
            raise PenaltyError(f"penalty.samples is {samples}; it must be at least 1")
        self.samples, self.form = samples, option("penalty.form", form, FORMS["eg"])

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits `[N, C]` and the penalty, a scalar in units of probability, λ not applied."""
        groups = groups_of(batch, self)
        n, device = len(batch.inputs), batch.inputs.device
        index = torch.randint(n, (self.samples, n), device=device)
        alpha = torch.rand(self.samples, n, device=device)
        logits = logits_of(model(batch.inputs))
        with statistics_at_rest(model):
            function, inputs = features(model, batch.inputs, groups.boxes)
            arguments = (function, inputs, batch.labels, inputs[index], alpha.to(inputs.dtype))
            own = () if groups.projection is None else (groups.attribution,)
            samples = expected_gradients(*arguments, *own)
        size = samples.abs().mean(0) if self.form == "published" else samples.mean(0).abs()
        if groups.projection is None:  # masked last: once for all samples
            size = size.unsqueeze(1) * covering(groups.mask, size)
        return logits, mean_annotated(size.flatten(1).sum(1), groups)
