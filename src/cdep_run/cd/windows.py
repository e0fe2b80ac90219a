"""Relevant parts that are zero outside a few rectangles, and convolution and pooling inside them.

A corner patch or a single pixel reaches only a small part of the first layers. There only the
rectangles that can differ from zero are computed. Where they would overlap, or an op has no rule
for them, the part becomes an ordinary tensor again; the result is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Corner = tuple[int, int]


class _Take(torch.autograd.Function):
    """Cut P rectangles out of `[N, C, H, W]` and stack them on the batch: `[P·N, C, h, w]`.

    The gradient is one zero tensor with the rectangles put back; P slices would make P of them.
    """

    @staticmethod
    def forward(ctx, x: Tensor, corners: Sequence[Corner], h: int, w: int) -> Tensor:
        ctx.corners, ctx.size = corners, x.shape[-2:]
        return torch.cat([x[:, :, top : top + h, left : left + w] for top, left in corners])

    @staticmethod
    def backward(ctx, grad: Tensor):
        return _Put.apply(grad, ctx.corners, ctx.size), None, None, None


class _Put(torch.autograd.Function):
    """The adjoint of `_Take` for rectangles that do not overlap: zero outside them."""

    @staticmethod
    def forward(ctx, values: Tensor, corners: Sequence[Corner], size: Sequence[int]) -> Tensor:
        ctx.corners, (h, w) = corners, values.shape[-2:]
        ctx.window = (h, w)
        n = values.shape[0] // len(corners)
        x = values.new_zeros((n, values.shape[1], *size))
        for (top, left), window in zip(corners, values.split(n), strict=True):
            x[:, :, top : top + h, left : left + w] = window
        return x

    @staticmethod
    def backward(ctx, grad: Tensor):
        return _Take.apply(grad, ctx.corners, *ctx.window), None, None


Spans = Sequence[tuple[tuple[int, int], tuple[int, int]]]
"""For each rectangle the half-open row range and column range."""

WORTHWHILE = 0.6
"""Windows that cover more than this share of the plane cost more than they save."""


def _place(spans: Spans, size: Sequence[int]) -> tuple[tuple[Corner, ...], tuple[int, int]] | None:
    """Corners and the one size of windows that hold `spans`; None where they would not pay."""
    h, w = (max(span[axis][1] - span[axis][0] for span in spans) for axis in (0, 1))
    corners = tuple((min(r[0], size[0] - h), min(c[0], size[1] - w)) for r, c in spans)
    overlap = any(
        abs(a[0] - b[0]) < h and abs(a[1] - b[1]) < w
        for i, a in enumerate(corners)
        for b in corners[:i]
    )
    if overlap or len(spans) * h * w > WORTHWHILE * size[0] * size[1]:
        return None
    return corners, (h, w)


@dataclass(frozen=True)
class Windows:
    """A part of an activation `[N, C, H, W]` that is zero outside P rectangles of one size h × w.

    Attributes:
        values: `[P·N, C, h, w]`, the rectangles stacked on the batch dimension.
        corners: top and left of each rectangle; they do not overlap.
        size: (H, W) of the whole activation.
    """

    values: Tensor
    corners: tuple[Corner, ...]
    size: tuple[int, int]

    @classmethod
    def cut(cls, x: Tensor, boxes: Sequence[tuple[int, int, int, int]]) -> Windows | None:
        """The windows of `x` `[N, C, H, W]` at `boxes`; None where windows would not pay.

        Boxes (top, bottom, left, right) of several sizes are widened to the largest one.
        """
        spans = [((top, bottom), (left, right)) for top, bottom, left, right in boxes]
        placed = _place(spans, (x.shape[-2], x.shape[-1]))
        if placed is None:
            return None
        corners, (h, w) = placed
        return cls(_Take.apply(x, corners, h, w), corners, (x.shape[-2], x.shape[-1]))

    def take(self, x: Tensor) -> Tensor:
        """What `x` `[N or 1, C, H, W]` holds inside the windows: `[P·N or P, C, h, w]`."""
        return _Take.apply(x, self.corners, *self.values.shape[-2:])

    def map(self, fn: Callable[..., Tensor], *context: Tensor) -> Windows:
        """Windows of `fn(values, *context inside the windows)`; `fn` works element by element."""
        values = fn(self.values, *(self.take(x) for x in context))
        return Windows(values, self.corners, self.size)

    def dense(self) -> Tensor:
        """The ordinary tensor `[N, C, H, W]`."""
        return _Put.apply(self.values, self.corners, self.size)

    def split(self) -> list[Tensor]:
        """The windows one by one, each `[N, C, h, w]`."""
        return list(self.values.chunk(len(self.corners)))


@dataclass(frozen=True)
class _Geometry:
    """Kernel, stride, padding and dilation of a sliding window over two dimensions."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    def reach(self, axis: int) -> int:
        return self.dilation[axis] * (self.kernel[axis] - 1)

    def outputs(self, axis: int, start: int, stop: int, limit: int) -> tuple[int, int]:
        """Outputs in [0, limit) that see an input in [start, stop)."""
        s, p = self.stride[axis], self.padding[axis]
        first = max(0, -(-(start + p - self.reach(axis)) // s))
        last = min(limit - 1, (stop - 1 + p) // s)
        # An input that no output sees (cut off by the stride) still needs a place: an empty reach
        # is widened to one output, where the values are zero.
        first = min(first, limit - 1)
        return first, max(last, first) + 1

    def spans(self, windows: Windows, size: Sequence[int]) -> Spans:
        h, w = windows.values.shape[-2:]
        return [
            (self.outputs(0, top, top + h, size[0]), self.outputs(1, left, left + w, size[1]))
            for top, left in windows.corners
        ]


def _pair(value) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def _embed(windows: Windows, rectangles: Sequence[tuple[int, int, int, int]]) -> Tensor:
    """For each window the content of a rectangle (top, left, height, width) of the plane.

    The rectangles, all of one size, may lie partly or wholly outside window and plane (zero there).
    """
    h, w = windows.values.shape[-2:]
    return torch.cat([
        F.pad(values, (left - c, c + width - left - w, top - r, r + height - top - h))
        for values, (top, left), (r, c, height, width) in zip(
            windows.split(), windows.corners, rectangles, strict=True
        )
    ])


def conv2d(
    windows: Windows, out_size: Sequence[int], weight: Tensor,
    stride=1, padding=0, dilation=1, groups: int = 1,
) -> Windows | Tensor:
    """Convolution without bias of windows: the same numbers as on the whole plane.

    Args:
        windows: parts of `[N, Cin, H, W]`.
        out_size: height and width of the whole output.
        weight: `[Cout, Cin / groups, kh, kw]`; the other arguments as in `F.conv2d`.

    Returns:
        The windows of the output that can differ from zero, or the whole output `[N, Cout, H', W']`
        where they overlap or cover most of it.
    """
    h, w = windows.values.shape[-2:]
    if padding == "valid":
        padding = 0
    full = lambda: F.conv2d(windows.dense(), weight, None, stride, padding, dilation, groups)  # noqa: E731
    if isinstance(padding, str):
        return full()
    geometry = _Geometry(tuple(weight.shape[-2:]), _pair(stride), _pair(padding), _pair(dilation))
    placed = _place(geometry.spans(windows, out_size), out_size)
    scatter = geometry.stride == (1, 1) and groups == 1
    if placed is None:
        if not scatter or len(windows.corners) * h * w > WORTHWHILE * out_size[0] * out_size[1]:
            return full()
        corners, (oh, ow) = ((0, 0),) * len(windows.corners), tuple(out_size)
    else:
        corners, (oh, ow) = placed
    if scatter and h * w < oh * ow:
        # Few inputs, many outputs: spread each input over the outputs that see it. Transposed
        # convolution with the flipped kernel does that, and multiplies no padding.
        spread = F.conv_transpose2d(
            windows.values, weight.flip(-2, -1).transpose(0, 1), dilation=dilation
        )
        tops = [
            tuple(c + geometry.padding[axis] - geometry.reach(axis) for axis, c in enumerate(corner))
            for corner in windows.corners
        ]
        values = _embed(
            Windows(spread, tuple(tops), tuple(out_size)), [(*c, oh, ow) for c in corners]
        )
    else:
        rectangles = [
            tuple(o * s - p for o, s, p in zip(c, geometry.stride, geometry.padding, strict=True))
            + tuple(
                (n - 1) * geometry.stride[axis] + geometry.reach(axis) + 1
                for axis, n in enumerate((oh, ow))
            )
            for c in corners
        ]
        values = F.conv2d(_embed(windows, rectangles), weight, None, stride, 0, dilation, groups)
    if placed is None:
        return torch.stack(values.chunk(len(corners))).sum(0) if len(corners) > 1 else values
    return Windows(values, corners, (out_size[0], out_size[1]))


def max_pool2d(
    windows: Windows, indices: Tensor, kernel_size, stride=None, padding=0, dilation=1
) -> Windows | Tensor:
    """The windows' values at the positions that max pooling of the total chose.

    Args:
        windows: parts of `[N, C, H, W]`.
        indices: int64 `[N, C, H', W']`, positions in the flattened input plane; the other arguments
            as in `F.max_pool2d`.

    Returns:
        Windows of the output, or the whole output where they overlap or cover most of it.
    """
    kernel = _pair(kernel_size)
    geometry = _Geometry(kernel, _pair(stride or kernel), _pair(padding), _pair(dilation))
    placed = _place(geometry.spans(windows, indices.shape[-2:]), indices.shape[-2:])
    if placed is None:
        return windows.dense().flatten(-2).gather(-1, indices.flatten(-2)).view_as(indices)
    corners, (oh, ow) = placed
    h, w = windows.values.shape[-2:]
    picked = []
    chosen = _Take.apply(indices, corners, oh, ow).chunk(len(corners))
    for values, index, (top, left) in zip(windows.split(), chosen, windows.corners, strict=True):
        row, column = index // windows.size[1] - top, index % windows.size[1] - left
        inside = (row >= 0) & (row < h) & (column >= 0) & (column < w)
        flat = (row.clamp(0, h - 1) * w + column.clamp(0, w - 1)).flatten(-2)
        picked.append(values.flatten(-2).gather(-1, flat).view_as(index) * inside)
    return Windows(torch.cat(picked), corners, (indices.shape[-2], indices.shape[-1]))
