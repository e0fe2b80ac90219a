"""Pooling: max pooling reads both parts where the total is largest; averages are linear."""

from __future__ import annotations

import torch.nn.functional as F

from cdep_run.cd import windows
from cdep_run.cd.pair import Pair
from cdep_run.cd.registry import register_rule
from cdep_run.cd.rules.shapes import moves
from cdep_run.cd.windows import Windows


@register_rule("max_pool1d", "max_pool2d", "max_pool3d")
def max_pool(func, x, *args, **kwargs):
    """The position is chosen by β + γ; both parts are read there. Source: ACD."""
    dims = int(func.__name__[-2])
    kwargs.pop("return_indices", None)
    with_indices = getattr(F, f"max_pool{dims}d_with_indices")
    total, indices = with_indices(x.total, *args, **kwargs)

    def read(part):
        if isinstance(part, Windows) and dims == 2:
            inside = windows.max_pool2d(part, x.total, total.shape[-2:], *args, **kwargs)
            if inside is not None:
                return inside
        part = part.dense() if isinstance(part, Windows) else part
        return part.flatten(-dims).gather(-1, indices.flatten(-dims)).view_as(indices)

    return Pair(total, tuple(read(part) for part in x.parts))


register_rule(
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
)(moves)
