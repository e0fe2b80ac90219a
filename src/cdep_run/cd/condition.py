"""Is the gradient of a contextual decomposition more than rounding noise, on a given net?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdep_run.cd.decompose import decompose

ROUNDINGS = 4
"""The weights are moved by so many last bits: about what the order of additions does to a layer."""

TRUSTED = 0.9
"""A cosine above which the gradient points where it should; noise has about 0."""


def condition(
    model: nn.Module, x: Tensor, mask: Tensor, *args: Any, rules: Mapping[str, str] | None = None
) -> float:
    """How well the weights' gradient of Σβ² survives a change of the weights by rounding errors.

    In deep nets some rules amplify rounding errors from layer to layer, until the gradient of a
    penalty on β is noise. Costs two decompositions and their gradients; the model is not changed.

    Args:
        model, x, mask, args, rules: as for `decompose`; a few examples are enough.

    Returns:
        The cosine of the gradients at the weights and at weights that differ in their last bits:
        1 is perfect, below `TRUSTED` the chosen rules are of no use on this net, in this precision.
    """

    def size() -> Tensor:
        return decompose(model, x, mask, *args, rules=rules).relevant.square().sum()

    return gradient_condition(size, model)


def gradient_condition(value: Callable[[], Tensor], model: nn.Module) -> float:
    """As `condition`, of the gradient of any scalar `value()` that is computed by the model."""
    weights = [w for w in model.parameters() if w.requires_grad and w.is_floating_point()]
    gradients = []
    with _put_back(model), torch.enable_grad():
        for moved in (False, True):
            if moved:
                _move(weights)
            with torch.random.fork_rng([w.device for w in weights[:1] if w.is_cuda]):
                torch.manual_seed(0)  # the same dropout for both
                found = torch.autograd.grad(value(), weights, allow_unused=True)
            flat = torch.cat([g.flatten().float() for g in found if g is not None])
            gradients.append(flat / flat.abs().max().clamp_min(torch.finfo(flat.dtype).tiny))
    first, second = gradients
    if not first.any() and not second.any():
        return 1.0
    return float(F.cosine_similarity(first, second, 0))


@contextmanager
def _put_back(model: nn.Module) -> Iterator[None]:
    """Gives every weight and buffer the value again that it has now."""
    kept = [(t, t.detach().clone()) for t in (*model.parameters(), *model.buffers())]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in kept:
                tensor.copy_(value)


def _move(weights: list[nn.Parameter]) -> None:
    """Changes every weight by a few last bits, at random, the same each time."""
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in weights:
            noise = torch.randn(weight.shape, generator=source).to(weight.device)
            weight.mul_(1 + ROUNDINGS * torch.finfo(weight.dtype).eps * noise)
