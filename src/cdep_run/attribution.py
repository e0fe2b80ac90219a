"""Gradient attributions that a loss can train through: input gradients and expected gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Model = Callable[[Tensor], Tensor]


def input_gradients(
    model: Model, inputs: Tensor, score: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Gradient of a score of the logits with respect to the inputs.

    Args:
        model: maps `[N, *features]` to logits `[N, C]`.
        inputs: `[N, *features]` float.
        score: maps logits `[N, C]` to a scalar.

    Returns:
        logits `[N, C]` and the gradient `[N, *features]`, both differentiable in the parameters.
    """
    with torch.enable_grad():
        inputs = inputs.detach().requires_grad_()
        logits = model(inputs)
        (gradient,) = torch.autograd.grad(score(logits), inputs, create_graph=True)
    return logits, gradient


def expected_gradients(
    model: Model, inputs: Tensor, labels: Tensor, references: Tensor, alpha: Tensor
) -> Tensor:
    """One sample of expected gradients for each reference: (x − x′) ⊙ ∂p_y/∂x at x′ + α(x − x′).

    The attribution φ is the mean over the samples. Source: Erion et al. 2019, Eq. 2.

    Args:
        model: maps `[N, *features]` to logits `[N, C]`.
        inputs: x, `[N, *features]` float.
        labels: y, int64 `[N]`.
        references: x′, `[S, N, *features]`.
        alpha: α in [0, 1], `[S, N]`.

    Returns:
        `[S, N, *features]`, in units of probability, differentiable in the parameters.
    """
    difference = inputs - references
    points = references + alpha.view(*alpha.shape, *(1,) * (inputs.dim() - 1)) * difference
    repeated = labels.repeat(len(references))[:, None]

    def probability(logits: Tensor) -> Tensor:
        return F.softmax(logits, 1).gather(1, repeated).sum()

    _, gradient = input_gradients(model, points.flatten(0, 1), probability)
    return difference * gradient.view_as(points)


@contextmanager
def statistics_at_rest(model: nn.Module) -> Iterator[None]:
    """Batch-norm layers normalise as always, but an extra pass does not move their statistics."""
    moving = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
    ]
    kept = [(module.momentum, module.num_batches_tracked) for module in moving]
    for module in moving:
        module.momentum, module.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for module, (momentum, counter) in zip(moving, kept, strict=True):
            module.momentum, module.num_batches_tracked = momentum, counter
