"""Activation functions: elementwise, and not linear.

Source: ReLU(β) for rectifiers, Singh et al. 2019 (ACD) and the published CDEP code; the symmetric
(Shapley) form ½[f(β) + f(β+γ) − f(γ)], Murdoch et al. 2018, for the others.
"""

from __future__ import annotations

import torch

from cdep_run.cd.registry import register_rule, variant
from cdep_run.cd.rules.linear import share_bias


def symmetric(func, x, *args, **kwargs):
    """½[g(β) + g(β+γ) − g(γ)] with g = f − f(0); the constant f(0) is shared out like a bias."""
    total = func(x.total, *args, **kwargs)
    at_zero = func(torch.zeros_like(total[(0,) * total.dim()]), *args, **kwargs).detach()

    def part(rel, before, after):
        without = func(before - rel, *args, **kwargs)
        return (func(rel, *args, **kwargs) + after - without - at_zero) / 2

    return share_bias(x.map_elements(total, part, x.total, total), at_zero)


@register_rule("relu")
def rectifier(func, x, *args, **kwargs):
    """β' = ReLU(β), γ' = ReLU(β + γ) − ReLU(β); variant "symmetric" selectable."""
    if variant("relu") == "symmetric":
        return symmetric(func, x, *args, **kwargs)
    return x.map_elements(func(x.total, *args, **kwargs), lambda rel: func(rel, *args, **kwargs))


register_rule("tanh", "sigmoid")(symmetric)
