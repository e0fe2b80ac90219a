"""Convolution of windows: only the outputs that can differ from zero are computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from cdep_run.cd.kernels.autograd import run
from cdep_run.cd.kernels.geometry import Geometry, both_ways, place, spans_of
from cdep_run.cd.kernels.rectangles import Corner, Read, Rectangle, cut
from cdep_run.cd.kernels.windows import Windows


def _readings(
    windows: Windows, corners: Sequence[Corner], size: tuple[int, int], geometry: Geometry
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
    geometry: Geometry,
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
    geometry: Geometry,
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
    offset: Corner, inputs: tuple[int, int], outputs: tuple[int, int], geometry: Geometry
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
    windows = windows.evaluated
    h, w = windows.values.shape[-2:]
    if padding == "valid":
        padding = 0
    full = lambda: F.conv2d(windows.dense(), weight, None, stride, padding, dilation, groups)  # noqa: E731
    if isinstance(padding, str):
        return full()
    geometry = Geometry(
        (weight.shape[-2], weight.shape[-1]),
        both_ways(stride),
        both_ways(padding),
        both_ways(dilation),
    )
    out_size = (geometry.whole(0, windows.size[0]), geometry.whole(1, windows.size[1]))
    if min(out_size) < 1 or windows.values.shape[1] != weight.shape[1] * groups:
        return full()  # which says what is wrong
    placed = place(geometry.spans(windows.corners, windows.values.shape[-2:], out_size), out_size)
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
    placed = place(spans_of(boxes), size)
    if placed is None or isinstance(padding, str) or groups != 1:
        return None
    corners, extent = placed
    geometry = Geometry(
        (weight.shape[-2], weight.shape[-1]),
        both_ways(stride),
        both_ways(padding),
        both_ways(dilation),
    )

    def gradient(after: Tensor) -> Tensor:
        spans = geometry.spans(corners, extent, after.shape[-2:])
        height, width = (max(span[axis][1] - span[axis][0] for span in spans) for axis in (0, 1))
        starts = [(rows[0], columns[0]) for rows, columns in spans]
        seen = (geometry.seen(0, height), geometry.seen(1, width))
        kernel = weight.to(after.dtype).flatten(1).t()
        taps = kernel @ run(Read, after, starts, (height, width)).flatten(2)
        values = F.fold(taps, seen, geometry.kernel, geometry.dilation, 0, geometry.stride)
        firsts = tuple(geometry.first_input(start) for start in starts)
        around = Windows(values, firsts, (size[0], size[1]))
        inside = around.read([(*corner, *extent) for corner in corners])
        return Windows(inside, corners, around.size).dense()

    return gradient
