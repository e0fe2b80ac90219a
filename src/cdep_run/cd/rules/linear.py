"""Linear and convolution layers: the weights act on both parts, the bias is shared out.

β' = Wβ + b·|Wβ| / (|Wβ| + |Wγ|). Source: Singh et al. 2019 (ACD), as used by Rieger et al. 2019.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cdep_run.cd import windows
from cdep_run.cd.pair import Pair, total_of
from cdep_run.cd.registry import register_rule
from cdep_run.cd.windows import Windows


class BiasShare(torch.autograd.Function):
    """Wβ + b·|Wβ| / (|Wβ| + |Wγ|), with Wγ = total − b − Wβ.

    Where both are 0 the bias belongs to γ (the published code gives it to nobody and so loses
    β + γ = activation). Written out as one function because it keeps two tensors for the backward
    pass where the chain of elementwise ops keeps six; its gradient is finite at 0/0.
    """

    @staticmethod
    def forward(ctx, relevant: Tensor, total: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(relevant, total, bias)
        size = relevant.abs()
        both = (total - bias).sub_(relevant).abs_().add_(size)
        share = size.div_(both.masked_fill_(both == 0, 1))
        return share.mul_(bias).add_(relevant)

    @staticmethod
    def backward(ctx, grad: Tensor):
        relevant, total, bias = ctx.saved_tensors
        irrelevant = total - bias - relevant
        size, rest = relevant.abs(), irrelevant.abs()
        both = size + rest
        both = both.masked_fill(both == 0, 1)
        weighted = grad * bias / both  # d share / d|Wβ| = |Wγ| / both², d share / d|Wγ| = −|Wβ| / both²
        by_irrelevant = -weighted * (size / both) * irrelevant.sign()
        by_relevant = grad + weighted * (rest / both) * relevant.sign() - by_irrelevant
        by_bias = grad * (size / both) - by_irrelevant
        return by_relevant, by_irrelevant, by_bias.sum_to_size(bias.shape)


def share_bias(relevant: Tensor, total: Tensor, bias: Tensor) -> Tensor:
    """β' = β + b·|β| / (|β| + |γ|): the part of an added constant that goes to the group.

    Args:
        relevant: β before the constant is added.
        total: β + γ + b, of the same shape.
        bias: b, broadcastable to it.

    Returns:
        β' of the same shape; 0 wherever β is 0.
    """
    return BiasShare.apply(relevant, total, bias)


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

    result = Pair(total, tuple(weighted(part) for part in x.parts))
    if bias is None:
        return result
    spatial = total.dim() - 2 if "conv" in func.__name__ else 0
    bias = bias.view(-1, *(1,) * spatial)
    return result.map(total, lambda rel, tot: share_bias(rel, tot, bias), total, local=True)
