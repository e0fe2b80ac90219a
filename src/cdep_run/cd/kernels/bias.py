"""The share of a bias as one function, block by block."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

LEAST = 2
"""Of a constant b a part receives, if it is bounded, at most its own size / `LEAST`. With 1 the
gradients of efficientnet_b0 and regnet_y_400mf are noise in float32; with 4 β grows with depth, to
30 times the logits of densenet121, since nothing centres it any more."""


class BiasShare(torch.autograd.Function):
    """sβ + b·|β| / max(|β| + |γ|, floor), where β + γ is the total before s and b.

    `floor` is 0, or, if `bounded`, 2|b / s|: the part then receives at most |sβ| / 2 of b, and the
    slope of what it receives is at most |s| / 2, where it is b / (|β| + |γ|) without.

    Where both parts are 0 the bias belongs to γ (the published code gives it to nobody and so loses
    β + γ = activation). γ is the difference of two results of the same op, so that it is 0 exactly
    where the group is everything; a total with the bias in it would leave rounding noise of ε|b|.
    Written as one function because it keeps two tensors for the backward pass where the chain of
    elementwise ops keeps six, because its gradient is finite at 0/0, and because it can go through
    large tensors block by block: what lies between input and output never leaves the CPU's cache.
    There are no masks in it: on a CPU filling by a mask takes as long as twenty multiplications.

    Args:
        relevant, before: β and β + γ, of one shape.
        bias, scale: b and s, broadcastable to them; s is 1 if None.
    """

    @staticmethod
    def forward(
        ctx,
        relevant: Tensor,
        before: Tensor,
        bias: Tensor,
        scale: Tensor | None = None,
        bounded: bool = False,
    ) -> Tensor:
        result = torch.empty_like(relevant)
        floors = floor_of(bias.to(relevant.dtype), scale, bounded)
        ctx.save_for_backward(relevant, before, bias, scale, floors)
        ctx.bounded = bounded
        bias = bias.to(relevant.dtype)
        for rel, total, b, floor, s, out in blocks(relevant, before, bias, floors, scale, result):
            size = rel.abs()
            both = torch.sub(total, rel).abs_().add_(size)
            share = size.div_(torch.maximum(both, floor, out=both))
            affine(rel, s, share.mul_(b), out)
        return result

    @staticmethod
    def backward(ctx, grad: Tensor):
        relevant, before, bias, scale, floors = ctx.saved_tensors
        grad_relevant, grad_before = torch.empty_like(relevant), torch.empty_like(before)
        grad_bias = torch.zeros_like(bias)
        grad_scale = None if scale is None else torch.zeros_like(scale)
        results = grad_relevant, grad_before, grad_bias, grad_scale
        for rel, total, b, floor, s, g, grad_rel, grad_total, grad_b, grad_s in blocks(
            relevant, before, bias, floors, scale, grad.contiguous(), *results
        ):
            irrelevant, share = total - rel, rel.abs()
            both = irrelevant.abs().add_(share)
            below = torch.lt(both, floor) if ctx.bounded else None
            torch.maximum(both, floor, out=both)
            by_scale = rel  # dβ' / ds
            if below is not None and s is not None:  # there the part receives sign(b)·|sβ| / 2
                by_scale = torch.addcmul(rel, share * below, (b * s).sign_(), value=1 / LEAST)
            share.div_(both)
            if below is not None:  # there neither |γ| nor b matter
                share.mul_(below.logical_not_())
            # d share / d|β| = (1 − share) / both, d share / d|γ| = −share / both; b / both is at
            # most 1 / ε², so that nothing overflows.
            weight = torch.mul(g, b, out=grad_rel).div_(both)
            sign = irrelevant.sign_()
            d_size = rel.sign().lerp_(sign, share)  # sign β (1 − share) + sign γ · share
            torch.mul(sign.mul_(share), weight.neg(), out=grad_total)
            grad_b += share.mul_(g).sum_to_size(b.shape)
            if s is not None:
                grad_s += (g * by_scale).sum_to_size(s.shape)
            torch.addcmul(g if s is None else g * s, d_size, weight, out=grad_rel)
        return *results, None


def affine(x: Tensor, scale: Tensor | None, constant: Tensor, out: Tensor | None = None) -> Tensor:
    """s·x + b in steps that a CPU vectorises when s and b are one number a channel."""
    return (
        torch.add(x, constant, out=out)
        if scale is None
        else torch.mul(x, scale, out=out).add_(constant)
    )


BLOCK = 1 << 16
"""Entries that are worked on together: a few tensors of this size fit a core's cache."""


def blocks(*tensors: Tensor | None) -> Iterator[tuple[Any, ...]]:
    """Blocks of the first tensor and of others that broadcast to it; None stays None."""
    assert tensors[0] is not None
    shape = tensors[0].shape
    if tensors[0].numel() <= 2 * BLOCK or not tensors[0].is_cpu:
        yield tensors
        return
    axis = next(d for d, n in enumerate(shape) if n > 1)
    step = max(1, BLOCK * shape[axis] // tensors[0].numel())
    for start in range(0, shape[axis], step):
        block = tuple(narrow(t, axis - len(shape), start, step, shape[axis]) for t in tensors)
        if step > 1:
            yield block
        else:
            yield from blocks(*block)


def narrow(tensor: Tensor | None, axis: int, start: int, step: int, size: int) -> Tensor | None:
    if tensor is None or tensor.dim() < -axis or tensor.shape[axis] == 1:
        return tensor
    return tensor.narrow(axis, start, min(step, size - start))


def floor_of(bias: Tensor, scale: Tensor | None, bounded: bool) -> Tensor:
    """The least sum of sizes of which a share is taken: 2|b / s|, or ε²|b|, which counts as 0."""
    info, size = torch.finfo(bias.dtype), bias.abs()
    if bounded and scale is not None:
        size = size / scale.abs().clamp_min(info.tiny)
    return size * (LEAST if bounded else info.eps**2) + info.tiny
