"""Linear and convolution layers: the weights act on both parts, the bias is shared out.

β' = Wβ + b·|Wβ| / (|Wβ| + |Wγ|). Source: Singh et al. 2019 (ACD), as used by Rieger et al. 2019.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cdep_run.cd import windows
from cdep_run.cd.pair import Pair, Part
from cdep_run.cd.registry import register_rule
from cdep_run.cd.windows import Windows


class BiasShare(torch.autograd.Function):
    """Wβ + b·|Wβ| / (|Wβ| + |Wγ|) for every group, with Wγ = total − b − Wβ.

    Where both are 0 the bias belongs to γ (the published code gives it to nobody and so loses
    β + γ = activation). Written as one function because it keeps two tensors for the backward pass
    where the chain of elementwise ops keeps six, and gathers the gradient of the shared total in
    place, however many groups there are; its gradient is finite at 0/0.
    """

    @staticmethod
    def forward(ctx, total: Tensor, bias: Tensor, places, *parts: Tensor):
        ctx.places = places
        ctx.save_for_backward(total, bias, *parts)
        shared = []
        for place, relevant in zip(places, parts, strict=True):
            size = relevant.abs()
            both = (_inside(total, place, relevant) - bias).sub_(relevant).abs_().add_(size)
            share = size.div_(both.clamp_min_(torch.finfo(both.dtype).tiny))
            shared.append(torch.addcmul(relevant, share, bias.to(relevant.dtype)))
        return tuple(shared)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        total, bias, *parts = ctx.saved_tensors
        by_total, by_bias, by_parts = torch.zeros_like(total), torch.zeros_like(bias), []
        for place, relevant, grad in zip(ctx.places, parts, grads, strict=True):
            irrelevant = _inside(total, place, relevant) - bias - relevant
            # With s = |Wβ| / both: ds/d|Wβ| = (1 − s) / both, ds/d|Wγ| = −s / both.
            both = (relevant.abs() + irrelevant.abs()).clamp_min_(torch.finfo(grad.dtype).tiny)
            share = relevant.abs() / both
            # The signs, 0 where both parts are 0, come before the division: nothing overflows.
            weight = grad * bias
            by_irrelevant = (share * irrelevant.sign()).div_(both).mul_(weight)
            by_relevant = (1 - share).mul_(relevant.sign()).div_(both).mul_(weight)
            by_bias += torch.addcmul(by_irrelevant, grad, share).sum_to_size(bias.shape)
            by_parts.append(by_relevant.add_(grad).add_(by_irrelevant))
            if place is None:
                by_total.sub_(by_irrelevant)
            else:
                windows.paste(by_total, by_irrelevant.neg_(), place)
        return by_total, by_bias, None, *by_parts


def _inside(total: Tensor, place, relevant: Tensor) -> Tensor:
    """What the total holds where a part is stored: everywhere, or inside its windows."""
    return total if place is None else windows.cut(total, place, relevant.shape[-2:])


def share_bias(parts: tuple[Part, ...], total: Tensor, bias: Tensor) -> tuple[Part, ...]:
    """β' = β + b·|β| / (|β| + |γ|): the part of an added constant that goes to each group.

    Args:
        parts: β of each group before the constant is added.
        total: β + γ + b, of the parts' shape.
        bias: b, broadcastable to it.

    Returns:
        β' of each group; 0 wherever β is 0.
    """
    places = tuple(part.corners if isinstance(part, Windows) else None for part in parts)
    values = (part.values if isinstance(part, Windows) else part for part in parts)
    shared = BiasShare.apply(total, bias, places, *values)
    return tuple(
        Windows(value, part.corners, part.size) if isinstance(part, Windows) else value
        for part, value in zip(parts, shared, strict=True)
    )


@register_rule("linear", "conv1d", "conv2d", "conv3d",
               "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def linear(func, x, weight, bias=None, *args, **kwargs):
    """Wx + b: β' = Wβ + the bias share. Source: ACD; PROTOCOL: CD, first item."""
    total = func(x.total, weight, bias, *args, **kwargs)

    def weighted(part):
        if isinstance(part, Windows) and func is torch.conv2d:
            return windows.conv2d(part, total.shape[-2:], weight, *args, **kwargs)
        part = part.dense() if isinstance(part, Windows) else part
        return func(part, weight, None, *args, **kwargs)

    parts = tuple(weighted(part) for part in x.parts)
    if bias is None:
        return Pair(total, parts)
    spatial = total.dim() - 2 if "conv" in func.__name__ else 0
    return Pair(total, share_bias(parts, total, bias.view(-1, *(1,) * spatial)))
