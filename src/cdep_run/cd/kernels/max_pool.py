"""Max pooling: the faster way on a CPU, and inside windows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from cdep_run.cd.kernels.autograd import run
from cdep_run.cd.kernels.geometry import Geometry, both_ways, place
from cdep_run.cd.kernels.rectangles import Corner, cut, overlay
from cdep_run.cd.kernels.windows import Windows
from cdep_run.cd.pair import Pair


class _ChannelsLast(torch.autograd.Function):
    """`F.max_pool2d` with indices, computed with the channels last and returned with them first.

    The CPU kernel for channels first is not vectorised: it takes three times as long, copies
    included.
    """

    @staticmethod
    def forward(ctx, x: Tensor, *args):
        ctx.set_materialize_grads(False)
        last = x.contiguous(memory_format=torch.channels_last)
        total, indices = (t.contiguous() for t in F.max_pool2d_with_indices(last, *args))
        ctx.args = args
        ctx.save_for_backward(x, indices)
        return total, indices

    @staticmethod
    def backward(ctx, grad: Tensor, _):
        x, indices = ctx.saved_tensors
        gradient = torch.ops.aten.max_pool2d_with_indices_backward
        return gradient(grad, x, *ctx.args, indices), *(None for _ in ctx.args)


FEW_CHANNELS = 4
"""With so many channels, or fewer, nothing is gained by having them last."""


def with_indices(x: Tensor, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False):
    """`F.max_pool2d` with indices, the faster way."""
    args = (kernel_size, stride or kernel_size, padding, dilation, ceil_mode)
    if x.dim() == 4 and x.is_cpu and x.is_contiguous() and x.shape[1] > FEW_CHANNELS:
        return run(_ChannelsLast, x, *args)
    return F.max_pool2d_with_indices(x, *args)


def read_at(indices: Tensor, dims: int) -> Callable[[Tensor], Tensor]:
    """The function that reads a part at the positions that the total chose.

    What it returns lies in memory as the total does: elementwise functions round differently in
    another layout, and where the group is everything that would leave a γ that is not 0.
    """
    last = dims == 2 and indices.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format

    def read(part):
        values = part.flatten(-dims).gather(-1, indices.flatten(-dims)).view_as(indices)
        return values.contiguous(memory_format=layout)

    return read


def max_pool2d(x: Pair, *args, **kwargs) -> tuple[Pair, Tensor]:
    """The total's maxima and the parts read at the same positions; and those, int64.

    Args:
        args, kwargs: as of `F.max_pool2d`.
    """
    total, indices = with_indices(x.total, *args, **kwargs)
    read = read_at(indices, 2)
    parts = (
        in_windows(part, indices, *args, **kwargs) if isinstance(part, Windows) else read(part)
        for part in x.parts
    )
    return Pair(total, tuple(parts)), indices


def in_windows(
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
    geometry = Geometry(
        both_ways(kernel_size),
        both_ways(stride or kernel_size),
        both_ways(padding),
        both_ways(dilation),
    )
    out_size = (indices.shape[-2], indices.shape[-1])
    if not torch.is_grad_enabled():
        windows = windows.evaluated
    values, planes = windows.values, indices.shape[0] * indices.shape[1]
    extent = (values.shape[-2], values.shape[-1])
    placed = place(geometry.spans(windows.corners, extent, out_size), out_size)
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
    return Windows(pick(values) * within, corners, out_size, total, windows.deferred)


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
        overlay(entries, numbers + count * planes * numbers.numel(), corner)
        overlay(inside, torch.ones_like(numbers), corner)
    return entries.flatten(), inside.flatten()
