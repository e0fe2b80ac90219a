"""RBR: penalise how the group's features steer an example's influence on the training loss.

Source: Shao, Skryagin, Stammer, Schramowski, Kersting, "Right for Better Reasons: Training
Differentiable Models by Constraining their Influence Functions", AAAI 2021.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdep_run.attribution import PenaltyError, features, logits_of
from cdep_run.batch import Batch
from cdep_run.penalties.base import groups_of, mean_annotated


class RightByInfluence:
    """Σ (Pᵀ ∂I/∂x)² over features and groups, mean over annotated examples.

    I = ‖Σ_n ∇_θ L_n‖² / N, L_n the cross-entropy of example n: N times the influence of the batch
    on its own mean loss, where the Hessian of the influence function is taken as the identity. The
    value needs third derivatives, so a step takes several times that of RRR.

    Raises:
        PenaltyError: the logits have no gradient in the inputs.
    """

    needs_groups = True

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits `[N, C]` and the penalty, a scalar, λ not applied."""
        groups = groups_of(batch, self)
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        with torch.enable_grad():
            function, inputs = features(model, batch.inputs)
            inputs = inputs if inputs.requires_grad else inputs.detach().requires_grad_()
            logits = logits_of(function(inputs))
            loss = F.cross_entropy(logits, batch.labels, reduction="sum")
            slopes = torch.autograd.grad(loss, weights, create_graph=True, allow_unused=True)
            norm = sum((s.square().sum() for s in slopes if s is not None), logits.new_zeros(()))
            gradient = None
            if norm.requires_grad:
                influence = norm / len(inputs)
                (gradient,) = torch.autograd.grad(
                    influence, inputs, create_graph=True, allow_unused=True
                )
        if gradient is None:
            raise PenaltyError("the logits have no gradient in the inputs: no_grad or detach")
        return logits, mean_annotated(groups.sensitivity(gradient).sum(1), groups)
