"""Ops that move or average data, on both parts alike, and ops that only read the total."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cdep_run.cd.kernels import windows
from cdep_run.cd.kernels.windows import Windows
from cdep_run.cd.pair import Constant, Pair, total_of
from cdep_run.cd.registry import MissingRuleError, describe, register_rule
from cdep_run.cd.rules.sharing import share_of


def moves(func, x, *args, **kwargs):
    """f is linear without a constant: β' = f(β), γ' = f(γ)."""
    if not isinstance(x, Pair):  # only an argument such as `other` in `x.view_as(other)`
        return func(x, *total_of(args), **total_of(kwargs))
    if args or kwargs:
        args, kwargs = total_of(args), total_of(kwargs)
    total = func(x.total, *args, **kwargs)
    parts = [func(part, *args, **kwargs) for part in x.lay_out()]
    if isinstance(total, (tuple, list)):
        pairs = zip(total, zip(*parts, strict=True), strict=True)
        return tuple(x.link_view(Pair(t, of_t)) for t, of_t in pairs)
    return x.link_view(Pair(total, tuple(parts)))


def getters(*names: str) -> list[Callable]:
    """The functions that torch calls for attributes: `x.shape` is `Tensor.shape.__get__(x)`."""
    return [getattr(torch.Tensor, name).__get__ for name in names]


MOVES = """flatten unflatten reshape view permute transpose t movedim moveaxis swapaxes swapdims
    squeeze unsqueeze expand broadcast_to narrow chunk split split_with_sizes tensor_split hsplit
    vsplit dsplit unbind roll flip fliplr flipud rot90 contiguous clone detach ravel repeat tile
    repeat_interleave expand_as view_as reshape_as select gather take take_along_dim
    masked_select unfold fold diagonal diag tril triu diag_embed atleast_1d atleast_2d atleast_3d
    adjoint as_strided unsafe_chunk unsafe_split requires_grad_ conj view_as_real view_as_complex
    sum mean cumsum trace positive trapezoid trapz
    gradient stft istft
    interpolate upsample upsample_nearest upsample_bilinear grid_sample affine_grid
    pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle
    max_unpool1d max_unpool2d max_unpool3d
    fft ifft rfft irfft fft2 ifft2 rfft2 irfft2 fftn ifftn rfftn irfftn fftshift ifftshift"""
register_rule(
    *MOVES.split(),
    Tensor.__deepcopy__,
    *getters("T", "mT", "H", "mH", "data", "real", "imag"),
)(moves)


@register_rule(
    "to", "type", "float", "double", "half", "bfloat16", "long", "int", "type_as", "cpu", "cuda"
)
def casts(func, x, *args, **kwargs):
    """Another type or device, for both parts; token ids made floats take their mask along."""
    if not isinstance(x, Pair):
        return func(x, *total_of(args), **total_of(kwargs))
    total = func(x.total, *total_of(args), **kwargs)
    if isinstance(total, str):  # x.type() without a type
        return total
    if x.total.is_floating_point() == total.is_floating_point():
        if x.total.is_floating_point():
            return moves(func, x, *args, **kwargs)
        return x.map(total, lambda mask: mask.to(total.device))
    if total.is_floating_point():
        return x.map(total, lambda mask: total * mask.to(total.device))
    return total  # numbers rounded to integers are indices: nothing is relevant in them


@register_rule("diff")
def differences(func, x, n=1, dim=-1, prepend=None, append=None):
    """Differences of neighbours; what stands before and behind is joined to x by `cat` first."""
    pieces = [t for t in (prepend, x, append) if t is not None]
    return moves(func, torch.cat(pieces, dim) if len(pieces) > 1 else x, n, dim)


@register_rule("nansum", "nanmean")
def skips_nan(func, x, *args, **kwargs):
    """Sums and means of the entries where the total is a number: part by part, the same entries."""
    number = ~x.total.isnan()
    total = func(x.total, *args, **kwargs)

    def part(rel):
        added = torch.sum(rel.where(number, 0), *args, **kwargs)
        if func.__name__ == "nansum":
            return added
        return added / torch.sum(number, *args, **kwargs)

    return x.map(total, part)


@register_rule("nan_to_num")
def replaces_nan(func, x, *args, **kwargs):
    """What is written for NaN and ±∞ is a constant: nothing is relevant there."""
    finite = x.total.isfinite()
    return x.map(func(x.total, *args, **kwargs), lambda rel: rel.where(finite, 0))


@register_rule("pad")
def pads(func, x, pad, mode="constant", value=None):
    """The padding's constant belongs to nobody: both parts are padded with zeros."""
    total = func(x.total, pad, mode, value)
    if mode == "constant" and len(pad) == 4 and min(pad) >= 0:
        parts = (windows.pad(p, *pad) if isinstance(p, Windows) else func(p, pad) for p in x.parts)
        return Pair(total, tuple(parts))
    return x.map(total, lambda rel: func(rel, pad, mode))


