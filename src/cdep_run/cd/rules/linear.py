"""Linear and convolution layers: the weights act on both parts, the bias is shared out.

β' = Wβ + b·|Wβ| / (|Wβ| + |Wγ|). Source: Singh et al. 2019 (ACD), as used by Rieger et al. 2019.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cdep_run.cd import windows
from cdep_run.cd.pair import Pair
from cdep_run.cd.registry import register_rule, variant
from cdep_run.cd.windows import Windows


class BiasShare(torch.autograd.Function):
    """sβ + b·|β| / (|β| + |γ|), where β + γ is the total before s and b; s is 1 if not given.

    Where both are 0 the bias belongs to γ (the published code gives it to nobody and so loses
    β + γ = activation). γ is the difference of two results of the same op, so that it is 0 exactly
    where the group is everything; a total with the bias in it would leave rounding noise of ε|b|.
    Written as one function because it keeps two tensors for the backward pass where the chain of
    elementwise ops keeps six, because its gradient is finite at 0/0, and because it can go through
    large tensors block by block: what lies between input and output never leaves the CPU's cache.
    There are no masks in it: on a CPU filling by a mask takes as long as twenty multiplications.
    """

    @staticmethod
    def forward(
        ctx, relevant: Tensor, before: Tensor, bias: Tensor, scale: Tensor | None = None
    ) -> Tensor:
        ctx.save_for_backward(relevant, before, bias, scale)
        result = torch.empty_like(relevant)
        bias = bias.to(relevant.dtype)
        for rel, total, b, floor, s, out in _blocks(
            relevant, before, bias, _floor(bias), scale, result
        ):
            size = rel.abs()
            both = torch.sub(total, rel).abs_().add_(size)
            share = size.div_(torch.maximum(both, floor, out=both))
            _affine(rel, s, share.mul_(b), out)
        return result

    @staticmethod
    def backward(ctx, grad: Tensor):
        relevant, before, bias, scale = ctx.saved_tensors
        by_relevant, by_before = torch.empty_like(relevant), torch.empty_like(before)
        by_bias = torch.zeros_like(bias)
        by_scale = None if scale is None else torch.zeros_like(scale)
        results = by_relevant, by_before, by_bias, by_scale
        for rel, total, b, floor, s, g, to_rel, to_total, to_b, to_s in _blocks(
            relevant,
            before,
            bias,
            _floor(bias.to(relevant.dtype)),
            scale,
            grad.contiguous(),
            *results,
        ):
            irrelevant, share = total - rel, rel.abs()
            both = irrelevant.abs().add_(share)
            torch.maximum(both, floor, out=both)
            share.div_(both)
            # d share / d|β| = (1 − share) / both, d share / d|γ| = −share / both; b / both is at
            # most 1 / ε², so that nothing overflows.
            weight = torch.mul(g, b, out=to_rel).div_(both)
            sign = irrelevant.sign_()
            by_size = rel.sign().lerp_(sign, share)  # sign β (1 − share) + sign γ · share
            torch.mul(sign.mul_(share), weight.neg(), out=to_total)
            to_b += share.mul_(g).sum_to_size(b.shape)
            if s is not None:
                to_s += (g * rel).sum_to_size(s.shape)
            torch.addcmul(g if s is None else g * s, by_size, weight, out=to_rel)
        return results


def _affine(x: Tensor, scale: Tensor | None, constant: Tensor, out: Tensor | None = None) -> Tensor:
    """s·x + b in steps that a CPU vectorises when s and b are one number a channel."""
    return (
        torch.add(x, constant, out=out)
        if scale is None
        else torch.mul(x, scale, out=out).add_(constant)
    )


BLOCK = 1 << 16
"""Entries that are worked on together: a few tensors of this size fit a core's cache."""


