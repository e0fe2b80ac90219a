"""Pooling: max pooling reads both parts where the total is largest; averages are linear."""

from __future__ import annotations

import torch.nn.functional as F

from cdep_run.cd.kernels.max_pool import max_pool2d, read_at
from cdep_run.cd.registry import register_rule
from cdep_run.cd.rules.shapes import moves


def _dims(func) -> int:
    """2 for `max_pool2d`, `fractional_max_pool2d_with_indices`, …"""
    return int(func.__name__.removesuffix("_with_indices")[-2])


@register_rule(*(f"max_pool{d}d{suffix}" for d in (1, 2, 3) for suffix in ("", "_with_indices")))
def max_pool(func, x, *args, **kwargs):
    """β' = β where β + γ is largest, and so γ' = γ there. Source: Singh et al. 2019 (ACD)."""
    return_indices = kwargs.pop("return_indices", False) or "_with_indices" in func.__name__
    if _dims(func) == 2:
        result, indices = max_pool2d(x, *args, **kwargs)
    else:
        with_indices = getattr(F, f"max_pool{_dims(func)}d_with_indices")
        total, indices = with_indices(x.total, *args, **kwargs)
        result = x.map(total, read_at(indices, _dims(func)))
    return (result, indices) if return_indices else result


@register_rule(
    *(f"adaptive_max_pool{d}d_with_indices" for d in (1, 2, 3)),
    *(f"fractional_max_pool{d}d_with_indices" for d in (2, 3)),
)
def max_pool_with_indices(func, x, *args, **kwargs):
    """As `max_pool`; returns the chosen positions too."""
    kwargs.pop("return_indices", None)
    total, indices = func(x.total, *args, **kwargs)
    return x.map(total, read_at(indices, _dims(func))), indices


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