@register_rule(
    "cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack", "column_stack"
)
def joins(func, tensors, *args, **kwargs):
    """Concatenation: part by part.

    A constant beside the parts (a class token) is shared out like a bias, in proportion to the
    parts that it is joined with: c·Σ|β| / Σ(|β| + |γ|), summed along the joined dimension.
    """
    total = func(total_of(tensors), *args, **kwargs)
    pairs = [t for t in tensors if isinstance(t, Pair)]
    if len(pairs) == len(tensors) or not total.is_floating_point():
        columns = [
            tuple(t.dense())
            if isinstance(t, Pair)
            else (torch.zeros_like(t, dtype=torch.bool),) * len(pairs[0].parts)
            for t in tensors
        ]
        return Pair(
            total, tuple(func(parts, *args, **kwargs) for parts in zip(*columns, strict=True))
        )
    own_dim = {"hstack": 1, "column_stack": 1, "dstack": 2}.get(func.__name__, 0)
    dim = kwargs.get("dim", args[0] if args else own_dim)
    zero = [torch.zeros_like(t) if not isinstance(t, Pair) else None for t in tensors]
    constant = func(
        [torch.zeros_like(t.total) if isinstance(t, Pair) else t for t in tensors], *args, **kwargs
    )

    def part(own):
        """The parts with zeros in the constants' places, then the constants' shares."""
        own = iter(own)
        joined = func([next(own) if z is None else z for z in zero], *args, **kwargs)
        relevant = joined.abs().sum(dim, keepdim=True)
        both = relevant + (total - constant - joined).abs().sum(dim, keepdim=True)
        return joined + constant * share_of(relevant, both)

    columns = zip(*(pair.dense() for pair in pairs), strict=True)
    return Pair(total, tuple(part(own) for own in columns))


@register_rule(Tensor.__setitem__)
def assigns(func, x, index, value):
    """x[index] = value: part by part; a constant that is written has no relevant part."""
    if not isinstance(x, Pair):
        raise MissingRuleError(
            "x[index] = decomposed, where x is an ordinary tensor",
            cure="Make x with decomposed.new_zeros(...), or use torch.cat.",
        )
    index = total_of(index)
    groups = len(x.parts)
    new = tuple(value.dense()) if isinstance(value, Pair) else (0,) * groups
    parts = tuple(x.dense()) if x._shares_memory else tuple(part.clone() for part in x.dense())
    total = x.total if x._shares_memory else x.total.clone()
    func(total, index, total_of(value))
    for part, written in zip(parts, new, strict=True):
        func(part, index, written)
    x.total, x.parts = total, parts


@register_rule("copy_", "fill_", "zero_")
def overwrites(func, x, value=0, *args):
    """As `x[...] = value`."""
    assigns(Tensor.__setitem__, x, ..., value)
    return x


@register_rule(
    *("scatter", "scatter_add", "scatter_reduce", "masked_scatter"),
    *("index_copy", "index_add", "index_put"),
)
def scatters(func, x, *args, **kwargs):
    """Writes or adds one tensor at places of another; a constant among them is irrelevant."""
    places = ("dim", "mask", "index", "indices", "src", "source", "value", "values", "reduce")
    args = (x, *args, *(kwargs.pop(name) for name in places if name in kwargs))
    if func.__name__ == "scatter" and isinstance(args[3], (int, float)):  # a number: also constant
        args = (*args[:3], torch.full_like(args[2], args[3], dtype=x.dtype), *args[4:])
    if any(isinstance(a, str) and a not in ("sum", "mean", "add") for a in args):
        raise MissingRuleError(f"{describe(func)} with reduce={args[-1]!r}")
    groups = len(next(a for a in args if isinstance(a, Pair)).parts)
    columns = [
        tuple(a.dense())
        if isinstance(a, Pair)
        else (torch.zeros_like(a) if isinstance(a, Tensor) and a.is_floating_point() else a,)
        * groups
        for a in args
    ]
    total = func(*total_of(args), **kwargs)
    return Pair(total, tuple(func(*own, **kwargs) for own in zip(*columns, strict=True)))


def reads(func, *args, **kwargs):
    """Sizes, types, comparisons and Python numbers are those of the total, without a pair."""
    return func(*total_of(args), **total_of(kwargs))


READS = """size dim ndimension numel nelement element_size stride storage_offset data_ptr item
    tolist numpy is_floating_point is_complex is_contiguous is_signed is_same_size is_pinned
    get_device argmax argmin argsort nonzero count_nonzero unique
    gt ge lt le eq ne greater greater_equal less less_equal not_equal equal allclose isclose isnan
    isfinite isinf isin isposinf isneginf any all logical_and logical_or logical_not logical_xor
    bitwise_not signbit heaviside result_type can_cast searchsorted bucketize bincount
    histc bernoulli multinomial"""
NUMBERS = (
    Tensor.__len__,
    Tensor.__bool__,
    Tensor.__float__,
    Tensor.__int__,
    Tensor.__index__,
    Tensor.__contains__,
    Tensor.__array__,
    Tensor.__format__,
)
ATTRIBUTES = """shape ndim dtype device layout requires_grad is_cuda is_sparse is_sparse_csr
    is_quantized is_nested is_meta is_mkldnn is_mps is_xpu is_xla is_cpu itemsize nbytes
    is_leaf grad_fn output_nr"""
register_rule(*READS.split(), *NUMBERS, *getters(*ATTRIBUTES.split()))(reads)


FACTORIES = """zeros_like ones_like empty_like full_like rand_like randn_like randint_like
    new_zeros new_ones new_empty new_full new_tensor"""


@register_rule(*FACTORIES.split())
def makes(func, *args, **kwargs):
    """A new tensor like a decomposed one is a constant, until something decomposed is written."""
    return Constant(func(*total_of(args), **total_of(kwargs)))
