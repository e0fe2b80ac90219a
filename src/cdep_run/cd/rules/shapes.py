"""Ops that move or average data, on both parts alike, and ops that only read the total."""

from __future__ import annotations

import torch
from torch import Tensor

from cdep_run.cd.pair import Pair, total_of
from cdep_run.cd.registry import register_rule


def moves(func, x, *args, **kwargs):
    """f is linear without a constant: β' = f(β), γ' = f(γ)."""
    total = func(x.total, *args, **kwargs)
    if isinstance(total, (tuple, list)):
        columns = zip(*(func(part, *args, **kwargs) for part in x.dense()), strict=True)
        return tuple(_view(x, Pair(t, parts)) for t, parts in zip(total, columns, strict=True))
    return _view(x, x.map(total, lambda rel: func(rel, *args, **kwargs)))


def _view(x: Pair, result: Pair) -> Pair:
    """Mark both as sharing memory if they do, so that a later in-place write reaches both."""
    if result.total._is_view() or result.total.data_ptr() == x.total.data_ptr():
        x._aliased = result._aliased = True
    return result


register_rule(
    "flatten",
    "reshape",
    "view",
    "permute",
    "transpose",
    "squeeze",
    "unsqueeze",
    "contiguous",
    "chunk",
    "split",
    "expand",
    "movedim",
    "roll",
    "flip",
    "unflatten",
    "narrow",
    "t",
    torch.Tensor.__getitem__,
    torch.Tensor.T.__get__,
    torch.Tensor.mT.__get__,
    "clone",
    "detach",
    "sum",
    "mean",
)(moves)


@register_rule("cat", "concat", "concatenate", "stack")
def joins(func, tensors, *args, **kwargs):
    """Concatenation: part by part; a tensor that was not decomposed is irrelevant."""
    total = func(total_of(tensors), *args, **kwargs)
    groups = len(next(t for t in tensors if isinstance(t, Pair)).parts)
    columns = [
        tuple(t.dense()) if isinstance(t, Pair) else (torch.zeros_like(t),) * groups
        for t in tensors
    ]
    return Pair(total, tuple(func(parts, *args, **kwargs) for parts in zip(*columns, strict=True)))


def reads(func, *args, **kwargs):
    """Sizes, types, comparisons and Python numbers are those of the total, without a pair."""
    return func(*total_of(args), **total_of(kwargs))


register_rule(
    "size",
    "dim",
    "numel",
    "is_floating_point",
    "is_complex",
    "stride",
    "is_contiguous",
    "zeros_like",
    "ones_like",
    "new_zeros",
    "new_ones",
    "item",
    "argmax",
    "gt",
    "ge",
    "lt",
    "le",
    "eq",
    "ne",
    "isnan",
    "isfinite",
    Tensor.__len__,
    Tensor.__bool__,
    Tensor.__float__,
    Tensor.__int__,
    Tensor.__index__,
    *(
        vars(torch._C.TensorBase)[name].__get__
        for name in (
            "shape",
            "ndim",
            "dtype",
            "device",
            "layout",
            "is_cuda",
            "requires_grad",
            "is_sparse",
            "is_quantized",
            "is_mkldnn",
        )
    ),
)(reads)
