"""Activation functions: elementwise, and not linear.

Rectifiers, the smooth ones too: β' = f(β), as Singh et al. 2019 (ACD) and the published CDEP code
do for ReLU. All others: the symmetric (Shapley) form ½[f(β) + f(β+γ) − f(γ)], Murdoch et al. 2018.
Functions without a value at 0 or for negative parts: each part is scaled as the total is.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cdep_run.cd.kernels.relu import SymmetricReLU
from cdep_run.cd.pair import Pair, total_of
from cdep_run.cd.registry import register_rule, variant
from cdep_run.cd.rules.sharing import settled, share_of
from cdep_run.cd.rules.token_ids import or_ids

CENTRED = {
    "sigmoid": lambda x: torch.tanh(x / 2) / 2,
    "expit": lambda x: torch.tanh(x / 2) / 2,
    "hardsigmoid": lambda x: torch.clamp(x / 6, -0.5, 0.5),
    "exp": torch.expm1,
}
"""f − f(0) without rounding error at small x, where the constant f(0) would swallow it."""


@or_ids
def symmetric(func, x, *args, **kwargs):
    """½[g(β) + g(β+γ) − g(γ)] with g = f − f(0); the constant f(0) is shared out like a bias.

    Where float arithmetic leaves nothing of g(β), the parts before f decide on the share.
    """
    if func.__name__ == "relu":
        return x.apply(func, lambda rel, before, _: SymmetricReLU.apply(rel, before))
    if func.__name__ in OVERFLOWING and not _fits(func, x, *args, **kwargs):
        return difference(func, x, *args, **kwargs)
    at_zero = float(func(torch.zeros((), dtype=x.total.dtype), *args, **kwargs))
    g = CENTRED.get(func.__name__, lambda x: func(x, *args, **kwargs) - at_zero)
    return x.apply(
        lambda t: func(t, *args, **kwargs), lambda *values: symmetric_part(g, at_zero, *values)
    )


OVERFLOWING = ["exp", "expm1", "exp2", "sinh", "cosh", "square", "pow", "float_power"]
"""Functions of which a part's value can be infinite where that of the total is not."""


def _fits(func, x: Pair, *args, **kwargs) -> bool:
    """Whether f of every part is finite wherever f of the total is.

    Asked on the CPU alone: a GPU would have to finish its work first, so there it counts as true.
    """
    if not x.total.is_cpu:
        return True
    with torch.no_grad():
        finite = func(x.total, *args, **kwargs).isfinite()
        values = (func(t, *args, **kwargs) for rel in x.dense() for t in (rel, x.total - rel))
        return all(bool((value.isfinite() | ~finite).all()) for value in values)


def difference(func, x: Pair, *args, **kwargs) -> Pair:
    """β' = β·(f(t) − f(0)) / t, t = β + γ, and f(0) shared out: finite wherever f(t) is.

    For parts so large, and of opposite sign, that f of them overflows.
    """
    total, tiny = func(x.total, *args, **kwargs), torch.finfo(x.dtype).tiny
    at_zero = func(torch.zeros_like(x.total), *args, **kwargs)
    safe = torch.where(x.total.abs() < tiny, tiny, x.total)
    slope = (total - at_zero) / safe

    def part(rel: Tensor) -> Tensor:
        size = rel.abs() / 2  # halves: the sum of two large sizes is finite
        share = share_of(size, size + (x.total - rel).abs() / 2)
        return rel * slope + at_zero * share

    return x.map(total, part)


def symmetric_part(g, at_zero, rel, before, after):
    """The relevant part of f(β + γ): `before` is β + γ, `after` f of it, `at_zero` f(0)."""
    rest = before - rel
    all_of_it = g(before)
    own = (g(rel) + (all_of_it - g(rest))) / 2
    own = torch.where(rel == 0, 0, own)  # vectorised f differs from place to place by rounding
    if isinstance(at_zero, float) and at_zero == 0:
        return own
    info = torch.finfo(own.dtype)
    size = own.abs() + info.eps * rel.abs()
    both = size + (all_of_it - own).abs() + info.eps * rest.abs()
    return settled(own, at_zero, share_of(size, both), after)


SYMMETRIC = """tanh sigmoid softsign softplus logsigmoid tanhshrink softshrink hardshrink threshold
    hardsigmoid abs square exp expm1 erf erfc sin cos tan sinh cosh exp2 atan arctan asinh arcsinh
    deg2rad rad2deg sinc log1p sign sgn round floor ceil trunc frac"""

register_rule(*SYMMETRIC.split())(symmetric)


