"""Ops that select: the position is chosen by the total, and both parts are read there."""

from __future__ import annotations

import torch

from cdep_run.cd.pair import Pair, total_of
from cdep_run.cd.registry import register_rule
from cdep_run.cd.rules.activations import symmetric_part
from cdep_run.cd.rules.token_ids import or_ids


@register_rule(
    "max",
    "min",
    "median",
    "nanmedian",
    "mode",
    "kthvalue",
    "topk",
    "sort",
    "msort",
    "cummax",
    "cummin",
    "amax",
    "amin",
)
def selects(func, x, *args, **kwargs):
    """Largest, smallest, sorted entries: the parts at the positions that the total chooses.

    Source: max pooling in ACD.
    """
    name = func.__name__
    if name in ("max", "min") and (args or "other" in kwargs):
        other = args[0] if args else kwargs["other"]
        if isinstance(other, torch.Tensor):
            return extremum(func, x, other)
    if name in ("amax", "amin"):
        dims = args[0] if args else kwargs.get("dim", ())
        keep = args[1] if len(args) > 1 else kwargs.get("keepdim", False)
        return _extreme_over(getattr(torch, name[1:]), x, dims, keep)
    result = func(x.total, *args, **kwargs)
    if not isinstance(result, tuple):  # over all entries
        if name == "msort":
            return x.sort(0)[0]
        flat = x.flatten()
        index = getattr(torch, name)(flat.total, 0)[1]
        return flat.gather(0, index.view(1)).squeeze(0)
    values, indices = result
    reduced = values.dim() < x.dim()
    dim = kwargs.get("dim", _dim_argument(name, args))

    def read(rel):
        if reduced:
            return rel.gather(dim, indices.unsqueeze(dim)).squeeze(dim)
        return rel.gather(dim, indices)

    return type(result)((x.map(values, read), indices))


def _dim_argument(name: str, args: tuple):
    place = 1 if name in ("topk", "kthvalue") else 0
    return args[place] if len(args) > place else -1


def _extreme_over(func, x: Pair, dims, keepdim: bool) -> Pair:
    dims = [dims] if isinstance(dims, int) else list(dims) or list(range(x.dim()))
    dims = [d % x.dim() for d in dims]
    rest = [d for d in range(x.dim()) if d not in dims]
    shape = [1 if d in dims else n for d, n in enumerate(x.shape)]
    flat = x.permute(*rest, *dims).flatten(len(rest))
    result = func(flat, -1)[0]
    return result.reshape(shape) if keepdim else result


@register_rule("maximum", "minimum", "fmax", "fmin")
@or_ids
def extremum(func, x, y):
    """The larger (smaller) of two, wherever the total is; ties go to the first.

    Of one and a constant c it is a function of the one, f(x) = max(x, c): by the symmetric rule.
    """
    pair, constant = (x, y) if isinstance(x, Pair) else (y, x)
    if not isinstance(constant, Pair):
        at_zero, total = func(torch.zeros_like(constant), constant), func(pair.total, constant)
        pair = pair.map(pair.total.expand_as(total), lambda rel: rel.expand_as(total))
        g = lambda value: func(value, constant) - at_zero  # noqa: E731
        return pair.map(total, lambda rel: symmetric_part(g, at_zero, rel, pair.total, total))
    larger = total_of(x) >= total_of(y)
    if "min" in func.__name__:
        larger = total_of(x) <= total_of(y)
    return torch.where(larger, x, y)


@register_rule(torch.Tensor.where)
def where_method(func, x, condition, y):
    """x.where(condition, y) is torch.where(condition, x, y)."""
    return torch.where(condition, x, y)


@register_rule(torch.where)
def where(func, condition, x, y):
    """Positions from x or from y; at a constant nothing is relevant."""
    condition, totals = total_of(condition), (total_of(x), total_of(y))
    total = func(condition, *totals)
    groups = len((x if isinstance(x, Pair) else y).parts)
    zero = total.new_zeros(())
    columns = [
        tuple(t.dense())
        if isinstance(t, Pair)
        else (zero.expand_as(t) if isinstance(t, torch.Tensor) else zero,) * groups
        for t in (x, y)
    ]
    return Pair(total, tuple(func(condition, a, b) for a, b in zip(*columns, strict=True)))


@register_rule("masked_fill")
def masked_fill(func, x, mask, value):
    """Filled positions hold a constant there: nothing is relevant."""
    total = func(x.total, mask, total_of(value))
    if isinstance(value, Pair):
        return torch.where(mask, value, x)
    return x.map(total, lambda rel: func(rel, mask, 0))


@register_rule("index_fill")
def index_fill(func, x, dim, index, value):
    """As `masked_fill`."""
    return x.map(func(x.total, dim, index, value), lambda rel: func(rel, dim, index, 0))


@register_rule("aminmax")
def smallest_and_largest(func, x, **kwargs):
    """As `amin` and `amax`."""
    return torch.return_types.aminmax((x.amin(**kwargs), x.amax(**kwargs)))
