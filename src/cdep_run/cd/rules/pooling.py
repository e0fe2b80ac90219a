"""Pooling: max pooling reads both parts where the total is largest; averages are linear."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cdep_run.cd import windows
from cdep_run.cd.pair import Pair
from cdep_run.cd.registry import register_rule
from cdep_run.cd.rules.shapes import moves
from cdep_run.cd.windows import Windows


def _dims(func) -> int:
    """2 for `max_pool2d`, `fractional_max_pool2d_with_indices`, …"""
    return int(func.__name__.removesuffix("_with_indices")[-2])


def _read_at(indices, dims):
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
        by_x = torch.ops.aten.max_pool2d_with_indices_backward
        return by_x(grad, x, *ctx.args, indices), *(None for _ in ctx.args)


FEW_CHANNELS = 4
"""With so many channels, or fewer, nothing is gained by having them last."""


def _max_pool2d(x: Tensor, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False):
    """`F.max_pool2d` with indices, the faster way."""
    args = (kernel_size, stride or kernel_size, padding, dilation, ceil_mode)
    if x.dim() == 4 and x.is_cpu and x.is_contiguous() and x.shape[1] > FEW_CHANNELS:
        return windows.run(_ChannelsLast, x, *args)
    return F.max_pool2d_with_indices(x, *args)


@register_rule(*(f"max_pool{d}d{suffix}" for d in (1, 2, 3) for suffix in ("", "_with_indices")))
def max_pool(func, x, *args, **kwargs):
    """The position is chosen by β + γ; both parts are read there. Source: ACD."""
    dims = _dims(func)
    return_indices = kwargs.pop("return_indices", False) or "_with_indices" in func.__name__
    with_indices = _max_pool2d if dims == 2 else getattr(F, f"max_pool{dims}d_with_indices")
    total, indices = with_indices(x.total, *args, **kwargs)
    read_dense = _read_at(indices, dims)

    def read(part):
        if isinstance(part, Windows) and dims == 2:
            return windows.max_pool2d(part, indices, *args, **kwargs)
        return read_dense(part.dense() if isinstance(part, Windows) else part)

    result = Pair(total, tuple(read(part) for part in x.parts))
    return (result, indices) if return_indices else result


@register_rule(
    *(f"adaptive_max_pool{d}d_with_indices" for d in (1, 2, 3)),
    *(f"fractional_max_pool{d}d_with_indices" for d in (2, 3)),
)
def max_pool_with_indices(func, x, *args, **kwargs):
    """As `max_pool`; returns the chosen positions too."""
    kwargs.pop("return_indices", None)
    total, indices = func(x.total, *args, **kwargs)
    return x.map(total, _read_at(indices, _dims(func))), indices


@register_rule(
    *(f"adaptive_max_pool{d}d" for d in (1, 2, 3)), *(f"fractional_max_pool{d}d" for d in (2, 3))
)
def other_max_pool(func, x, *args, **kwargs):
    """As `max_pool`."""
    with_indices = getattr(F, f"{func.__name__.removeprefix('_')}_with_indices")
    if kwargs.pop("return_indices", False):
        return with_indices(x, *args, **kwargs)
    return with_indices(x, *args, **kwargs)[0]


register_rule(
    *(f"{kind}_pool{d}d" for kind in ("avg", "adaptive_avg") for d in (1, 2, 3)),
)(moves)
