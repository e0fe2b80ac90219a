"""Rectangles of planes `[N, C, H, W]`: read, moved and put back, with gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Corner = tuple[int, int]

Rectangle = tuple[int, int, int, int]
"""Top, left, height, width; may reach beyond the plane, where everything is zero."""


def overlay(target: Tensor, source: Tensor, offset: Corner, add: bool = False) -> None:
    """Write (or add) `source` into `target`, both `[…, h, w]`, where source + offset lies in it."""
    (th, tw), (sh, sw) = target.shape[-2:], source.shape[-2:]
    top, left = max(0, offset[0]), max(0, offset[1])
    bottom, right = min(th, offset[0] + sh), min(tw, offset[1] + sw)
    if bottom <= top or right <= left:
        return
    inner = source[..., top - offset[0] : bottom - offset[0], left - offset[1] : right - offset[1]]
    into = target[..., top:bottom, left:right]
    if add:
        into.add_(inner)
    else:
        into.copy_(inner)


class Read(torch.autograd.Function):
    """P rectangles of a plane `[N, C, H, W]` stacked on the batch, `[P·N, C, h, w]`."""

    @staticmethod
    def forward(ctx, x: Tensor, corners: Sequence[Corner], size: Sequence[int]) -> Tensor:
        ctx.corners, ctx.plane = corners, x.shape[-2:]
        return cut(x, corners, size)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return Put.apply(grad, ctx.corners, ctx.plane), None, None


class Move(torch.autograd.Function):
    """Stacked rectangles `[P·N, C, h, w]`, each read again as another rectangle of its plane.

    Moving by −offset is the adjoint of moving by offset.
    """

    @staticmethod
    def forward(ctx, values: Tensor, offsets: Sequence[Corner], size: Sequence[int]) -> Tensor:
        ctx.offsets, ctx.size = offsets, values.shape[-2:]
        moved = values.new_zeros((*values.shape[:2], *size))
        chunks = zip(moved.chunk(len(offsets)), values.chunk(len(offsets)), offsets, strict=True)
        for target, source, offset in chunks:
            overlay(target, source, offset)
        return moved

    @staticmethod
    def backward(ctx, grad: Tensor):
        return Move.apply(grad, [(-r, -c) for r, c in ctx.offsets], ctx.size), None, None


class Put(torch.autograd.Function):
    """Stacked rectangles `[P·N, C, h, w]`, which do not overlap, in a zero plane `[N, C, H, W]`."""

    @staticmethod
    def forward(ctx, values: Tensor, corners: Sequence[Corner], size: Sequence[int]) -> Tensor:
        ctx.corners, ctx.window = corners, values.shape[-2:]
        x = values.new_zeros((len(values) // len(corners), values.shape[1], *size))
        paste(x, values, corners, add=False)
        return x

    @staticmethod
    def backward(ctx, grad: Tensor):
        return Read.apply(grad, ctx.corners, ctx.window), None, None


def cut(x: Tensor, corners: Sequence[Corner], size: Sequence[int]) -> Tensor:
    """P rectangles of `[N, C, H, W]` stacked on the batch, zero beyond the plane."""
    (height, width), (h, w) = x.shape[-2:], size
    within = all(0 <= r <= height - h and 0 <= c <= width - w for r, c in corners)
    shape = (len(corners) * len(x), x.shape[1], h, w)
    stacked = x.new_empty(shape) if within else x.new_zeros(shape)
    for (top, left), target in zip(corners, stacked.chunk(len(corners)), strict=True):
        overlay(target, x, (-top, -left))
    return stacked


def paste(x: Tensor, values: Tensor, corners: Sequence[Corner], add: bool) -> None:
    """Write or add P stacked rectangles into `x` `[N, C, H, W]`, in place."""
    for corner, source in zip(corners, values.chunk(len(corners)), strict=True):
        overlay(x, source, corner, add)


class Inside(torch.autograd.Function):
    """A plane inside the windows of several groups at once: its gradient is gathered in place."""

    @staticmethod
    def forward(ctx, x: Tensor, places: Sequence[tuple[Sequence[Corner], Sequence[int]]]):
        ctx.places, ctx.like = places, (x.shape, x.dtype, x.device)
        return tuple(cut(x, *place) for place in places)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        shape, dtype, device = ctx.like
        gathered = torch.zeros(shape, dtype=dtype, device=device)
        for group, (grad, (corners, _)) in enumerate(zip(grads, ctx.places, strict=True)):
            paste(gathered, grad, corners, add=group > 0)
        return gathered, None
