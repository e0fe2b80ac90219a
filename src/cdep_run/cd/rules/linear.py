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
    """β + b·|β| / (|β| + |γ|), where β + γ is the sum before b was added to it.

    Where both are 0 the bias belongs to γ (the published code gives it to nobody and so loses
    β + γ = activation). γ is the difference of two results of the same op, so that it is 0 exactly
    where the group is everything; a total with the bias in it would leave rounding noise of ε|b|.
    Written as one function because it keeps two tensors for the backward pass where the chain of
    elementwise ops keeps six, and because its gradient is finite at 0/0. There are no masks in it:
    on a CPU filling by a mask takes as long as twenty multiplications.
    """

    @staticmethod
    def forward(ctx, relevant: Tensor, before: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(relevant, before, bias)
        size = relevant.abs()
        both = (before - relevant).abs_().add_(size)
        torch.maximum(both, _floor(bias, size.dtype), out=both)
        return torch.addcmul(relevant, size.div_(both), bias.to(relevant.dtype))

    @staticmethod
    def backward(ctx, grad: Tensor):
        relevant, before, bias = ctx.saved_tensors
        irrelevant = before - relevant
        share = relevant.abs()
        both = irrelevant.abs().add_(share)
        torch.maximum(both, _floor(bias, share.dtype), out=both)
        share.div_(both)
        # d share / d|β| = (1 − share) / both, d share / d|γ| = −share / both. The signs, 0 where
        # both parts are 0, come before the division, so that nothing overflows.
        weight = grad * bias
        by_irrelevant = irrelevant.sign_().mul_(share).div_(both).mul_(weight)
        by_size = relevant.sign().mul_(1 - share).div_(both).mul_(weight)
        by_bias = (grad * share).sum_to_size(bias.shape)
        return by_size.add_(grad).add_(by_irrelevant), by_irrelevant.neg(), by_bias


def _floor(bias: Tensor, dtype: torch.dtype) -> Tensor:
    """Parts below this count as nothing: ε²|b|; it bounds the gradient."""
    info = torch.finfo(dtype)
    return bias.abs().mul_(info.eps**2).add_(info.tiny).to(dtype)


def share_bias(pair: Pair, bias: Tensor) -> Pair:
    """β + γ + b with β' = β + b·|β| / (|β| + |γ|): add a constant and hand it out.

    Args:
        pair: the total and the parts without the constant.
        bias: b, broadcastable to them.

    Returns:
        The total with the constant, and the parts β'; 0 wherever β is 0.
    """
    before = pair.total
    return pair.map_elements(
        before + bias.to(before.dtype),
        lambda rel, before: BiasShare.apply(rel, before, bias),
        before,
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
    if isinstance(weight, Pair) or isinstance(bias, Pair) or not isinstance(x, Pair):
        return _computed_weights(func, x, weight, bias, *args, **kwargs)
    total = func(x.total, weight, None, *args, **kwargs)

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


def _computed_weights(func, x, weight, bias, *args, **kwargs):
    """Weights or a bias that depend on the input: a product of two decomposed tensors."""
    from cdep_run.cd.rules.products import product  # which itself shares out biases

    result = product(lambda a, w: func(a, w, None, *args, **kwargs), x, weight)
    if bias is None:
        return result
    spatial = int(func.__name__[-2]) if "conv" in func.__name__ else 0
    return result + bias.view(-1, *(1,) * spatial)
