"""Linear and convolution layers: the weights act on both parts, the bias is shared out.

β' = Wβ + b·|Wβ| / (|Wβ| + |Wγ|). Source: Singh et al. 2019 (ACD), as used by Rieger et al. 2019.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cdep_run.cd import windows
from cdep_run.cd.pair import Pair
from cdep_run.cd.registry import register_rule
from cdep_run.cd.windows import Windows


class BiasShare(torch.autograd.Function):
    """Wβ + b·|Wβ| / (|Wβ| + |Wγ|), with Wγ = total − b − Wβ.

    Where both are 0 the bias belongs to γ (the published code gives it to nobody and so loses
    β + γ = activation). Written as one function because it keeps two tensors for the backward pass
    where the chain of elementwise ops keeps six, and because its gradient is finite at 0/0.
    """

    @staticmethod
    def forward(ctx, relevant: Tensor, total: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(relevant, total, bias)
        size = relevant.abs()
        both = (total - bias).sub_(relevant).abs_().add_(size)
        share = size.div_(both.clamp_min_(torch.finfo(both.dtype).tiny))
        return torch.addcmul(relevant, share, bias.to(relevant.dtype))

    @staticmethod
    def backward(ctx, grad: Tensor):
        relevant, total, bias = ctx.saved_tensors
        irrelevant = total - bias - relevant
        # With s = |Wβ| / both: ds/d|Wβ| = (1 − s) / both, ds/d|Wγ| = −s / both. The signs, 0 where
        # both parts are 0, come before the division, so that nothing overflows.
        both = (relevant.abs() + irrelevant.abs()).clamp_min_(torch.finfo(grad.dtype).tiny)
        share = relevant.abs() / both
        weight = grad * bias
        by_irrelevant = (share * irrelevant.sign()).div_(both).mul_(weight)
        by_relevant = (1 - share).mul_(relevant.sign()).div_(both).mul_(weight)
        by_bias = torch.addcmul(by_irrelevant, grad, share).sum_to_size(bias.shape)
        return by_relevant.add_(grad).add_(by_irrelevant), -by_irrelevant, by_bias


def share_bias(pair: Pair, bias: Tensor) -> Pair:
    """β' = β + b·|β| / (|β| + |γ|): hand out a constant that was added to the total.

    Args:
        pair: the total with the constant in it, the parts β without.
        bias: b, broadcastable to them.

    Returns:
        The same total, the parts β'; 0 wherever β is 0.
    """
    return pair.map_elements(
        pair.total, lambda rel, total: BiasShare.apply(rel, total, bias), pair.total
    )


@register_rule(
    "linear",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
)
def linear(func, x, weight, bias=None, *args, **kwargs):
    """Wx + b: β' = Wβ + the bias share. Source: ACD; PROTOCOL: CD, first item."""
    total = func(x.total, weight, bias, *args, **kwargs)

    def weighted(part):
        if isinstance(part, Windows) and func is torch.conv2d:
            return windows.conv2d(part, total.shape[-2:], weight, *args, **kwargs)
        part = part.dense() if isinstance(part, Windows) else part
        return func(part, weight, None, *args, **kwargs)

    result = Pair(total, tuple(weighted(part) for part in x.parts))
    if bias is None:
        return result
    spatial = int(func.__name__[-2]) if "conv" in func.__name__ else 0
    return share_bias(result, bias.view(-1, *(1,) * spatial))
