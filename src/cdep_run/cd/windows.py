"""Relevant parts that are zero outside a few rectangles, and convolution and pooling inside them.

A corner patch or a single pixel reaches only a small part of the first layers. There only the
rectangles that can differ from zero are computed. Where they would overlap, or an op has no rule
for them, the part becomes an ordinary tensor again; the result is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Corner = tuple[int, int]


Rectangle = tuple[int, int, int, int]
"""Top, left, height, width; may reach beyond the plane, where everything is zero."""


class _Unsaved:
    """Stands in for the context of a function whose backward pass nobody will ask for."""

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        """Nothing is kept."""

    def set_materialize_grads(self, value: bool) -> None:
        """There will be no gradients."""


def run(function: type[torch.autograd.Function], *args: Any) -> Any:
    """`function.apply(*args)`; without gradients its forward alone.

    The way through autograd takes as long as the work itself where the tensors are small.
    """
    return function.apply(*args) if torch.is_grad_enabled() else function.forward(_Unsaved(), *args)


def _overlay(target: Tensor, source: Tensor, offset: Corner, add: bool = False) -> None:
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


class _Read(torch.autograd.Function):
    """P rectangles of a plane `[N, C, H, W]` stacked on the batch, `[P·N, C, h, w]`."""

    @staticmethod
    def forward(ctx, x: Tensor, corners: Sequence[Corner], size: Sequence[int]) -> Tensor:
        ctx.corners, ctx.plane = corners, x.shape[-2:]
        return cut(x, corners, size)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return _Put.apply(grad, ctx.corners, ctx.plane), None, None


class _Move(torch.autograd.Function):
    """Stacked rectangles `[P·N, C, h, w]`, each read again as another rectangle of its plane.

    Moving by −offset is the adjoint of moving by offset.
    """

    @staticmethod
    def forward(ctx, values: Tensor, offsets: Sequence[Corner], size: Sequence[int]) -> Tensor:
        ctx.offsets, ctx.size = offsets, values.shape[-2:]
        moved = values.new_zeros((*values.shape[:2], *size))
        chunks = zip(moved.chunk(len(offsets)), values.chunk(len(offsets)), offsets, strict=True)
        for target, source, offset in chunks:
            _overlay(target, source, offset)
        return moved

    @staticmethod
    def backward(ctx, grad: Tensor):
        return _Move.apply(grad, [(-r, -c) for r, c in ctx.offsets], ctx.size), None, None


class _Put(torch.autograd.Function):
    """Stacked rectangles `[P·N, C, h, w]`, which do not overlap, in a zero plane `[N, C, H, W]`."""

    @staticmethod
    def forward(ctx, values: Tensor, corners: Sequence[Corner], size: Sequence[int]) -> Tensor:
        ctx.corners, ctx.window = corners, values.shape[-2:]
        x = values.new_zeros((len(values) // len(corners), values.shape[1], *size))
        paste(x, values, corners, add=False)
        return x

    @staticmethod
    def backward(ctx, grad: Tensor):
        return _Read.apply(grad, ctx.corners, ctx.window), None, None


def cut(x: Tensor, corners: Sequence[Corner], size: Sequence[int]) -> Tensor:
    """P rectangles of `[N, C, H, W]` stacked on the batch, zero beyond the plane."""
    (height, width), (h, w) = x.shape[-2:], size
    within = all(0 <= r <= height - h and 0 <= c <= width - w for r, c in corners)
    shape = (len(corners) * len(x), x.shape[1], h, w)
    stacked = x.new_empty(shape) if within else x.new_zeros(shape)
    for (top, left), target in zip(corners, stacked.chunk(len(corners)), strict=True):
        _overlay(target, x, (-top, -left))
    return stacked


def paste(x: Tensor, values: Tensor, corners: Sequence[Corner], add: bool) -> None:
    """Write or add P stacked rectangles into `x` `[N, C, H, W]`, in place."""
    for corner, source in zip(corners, values.chunk(len(corners)), strict=True):
        _overlay(x, source, corner, add)


class _Inside(torch.autograd.Function):
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


class Totals:
    """A total `[N, C, H, W]`, read when it is asked for, for all groups at once."""

    def __init__(self, x: Tensor, places: Sequence[tuple[Sequence[Corner], Sequence[int]]]):
        self.x, self.places = x, places
        self.pooled: tuple[Tensor, Tensor] | None = None

    @cached_property
    def inside(self) -> tuple[Tensor, ...]:
        """What it holds in the windows of each group."""
        return run(_Inside, self.x, self.places)

    def keep(self) -> None:
        """Read a copy from now on: ops in place may write into the total."""
        with torch.enable_grad():  # as it was when the reading was put off
            self.x = self.x.clone()

    def at(self, indices: Tensor) -> Tensor:
        """What it holds where max pooling chose, `[N, C, H', W']`."""
        if self.pooled is None or self.pooled[0] is not indices:
            values = self.x.flatten(2).gather(2, indices.flatten(2)).view_as(indices)
            self.pooled = indices, values
        return self.pooled[1]


Total = Callable[[Tensor], Tensor]
Relevant = Callable[[Tensor, Tensor, Tensor], Tensor]
Elementwise = tuple[Total, Relevant]
"""An elementwise op: of the total, and of a part, given the total before and after it."""

Spans = Sequence[tuple[tuple[int, int], tuple[int, int]]]
"""For each rectangle the half-open row range and column range."""

WORTHWHILE = 0.6
"""Windows that cover more than this share of the plane cost more than they save."""


def _place(spans: Spans, size: Sequence[int]) -> tuple[tuple[Corner, ...], tuple[int, int]] | None:
    """Corners and the one size of windows that hold `spans`.

    None where they overlap or cover more than is worth while.
    """
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


def _spans(boxes: Sequence[Rectangle]) -> Spans:
    """The spans of boxes (top, bottom, left, right)."""
    return [((top, bottom), (left, right)) for top, bottom, left, right in boxes]


@dataclass(frozen=True)
class Windows:
    """A part of an activation `[N, C, H, W]` that is zero outside P rectangles of one size h × w.

    Elementwise ops wait until the values are asked for: max pooling, which comes after them in most
    nets, leaves few places where they are needed.

    Attributes:
        values: `[P·N, C, h, w]`, the rectangles stacked on the batch dimension.
        corners: top and left of each rectangle; they do not overlap.
        size: (H, W) of the whole activation.
        total: what the total holds in the rectangles, `[P·N, C, h, w]`, or where to read it and the
            number of the group there; None if nobody has asked for it.
        waiting: ops still to be done, as for `Pair.apply`; `total` too is from before them.
    """

    values: Tensor
    corners: tuple[Corner, ...]
    size: tuple[int, int]
    total: Tensor | tuple[Totals, int] | None = None
    waiting: tuple[Elementwise, ...] = ()

    @classmethod
    def of_input(cls, x: Tensor, mask: Tensor, boxes: Sequence[Rectangle]) -> Windows | None:
        """The windows of x ⊙ mask at `boxes`; None where windows would not pay.

        Args:
            x: `[N, C, H, W]`; mask: `[N or 1, C or 1, H, W]`.
            boxes: (top, bottom, left, right); several sizes are widened to the largest one.
        """
        size = (x.shape[-2], x.shape[-1])
        placed = _place(_spans(boxes), size)
        if placed is None:
            return None
        inside = cut(mask.expand(len(x), *mask.shape[1:]), *placed)
        return cls(run(_Read, x, *placed) * inside, placed[0], size)

    def apply(self, fn: Total, part: Relevant) -> Windows:
        """The windows after an elementwise op, as in `Pair.apply`; their `total` is known."""
        if torch.is_grad_enabled():
            return replace(self, waiting=(*self.waiting, (fn, part)))
        return self.settled._after(fn, part)  # what comes later may want gradients again

    @cached_property
    def settled(self) -> Windows:
        """The same windows with nothing waiting."""
        done = replace(self, waiting=()) if self.waiting else self
        with torch.enable_grad():  # as it was when they were put off
            for fn, part in self.waiting:
                done = done._after(fn, part)
        return done

    def _after(self, fn: Total, part: Relevant) -> Windows:
        before = self.total_inside
        assert before is not None
        total = fn(before)
        return replace(self, values=part(self.values, before, total), total=total)

    @property
    def total_inside(self) -> Tensor | None:
        """What the total holds in the rectangles, `[P·N, C, h, w]`, if anybody has asked for it."""
        if isinstance(self.total, tuple):
            totals, group = self.total
            return totals.inside[group]
        return self.total

    def dense(self) -> Tensor:
        """The ordinary tensor `[N, C, H, W]`, to be read alone: it may be the values themselves."""
        if self.values.shape[-2:] == self.size and self.corners == ((0, 0),):
            return self.settled.values
        return run(_Put, self.settled.values, self.corners, self.size)

    def read(self, rectangles: Sequence[Rectangle]) -> Tensor:
        """One rectangle of the plane for each window, `[P·N, C, height, width]`.

        Each holds its own window only; the rectangles are of one size.
        """
        offsets = [
            (top - r, left - c)
            for (top, left), (r, c, *_) in zip(self.corners, rectangles, strict=True)
        ]
        return run(_Move, self.values, offsets, rectangles[0][2:])


def pad(windows: Windows, left: int, right: int, top: int, bottom: int) -> Windows:
    """The same rectangles on a plane with more zeros around it."""
    corners = tuple((row + top, column + left) for row, column in windows.corners)
    height, width = windows.size
    values = windows.settled.values
    return Windows(values, corners, (height + top + bottom, width + left + right))


def combine(
    func: Callable[[Tensor, Tensor], Tensor], one: Windows, other: Windows
) -> Windows | None:
    """`func`, a sum or difference, of two parts of one plane, such as at a residual link.

    Returns:
        Windows around each rectangle of `one` and the one of `other` of the same number, or None
        where there are not as many, or they would overlap or cover most of the plane.
    """
    if len(one.corners) != len(other.corners) or one.size != other.size:
        return None
    sizes = one.values.shape[-2:], other.values.shape[-2:]
    spans = [
        tuple((min(a[k], b[k]), max(a[k] + sizes[0][k], b[k] + sizes[1][k])) for k in (0, 1))
        for a, b in zip(one.corners, other.corners, strict=True)
    ]
    placed = _place(spans, one.size)  # type: ignore[arg-type]
    if placed is None:
        return None
    corners, size = placed
    rectangles = [(*corner, *size) for corner in corners]
    one_there, other_there = (part.settled.read(rectangles) for part in (one, other))
    return Windows(func(one_there, other_there), corners, one.size)


def with_totals(
    x: Tensor, parts: Sequence[Tensor | Windows]
) -> tuple[Totals | None, Sequence[Tensor | Windows]]:
    """The parts, the windows among them able to read what the total `x` `[N, C, H, W]` holds.

    Those that were not before read it through the `Totals` that comes first, if there are any.
    """
    unread = [k for k, part in enumerate(parts) if isinstance(part, Windows) and part.total is None]
    if not unread:
        return None, parts
    known: list[Any] = list(parts)
    totals = Totals(x, [(known[k].corners, known[k].values.shape[-2:]) for k in unread])
    for number, k in enumerate(unread):
        known[k] = replace(known[k], total=(totals, number))
    return totals, known


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

    def first_input(self, output: Corner) -> Corner:
        """The first input that an output sees; negative inside the padding."""
        return (
            output[0] * self.stride[0] - self.padding[0],
            output[1] * self.stride[1] - self.padding[1],
        )

    def whole(self, axis: int, inputs: int) -> int:
        """How many outputs a plane of so many inputs has."""
        room = inputs + 2 * self.padding[axis] - self.reach(axis) - 1
        return room // self.stride[axis] + 1

    def seen(self, axis: int, outputs: int) -> int:
        """How many inputs so many neighbouring outputs see."""
        return (outputs - 1) * self.stride[axis] + self.reach(axis) + 1

    def spans(self, corners: Sequence[Corner], extent: Sequence[int], size: Sequence[int]) -> Spans:
        """The outputs, of `size` in all, that see something of the rectangles of one `extent`."""
        h, w = extent
        return [
            (self.outputs(0, top, top + h, size[0]), self.outputs(1, left, left + w, size[1]))
            for top, left in corners
        ]


def _readings(
    windows: Windows, corners: Sequence[Corner], size: tuple[int, int], geometry: _Geometry
) -> list[tuple[Windows, Rectangle, tuple[slice, slice]]]:
    """How to convolve windows into outputs at `corners`: stacks of windows, inputs, kernel taps.

    Without stride and dilation most taps of an output near a window's edge meet zeros only. They
    are left out, and windows that need the same taps go together.
    """
    plain = geometry.stride == (1, 1) == geometry.dilation
    readings = []
    for (top, left), corner, values in zip(
        windows.corners, corners, windows.values.chunk(len(corners)), strict=True
    ):
        start = geometry.first_input(corner)
        taps, rectangle = [], []
        for axis, window_start in enumerate((top, left)):
            kernel, extent = geometry.kernel[axis], windows.values.shape[axis - 2]
            first = max(0, window_start - start[axis] - size[axis] + 1) if plain else 0
            last = min(kernel, window_start - start[axis] + extent) if plain else kernel
            first = min(first, kernel - 1)
            last = max(last, first + 1)
            taps.append((first, last))
            unused = (kernel - (last - first)) * geometry.dilation[axis]
            rectangle.append((start[axis] + first, geometry.seen(axis, size[axis]) - unused))
        ((r, height), (c, width)) = rectangle
        readings.append(
            (
                Windows(values, ((top - r, left - c),), windows.size),
                (0, 0, height, width),
                (slice(*taps[0]), slice(*taps[1])),
            )
        )
    if all(reading[1:] == readings[0][1:] for reading in readings):
        offsets = tuple(reading[0].corners[0] for reading in readings)
        readings = [(Windows(windows.values, offsets, windows.size), *readings[0][1:])]
    return readings


MATRIX_SIZE = 1 << 12
"""Windows no larger than the kernel are convolved by a matrix product, unless the matrix has more
than so many entries for each example: then it takes longer to write down than to convolve."""


def _multiply(
    values: Tensor,
    weight: Tensor,
    offsets: tuple[Corner, ...],
    size: tuple[int, int],
    geometry: _Geometry,
) -> Tensor:
    """Convolution of windows as the matrix product that it is: small ones are sooner done.

    Args:
        values: `[P·N, Cin, h, w]`.
        weight: `[Cout, Cin, kh, kw]`.
        offsets: row and column of each window, from the first input that its first output sees.
        size: height and width of the outputs.

    Returns:
        `[P·N, Cout, *size]`.
    """
    if len(set(offsets)) == 1:  # one matrix for all
        offsets = offsets[:1]
    extent = (values.shape[-2], values.shape[-1])
    rows = _rows(offsets, values.shape[1], extent, size, geometry, values.device)
    by_tap = F.pad(weight.flatten(2).permute(2, 1, 0), (0, 0, 0, 0, 0, 1))  # the last tap is 0
    matrices = by_tap.flatten(0, 1).index_select(0, rows)
    stacks = values.reshape(len(offsets), -1, values[0].numel())
    product = stacks @ matrices.view(len(offsets), stacks.shape[-1], -1)
    by_channel = product.view(len(values), -1, len(weight)).transpose(1, 2)
    return by_channel.unflatten(2, size).contiguous()


@lru_cache(maxsize=256)
def _rows(
    offsets: tuple[Corner, ...],
    channels: int,
    inputs: tuple[int, int],
    outputs: tuple[int, int],
    geometry: _Geometry,
    device: torch.device,
) -> Tensor:
    """Which row of the kernel, tap · channels + channel, joins an input to an output.

    Flattened `[P, channels, inputs, outputs]`. Where none does the tap is the number of taps. Kept,
    so that a GPU gets it once.
    """
    taps = torch.stack([_taps(offset, inputs, outputs, geometry) for offset in offsets])
    channel = torch.arange(channels)[:, None, None]
    return (taps[:, None] * channels + channel).flatten().to(device)


def _taps(
    offset: Corner, inputs: tuple[int, int], outputs: tuple[int, int], geometry: _Geometry
) -> Tensor:
    """Which entry of the flattened kernel joins an input to an output, `[inputs, outputs]`.

    Where none does it is the number of entries.
    """
    joined = []
    for axis in (0, 1):
        first = torch.arange(offset[axis], offset[axis] + inputs[axis])[:, None]
        distance = first - geometry.stride[axis] * torch.arange(outputs[axis])
        tap = distance.div(geometry.dilation[axis], rounding_mode="floor")
        fits = (tap * geometry.dilation[axis] == distance) & (tap >= 0)
        joined.append(torch.where(fits & (tap < geometry.kernel[axis]), tap, -1))
    rows, columns = joined[0][:, None, :, None], joined[1][None, :, None, :]
    taps = torch.where(
        (rows >= 0) & (columns >= 0),
        rows * geometry.kernel[1] + columns,
        geometry.kernel[0] * geometry.kernel[1],
    )
    return taps.flatten(2).flatten(0, 1)


def _pair(value) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def conv2d(
    windows: Windows,
    whole: Tensor,
    weight: Tensor,
    stride=1,
    padding=0,
    dilation=1,
    groups: int = 1,
) -> Windows | Tensor:
    """Convolution without bias of windows: the same numbers as on the whole plane.

    Args:
        windows: parts of `[N, Cin, H, W]`.
        whole: the total, `[N, Cin, H, W]`. Where it is a constant, the input of the model, its
            convolution is found inside the windows once more: that takes less than to send a
            gradient from there into the whole plane.
        weight: `[Cout, Cin / groups, kh, kw]`; the other arguments as in `F.conv2d`.

    Returns:
        The windows of the output that can differ from zero, or the whole output `[N, Cout, H', W']`
        where they overlap or cover most of it.
    """
    windows = windows.settled
    h, w = windows.values.shape[-2:]
    if padding == "valid":
        padding = 0
    full = lambda: F.conv2d(windows.dense(), weight, None, stride, padding, dilation, groups)  # noqa: E731
    if isinstance(padding, str):
        return full()
    geometry = _Geometry(
        (weight.shape[-2], weight.shape[-1]), _pair(stride), _pair(padding), _pair(dilation)
    )
    out_size = (geometry.whole(0, windows.size[0]), geometry.whole(1, windows.size[1]))
    if min(out_size) < 1 or windows.values.shape[1] != weight.shape[1] * groups:
        return full()  # which says what is wrong
    placed = _place(geometry.spans(windows.corners, windows.values.shape[-2:], out_size), out_size)
    corners, (oh, ow) = placed or (((0, 0),), out_size)
    entries = windows.values[0].numel() * len(weight) * oh * ow * len(corners)
    starts = [geometry.first_input(corner) for corner in corners]
    if (
        groups == 1
        and len(corners) == len(windows.corners)
        and h * w <= geometry.kernel[0] * geometry.kernel[1]
        and entries <= MATRIX_SIZE * len(windows.values)
    ):
        offsets = tuple(
            (r - top, c - left) for (r, c), (top, left) in zip(windows.corners, starts, strict=True)
        )
        values = _multiply(windows.values, weight, offsets, (oh, ow), geometry)
        if placed is None:
            return values
    elif placed is None:
        return full()
    else:
        values = torch.cat(
            [
                F.conv2d(
                    stack.read([rectangle] * len(stack.corners)),
                    weight[..., rows, columns],
                    None,
                    stride,
                    0,
                    dilation,
                    groups,
                )
                for stack, rectangle, (rows, columns) in _readings(
                    windows, corners, (oh, ow), geometry
                )
            ]
        )
    total = None
    if torch.is_grad_enabled() and not whole.requires_grad:
        around = cut(whole, starts, (geometry.seen(0, oh), geometry.seen(1, ow)))
        total = F.conv2d(around, weight, None, stride, 0, dilation, groups)
    return Windows(values, corners, out_size, total)


def adjoint(
    size: Sequence[int],
    boxes: Sequence[Rectangle],
    weight: Tensor,
    stride=1,
    padding=0,
    dilation=1,
    groups: int = 1,
) -> Callable[[Tensor], Tensor] | None:
    """The input gradient of a convolution inside some boxes, as a function of the output gradient.

    Args:
        size: height and width of the input.
        boxes: (top, bottom, left, right).
        weight: `[Cout, Cin, kh, kw]`; the other arguments as in `F.conv2d`.

    Returns:
        A function from `[N, Cout, H', W']` to `[N, Cin, H, W]`, 0 outside the boxes; None where it
        would not pay.
    """
    placed = _place(_spans(boxes), size)
    if placed is None or isinstance(padding, str) or groups != 1:
        return None
    corners, extent = placed
    geometry = _Geometry(
        (weight.shape[-2], weight.shape[-1]), _pair(stride), _pair(padding), _pair(dilation)
    )

    def gradient(after: Tensor) -> Tensor:
        spans = geometry.spans(corners, extent, after.shape[-2:])
        height, width = (max(span[axis][1] - span[axis][0] for span in spans) for axis in (0, 1))
        starts = [(rows[0], columns[0]) for rows, columns in spans]
        seen = (geometry.seen(0, height), geometry.seen(1, width))
        kernel = weight.to(after.dtype).flatten(1).t()
        taps = kernel @ run(_Read, after, starts, (height, width)).flatten(2)
        values = F.fold(taps, seen, geometry.kernel, geometry.dilation, 0, geometry.stride)
        firsts = tuple(geometry.first_input(start) for start in starts)
        around = Windows(values, firsts, (size[0], size[1]))
        inside = around.read([(*corner, *extent) for corner in corners])
        return Windows(inside, corners, around.size).dense()

    return gradient


def max_pool2d(
    windows: Windows,
    indices: Tensor,
    kernel_size,
    stride=None,
    padding=0,
    dilation=1,
    ceil_mode: bool = False,
) -> Windows:
    """The windows' values at the positions that max pooling of the total chose.

    Args:
        windows: parts of `[N, C, H, W]`; elementwise ops that wait do so still.
        indices: int64 `[N, C, H', W']`, the positions in the flattened plane; the other arguments
            as in `F.max_pool2d`.

    Returns:
        Windows of the output; one that is all of it where they would overlap or cover most of it.
    """
    geometry = _Geometry(
        _pair(kernel_size), _pair(stride or kernel_size), _pair(padding), _pair(dilation)
    )
    out_size = (indices.shape[-2], indices.shape[-1])
    if not torch.is_grad_enabled():
        windows = windows.settled
    values, planes = windows.values, indices.shape[0] * indices.shape[1]
    extent = (values.shape[-2], values.shape[-1])
    placed = _place(geometry.spans(windows.corners, extent, out_size), out_size)
    corners, size = placed or (((0, 0),), out_size)
    positions = cut(indices, corners, size) if placed else indices
    entries, inside = _entries(windows.corners, extent, windows.size, planes, positions.device)
    within = inside.index_select(0, positions.flatten()).view_as(positions).to(values.dtype)
    first = torch.arange(planes, device=positions.device)[:, None] * extent[0] * extent[1]
    chosen = entries.index_select(0, positions.flatten()).view(len(corners), planes, -1) + first

    def pick(values: Tensor) -> Tensor:
        return values.flatten().index_select(0, chosen.flatten()).view_as(within)

    # What is picked of the total where nothing is relevant decides nothing.
    if placed is None and isinstance(windows.total, tuple):
        total: Tensor | None = windows.total[0].at(indices)
    else:
        before = windows.total_inside
        total = None if before is None else pick(before)
    return Windows(pick(values) * within, corners, out_size, total, windows.waiting)


@lru_cache(maxsize=256)
def _entries(
    corners: Sequence[Corner],
    extent: Corner,
    size: tuple[int, int],
    planes: int,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """For each place of a flattened plane the entry of the first of P · `planes` stacked windows
    that holds it, and 1; where none does 0 and 0."""
    entries = torch.zeros(size, dtype=torch.long, device=device)
    inside = torch.zeros(size, device=device)
    numbers = torch.arange(extent[0] * extent[1], device=device).view(extent)
    for count, corner in enumerate(corners):
        _overlay(entries, numbers + count * planes * numbers.numel(), corner)
        _overlay(inside, torch.ones_like(numbers), corner)
    return entries.flatten(), inside.flatten()