def rectifier(func, x, *args, **kwargs):
    """β' = f(β), γ' = f(β + γ) − f(β), for f(0) = 0. Source: Singh et al. 2019 (ACD).

    Variants "symmetric" and "last" of rule "relu" are the functions of these names.
    """
    if variant("relu") == "symmetric":
        return symmetric(func, x, *args, **kwargs)
    if variant("relu") == "last":
        return last(func, x, *args, **kwargs)

    def f(t: Tensor, *_: Tensor) -> Tensor:
        return func(t, *args, **kwargs)

    return x.apply(f, f)


def last(func, x, *args, **kwargs):
    """β' = f(β + γ) − f(γ), γ' = f(γ): what the group adds to all the rest."""
    return x.apply(
        lambda t: func(t, *args, **kwargs),
        lambda rel, before, after: torch.where(
            rel == 0, 0, after - func(before - rel, *args, **kwargs)
        ),
    )


RECTIFIERS = "relu relu6 leaky_relu elu selu celu gelu silu mish hardswish"

register_rule(*RECTIFIERS.split())(rectifier)


@register_rule("prelu")
def prelu(func, x, weight):
    """As `rectifier`; the slope is one a channel, so the parts are computed as a whole."""
    total = func(x.total, weight)

    def part(rel):
        first, last = func(rel, weight), total - func(x.total - rel, weight)
        return {"asymmetric": first, "symmetric": (first + last) / 2, "last": last}[variant("relu")]

    return x.map(total, part)


@register_rule("rrelu")
def rrelu(func, x, lower=1 / 8, upper=1 / 3, training=False):
    """A rectifier; in training mode the slope drawn for the total serves both parts."""
    if not training:
        return rectifier(func, x, lower, upper, False)
    total = func(x.total, lower, upper, True)
    slope = torch.where(x.total == 0, 1, total / x.total).detach()
    return x.map(total, lambda rel: rel * slope)


@register_rule("clamp", "clip", "hardtanh", "clamp_min", "clamp_max")
@or_ids
def clips(func, x, *args, **kwargs):
    """A rectifier where the lower bound is 0 (ReLU written as a clamp), symmetric otherwise.

    Bounds that are tensors select, as `torch.maximum` does.
    """
    if any(isinstance(bound, torch.Tensor) for bound in (*args, *kwargs.values())):
        names = ("max",) if func.__name__ == "clamp_max" else ("min", "max")
        for name, bound in (dict(zip(names, args, strict=False)) | kwargs).items():
            if bound is not None:
                pick = torch.maximum if name == "min" else torch.minimum
                x = pick(x, torch.as_tensor(bound, dtype=x.dtype, device=x.device))
        return x
    at_zero = "max" not in func.__name__ and (args[:1] == (0,) or kwargs.get("min") == 0)
    return (rectifier if at_zero or kwargs.get("min_val") == 0 else symmetric)(
        func, x, *args, **kwargs
    )


def scaled(func, x, *args, **kwargs):
    """β' = β · f(t) / t, t = β + γ: for f that has no value at 0 or at parts of another sign."""
    total = func(x.total, *(args := total_of(args)), **kwargs)
    tiny = torch.finfo(total.dtype).tiny
    slope = total / torch.where(x.total.abs() < tiny, tiny, x.total)
    return x.map(total, lambda rel: rel * slope)


register_rule("sqrt", "log", "log2", "log10", "asin", "atanh", "acosh", "logit", "xlogy")(scaled)


@register_rule("acos", "arccos")
def arccosine(func, x):
    """π/2 − asin x, which is 0 at 0; π/2 is shared out like a bias."""
    return math.pi / 2 - torch.asin(x)


@register_rule("pow", "float_power")
@or_ids
def power(func, x, exponent):
    """Whole positive powers are symmetric (x² gives β(β + γ), as a product does)."""
    if not isinstance(x, Pair):
        return exponential(func, exponent, x)
    exponent = total_of(exponent)
    whole = isinstance(exponent, (int, float)) and exponent > 0 and exponent == int(exponent)
    if not whole and isinstance(exponent, (int, float)) and exponent < 0:
        return func(x.total, exponent)  # one over something: see `quotient` in products.py
    return (symmetric if whole else scaled)(func, x, exponent)


@register_rule(torch.Tensor.__rpow__)
def exponential(func, x, base):
    """base ** x as exp(x · log base)."""
    return torch.exp(x * (torch.log(base) if isinstance(base, torch.Tensor) else math.log(base)))


@register_rule("glu")
def glu(func, x, dim=-1):
    """a · sigmoid(b) of the two halves, by the rules of its pieces."""
    left, right = x.chunk(2, dim)
    return left * torch.sigmoid(right)