def _blocks(*tensors: Tensor | None) -> Iterator[tuple[Any, ...]]:
    """Blocks of the first tensor and of others that broadcast to it; None stays None."""
    assert tensors[0] is not None
    shape = tensors[0].shape
    if tensors[0].numel() <= 2 * BLOCK or not tensors[0].is_cpu:
        yield tensors
        return
    axis = next(d for d, n in enumerate(shape) if n > 1)
    step = max(1, BLOCK * shape[axis] // tensors[0].numel())
    for start in range(0, shape[axis], step):
        block = tuple(_narrow(t, axis - len(shape), start, step, shape[axis]) for t in tensors)
        if step > 1:
            yield block
        else:
            yield from _blocks(*block)


def _narrow(tensor: Tensor | None, axis: int, start: int, step: int, size: int) -> Tensor | None:
    if tensor is None or tensor.dim() < -axis or tensor.shape[axis] == 1:
        return tensor
    return tensor.narrow(axis, start, min(step, size - start))


def _floor(bias: Tensor) -> Tensor:
    """Parts below this count as nothing: ε²|b|; it bounds the gradient."""
    info = torch.finfo(bias.dtype)
    return bias.abs().mul_(info.eps**2).add_(info.tiny)


def share_of(size: Tensor, both: Tensor) -> Tensor:
    """size / both, where 0 ≤ size ≤ both; at 0/0 it is 0, and so is its gradient.

    A tiny number in place of 0 would not do: a gradient divided by it overflows.
    """
    return size / (both + (both == 0))


def share_bias(
    pair: Pair, bias: Tensor, scale: Tensor | None = None, total: Tensor | None = None
) -> Pair:
    """s(β + γ) + b with β' = sβ + b·|β| / (|β| + |γ|): add a constant and hand it out.

    Under the variant "last" of the rule for ReLU the constant belongs to γ.

    The total is computed by the steps that compute the parts, so that the two agree to the last bit
    where the group is everything: γ is then 0 and not a rounding error, to which a bias could go.

    Args:
        pair: the total and the parts without the constant.
        bias: b, broadcastable to them.
        scale: s, broadcastable to them; None: 1.
        total: s(β + γ) + b, if it is known.

    Returns:
        The total with the constant, and the parts β'; 0 wherever β is 0.
    """
    if bias.numel() > 1 and bias.shape[-2:] != (1, 1):  # differs from place to place
        pair = pair.map(pair.total, lambda rel: rel)
    constant, shared = bias.to(pair.total.dtype), variant("relu") != "last"

    def part(rel: Tensor, before: Tensor, _: Tensor) -> Tensor:
        if not shared:
            return rel.clone() if scale is None else rel * scale
        return windows.run(BiasShare, rel, before, bias, scale)

    return pair.apply(lambda t: _affine(t, scale, constant), part, total).fresh()


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
    if func is F.linear and weight.numel() > x.total.numel() and x.dim() > 1:
        result = _together(x, weight)
        return result if bias is None else share_bias(result, bias)

    def weighted(part):
        if isinstance(part, Windows) and func is torch.conv2d:
            return windows.conv2d(part, x.total, weight, *args, **kwargs)
        part = part.dense() if isinstance(part, Windows) else part
        return func(part, weight, None, *args, **kwargs)

    parts = tuple(weighted(part) for part in x.parts)
    # A total that is known in all windows is needed nowhere else without the bias.
    known = all(isinstance(part, Windows) and part.total is not None for part in parts)
    total = func(x.total, weight, bias if known else None, *args, **kwargs)
    result = Pair(total, parts)
    if bias is None:
        return result
    spatial = int(func.__name__[-2]) if "conv" in func.__name__ else 0
    return share_bias(result, bias.view(-1, *(1,) * spatial), total=total if known else None)


def _together(x: Pair, weight: Tensor) -> Pair:
    """W of the total and of the parts in one product: weights larger than the batch are read once,
    and so is their gradient written, which takes longer than the sums do."""
    stacked = F.linear(torch.cat([x.total, *x.dense()]), weight)
    total, *parts = stacked.chunk(1 + len(x.parts))
    return Pair(total, tuple(parts))


def _computed_weights(func, x, weight, bias, *args, **kwargs):
    """Weights or a bias that depend on the input: a product of two decomposed tensors."""
    from cdep_run.cd.rules.products import product  # which itself shares out biases

    result = product(lambda a, w: func(a, w, None, *args, **kwargs), x, weight)
    if bias is None:
        return result
    spatial = int(func.__name__[-2]) if "conv" in func.__name__ else 0
    return result + bias.view(-1, *(1,) * spatial)
