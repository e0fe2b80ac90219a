"""Sums and products of tensors, each of which may be decomposed.

Products of two decomposed tensors (gates, attention) are not in ACD. The default is the Shapley
value of the two-player game in which each side is present or absent,
½[β₁β₂ + (β₁+γ₁)(β₂+γ₂) − γ₁γ₂] = ½[β₁(β₂+γ₂) + (β₁+γ₁)β₂]: the symmetric rule of Murdoch et al.
2018 applied to a product. Variant "strict" keeps β₁β₂ only. How much of what needs both parts is
relevant is a choice: Jumelet et al. 2019 (generalised contextual decomposition).
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from cdep_run.cd.kernels.windows import added
from cdep_run.cd.pair import Pair, total_of
from cdep_run.cd.registry import MissingRuleError, describe, register_rule, variant
from cdep_run.cd.rules.sharing import share_bias
from cdep_run.cd.rules.token_ids import or_ids


def product(func, *operands) -> Pair:
    """`func(*operands)` that is linear in each operand, any of them decomposed."""
    totals = total_of(operands)
    total = func(*totals)
    places = [i for i, operand in enumerate(operands) if isinstance(operand, Pair)]

    def with_parts(parts, chosen):
        return func(*(parts[chosen.index(i)] if i in chosen else t for i, t in enumerate(totals)))

    def part(*parts):
        if len(places) == 1 or variant("product") == "strict":
            return with_parts(parts, places)
        if len(places) == 2:
            one, other = (with_parts((p,), [i]) for p, i in zip(parts, places, strict=True))
            return (one + other) / 2
        rests = [totals[i] - p for i, p in zip(places, parts, strict=True)]
        return (with_parts(parts, places) + (total - with_parts(rests, places))) / 2

    columns = zip(*(operands[i].dense() for i in places), strict=True)
    return Pair(total, tuple(part(*parts) for parts in columns))


@register_rule("matmul", "bmm", "mm", "mv", "dot", "vdot", "inner", "outer", "kron", "multiply")
def multiplies(func, x, y):
    """Matrix products."""
    return product(func, x, y)


@register_rule("cross")
def cross(func, x, y, **kwargs):
    """Linear in each operand."""
    return product(lambda a, b: func(a, b, **kwargs), x, y)


@register_rule(Tensor.__rmatmul__)
def multiplies_from_the_right(func, x, y):
    """y @ x."""
    return product(torch.matmul, y, x)


@register_rule("mul", Tensor.__rmul__)
@or_ids
def scales(func, x, y):
    """Elementwise; a number scales the parts inside their windows."""
    if isinstance(x, (int, float)):
        x, y = y, x
    if isinstance(y, (int, float)):
        return x.map_elements(func(x.total, y), lambda rel: func(rel, y))
    if isinstance(x, Pair) and isinstance(y, Pair) and variant("product") == "shapley":
        return multiplied(x, y)
    return product(func, x, y)


def multiplied(x: Pair, y: Pair) -> Pair:
    """The Shapley form of `product`, element by element: β₁·T₂/2 + ½T₁·β₂, T = β + γ.

    Half of a number is exact, so these are the numbers of `product`, in half the steps; a GPU, and
    half precision, round once less.
    """
    x, y = (x, y) if x.numel() >= y.numel() else (y, x)
    half, columns = y.total / 2, zip(x.dense(), y.dense(), strict=True)
    parts = tuple(torch.addcmul(a * half, x.total, b, value=0.5) for a, b in columns)
    return Pair(x.total * y.total, parts)


@register_rule("einsum")
def einsum(func, equation, *operands):
    """Linear in each operand."""
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = tuple(operands[0])
    return product(lambda *tensors: func(equation, *tensors), *operands)


@register_rule("tensordot")
def tensordot(func, x, y, dims=2, out=None):
    """Linear in each operand."""
    return product(lambda a, b: func(a, b, dims), x, y)


@register_rule("bilinear")
def bilinear(func, x, y, weight, bias=None):
    """x W y + b."""
    result = product(lambda a, b: func(a, b, weight), x, y)
    return result if bias is None else result + bias


@register_rule("addmm", "baddbmm", "addmv", "addbmm", "addr")
def add_product(func, bias, x, y, *, beta=1, alpha=1):
    """βb + α·xy: the product, and b shared out as a bias."""
    times = {"addr": torch.outer, "addbmm": lambda a, b: torch.bmm(a, b).sum(0)}
    result = times.get(func.__name__, torch.matmul)(x, y)
    result = result if alpha == 1 else result * alpha
    return result + (bias if beta == 1 else bias * beta) if beta else result


@register_rule("addcmul")
def add_elementwise_product(func, bias, x, y, *, value=1):
    """b + value·x·y."""
    return bias + value * (x * y)


@register_rule("addcdiv")
def add_quotient(func, bias, x, y, *, value=1):
    """b + value·x / y."""
    return bias + value * (x / y)


@register_rule("lerp")
def lerp(func, start, end, weight):
    """start + weight·(end − start)."""
    return start + weight * (end - start)


@register_rule("prod", "cumprod")
def multiplies_all(func, x, *args, **kwargs):
    """½[f(β) + f(β+γ) − f(γ)], the Shapley value of a product of any number of factors."""
    total = func(x.total, *args, **kwargs)

    def part(rel):
        rest = func(x.total - rel, *args, **kwargs)
        return (func(rel, *args, **kwargs) + (total - rest)) / 2

    return x.map(total, part)


@register_rule("cosine_similarity")
def cosine(func, x, y, dim=1, eps=1e-8):
    """The product of the two normalised vectors."""
    return (F.normalize(x, dim=dim, eps=eps) * F.normalize(y, dim=dim, eps=eps)).sum(dim)


@register_rule("div", "true_divide", Tensor.__truediv__)
def quotient(func, x, y, *, rounding_mode=None):
    """x / y: linear in x. A denominator normalises, it says nothing: it is read from the total."""
    if rounding_mode is not None:
        raise MissingRuleError(f"{describe(func)} with rounding_mode={rounding_mode!r}")
    y = total_of(y)
    if not isinstance(x, Pair):
        return func(x, y)
    if isinstance(y, (int, float)):
        return x.map_elements(func(x.total, y), lambda rel: func(rel, y))
    return x.map(func(x.total, y), lambda rel: func(rel, y))


NORMALISERS = "rsqrt reciprocal var std var_mean std_mean norm vector_norm matrix_norm"


@register_rule(*NORMALISERS.split(), Tensor.__rtruediv__)
def normalisers(func, x, *args, **kwargs):
    """What divides or measures a size is read from the total, as in layer norm. No part of its own.

    Means among them are decomposed: a mean is linear.
    """
    result = func(total_of(x), *total_of(args), **total_of(kwargs))
    if func.__name__ in ("var_mean", "std_mean"):
        dims = args[0] if args else kwargs.get("dim")
        keep = kwargs.get("keepdim", False)
        return result[0], x.mean(dims, keepdim=keep) if dims is not None else x.mean()
    return result


@register_rule("add", "sub", "subtract", Tensor.__radd__)
@or_ids
def adds(func, x, y, **kwargs):
    """a ± b: part by part. A constant has no part of its own: it is shared out like a bias."""
    pair, constant = (x, y) if isinstance(x, Pair) else (y, x)
    if isinstance(constant, Pair):
        total = func(x.total, y.total, **kwargs)
        columns = zip(x.parts, y.parts, strict=True)
        add = partial(func, **kwargs)
        return Pair(total, tuple(added(add, a, b, total.shape) for a, b in columns))
    if isinstance(constant, (int, float)) and constant == 0 and func.__name__ != "sub":
        return pair.map_elements(func(*total_of((x, y))), torch.clone)  # as `sum` begins
    zero = pair.total.new_zeros(())
    if pair is not x:
        pair = y.map_elements(func(zero, y.total, **kwargs), lambda rel: func(zero, rel, **kwargs))
        bias = func(constant, zero, **kwargs)
    else:
        bias = func(zero, constant, **kwargs)
    never_a_mask = isinstance(constant, (int, float, torch.nn.Parameter))
    return add_constant(pair, bias, never_a_mask)


register_rule("rsub", Tensor.__rsub__)(lambda func, x, y, **kwargs: torch.sub(y, x, **kwargs))


def add_constant(pair: Pair, constant: Tensor, never_a_mask: bool) -> Pair:
    """As `share_bias`, of any shape; −∞ and its stand-ins mask positions, and stay with the rest.

    A mask is added after the finite constants are shared out, so that no part meets it.
    """
    shape = torch.broadcast_shapes(pair.total.shape, constant.shape)
    if shape != pair.total.shape or constant.dtype != pair.total.dtype:
        dtype = torch.promote_types(pair.total.dtype, constant.dtype)
        pair = pair.map(pair.total.to(dtype).expand(shape), lambda rel: rel.to(dtype).expand(shape))
    if never_a_mask:
        return share_bias(pair, constant)
    masking = constant < torch.finfo(constant.dtype).min / 2
    result = share_bias(pair, constant.masked_fill(masking, 0))
    return result.map_elements(result.total + constant.where(masking, 0), lambda rel: rel)
