"""Integrated gradients: penalise the attributions of the feature groups.

Source: Liu & Avci, "Incorporating Priors with Feature Attribution on Text Classification", ACL
2019, Eq. 4 with targets 0; attributions by Sundararajan et al., ICML 2017.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdep_run.attribution import features, input_gradients, logits_of, statistics_at_rest
from cdep_run.batch import Batch
from cdep_run.penalties.base import PenaltyError, groups_of, mean_annotated


class IntegratedGradients:
    """Σ a² over the features of the groups, mean over annotated examples.

    a = P(x − x′) ⊙ mean_k ∂p_y/∂x at x′ + α_k (x − x′), α_k the midpoints of `steps` equal parts of
    [0, 1], p_y the probability of the true class, P the group's projection. A word's attributions
    are summed over the entries of its vector before they are squared.

    Args:
        steps: points on the straight line from the baseline to the input; each costs one pass.
        baseline: x′, the value of every feature where the line starts (standardised units); 0 is
            the mean of standardised images, and a word vector of zeros.

    Raises:
        PenaltyError: `steps` is below 1.
    """

    needs_groups = True

    def __init__(self, steps: int = 4, baseline: float = 0.0):
        if steps < 1:
            raise PenaltyError(f"penalty.steps is {steps}; it must be at least 1")
        self.steps, self.baseline = steps, baseline

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits `[N, C]` and the penalty, a scalar in units of probability², λ not applied."""
        groups = groups_of(batch, self)
        logits = logits_of(model(batch.inputs))
        with statistics_at_rest(model):
            function, inputs = features(model, batch.inputs, groups.boxes)
            difference = inputs - self.baseline
            labels = batch.labels.repeat(self.steps)[:, None]
            alpha = (torch.arange(self.steps, device=inputs.device) + 0.5).to(inputs.dtype)
            alpha = (alpha / self.steps).view(-1, *(1,) * inputs.dim())
            points = (self.baseline + alpha * difference).flatten(0, 1)
            _, gradient = input_gradients(
                function, points, lambda z: F.softmax(z, 1).gather(1, labels).sum()
            )
        slope = gradient.view(self.steps, *inputs.shape).mean(0)
        attribution = groups.attribution(difference, slope)
        if not batch.inputs.is_floating_point():
            attribution = attribution.sum(-1)
        return logits, mean_annotated(attribution.square().flatten(1).sum(1), groups)
