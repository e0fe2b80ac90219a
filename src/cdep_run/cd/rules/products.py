"""Sums and products of tensors, either of which may be decomposed."""

from __future__ import annotations

import torch

from cdep_run.cd.pair import Pair, total_of
from cdep_run.cd.registry import MissingRuleError, describe, register_rule
from cdep_run.cd.rules.linear import share_bias


@register_rule("add", "sub", torch.Tensor.__add__, torch.Tensor.__radd__, torch.Tensor.__sub__)
def adds(func, x, y, **kwargs):
    """a ± b: part by part. A constant has no part of its own: it is shared out like a bias."""
    total = func(total_of(x), total_of(y), **kwargs)
    if isinstance(x, Pair) and isinstance(y, Pair):
        return Pair(
            total, tuple(func(a, b, **kwargs) for a, b in zip(x.dense(), y.dense(), strict=True))
        )
    pair, constant = (x, y) if isinstance(x, Pair) else (y, x)
    zero = torch.zeros_like(pair.total)
    bias = func(zero, constant, **kwargs) if pair is x else func(constant, zero, **kwargs)
    own = pair.map(
        total,
        lambda rel: (func(rel, 0, **kwargs) if pair is x else func(zero, rel, **kwargs)).expand_as(
            total
        ),
    )
    return share_bias(own, bias)


@register_rule("mul", "div", torch.Tensor.__mul__, torch.Tensor.__rmul__, torch.Tensor.__truediv__)
def scales(func, x, y, **kwargs):
    """A decomposed tensor times a constant, or divided by one: linear."""
    if isinstance(x, Pair) and isinstance(y, Pair):
        raise MissingRuleError(describe(func) + " of two decomposed tensors")
    if isinstance(x, Pair):
        return x.map(func(x.total, y, **kwargs), lambda rel: func(rel, y, **kwargs))
    if "div" in func.__name__:
        raise MissingRuleError(describe(func) + " by a decomposed tensor")
    return y.map(func(x, y.total, **kwargs), lambda rel: func(x, rel, **kwargs))
