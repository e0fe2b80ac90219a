"""The share of a bias as one function, block by block."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


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
        for rel, total, b, floor, s, out in blocks(
            relevant, before, bias, floor_of(bias), scale, result
        ):
            size = rel.abs()
            both = torch.sub(total, rel).abs_().add_(size)
            share = size.div_(torch.maximum(both, floor, out=both))
            affine(rel, s, share.mul_(b), out)
        return result

    @staticmethod
    def backward(ctx, grad: Tensor):
        relevant, before, bias, scale = ctx.saved_tensors
        grad_relevant, grad_before = torch.empty_like(relevant), torch.empty_like(before)
        grad_bias = torch.zeros_like(bias)
        grad_scale = None if scale is None else torch.zeros_like(scale)
        results = grad_relevant, grad_before, grad_bias, grad_scale
        for rel, total, b, floor, s, g, grad_rel, grad_total, grad_b, grad_s in blocks(
            relevant,
            before,
            bias,
            floor_of(bias.to(relevant.dtype)),
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
            weight = torch.mul(g, b, out=grad_rel).div_(both)
            sign = irrelevant.sign_()
            d_size = rel.sign().lerp_(sign, share)  # sign β (1 − share) + sign γ · share
            torch.mul(sign.mul_(share), weight.neg(), out=grad_total)
            grad_b += share.mul_(g).sum_to_size(b.shape)
            if s is not None:
                grad_s += (g * rel).sum_to_size(s.shape)
            torch.addcmul(g if s is None else g * s, d_size, weight, out=grad_rel)
        return results


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


def floor_of(bias: Tensor) -> Tensor:
    """Parts below this count as nothing: ε²|b|; it bounds the gradient."""
    info = torch.finfo(bias.dtype)
    return bias.abs().mul_(info.eps**2).add_(info.tiny)
