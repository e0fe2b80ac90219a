"""Token ids: a pair of ids and the masks of the groups; looked up, they become ordinary pairs.

The part of an id is whether its position is in the group. Arithmetic on ids (an offset, a hash)
gives other ids of the same positions. What is looked up by an id belongs to that id's position.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce, wraps

import torch
import torch.nn.functional as F
from torch import Tensor

from cdep_run.cd.pair import Pair, total_of
from cdep_run.cd.registry import MissingRuleError, describe, register_rule, variant
from cdep_run.cd.rules.shapes import moves


def is_ids(value: object) -> bool:
    """Whether `value` is a pair of whole numbers."""
    if not isinstance(value, Pair):
        return False
    return not (value.total.is_floating_point() or value.total.is_complex())


def arithmetic(func, *args, **kwargs):
    """Ids made of ids, place by place: inside a group where one of them was."""
    total = func(*total_of(args), **total_of(kwargs))
    columns = zip(*(a.dense() for a in args if isinstance(a, Pair)), strict=True)
    if total.is_floating_point():
        return Pair(total, tuple(total * reduce(torch.logical_or, masks) for masks in columns))
    return Pair(total, tuple(reduce(torch.logical_or, m).expand(total.shape) for m in columns))


def or_ids(rule: Callable) -> Callable:
    """The rule, for ids `arithmetic`; ids that meet other pairs are the numbers that they are."""

    @wraps(rule)
    def either(func, *args, **kwargs):
        if not any(map(is_ids, args)):
            return rule(func, *args, **kwargs)
        if all(is_ids(a) for a in args if isinstance(a, Pair)):
            return arithmetic(func, *args, **kwargs)
        return rule(func, *(a.total if is_ids(a) else a for a in args), **kwargs)

    return either


@register_rule(
    *("remainder", "fmod", "floor_divide", "bitwise_and", "bitwise_or", "bitwise_xor"),
    *("bitwise_left_shift", "bitwise_right_shift"),
    *(getattr(Tensor, f"__{name}__") for name in ("and", "or", "xor", "mod", "floordiv")),
    *(getattr(Tensor, f"__{name}__") for name in ("lshift", "rshift")),
)
@or_ids
def reads_numbers(func, *args, **kwargs):
    """Of ids other ids; of other numbers the total's, without a pair."""
    return func(*total_of(args), **total_of(kwargs))


@register_rule("embedding")
def embedding(func, ids, weight, *args, **kwargs):
    """A token's vector is relevant where its position is in the group.

    Variant "detached" of rule "embedding": gradients do not reach the vectors, as in the published
    CDEP code (quirk 6 of the protocol).
    """
    if not isinstance(ids, Pair):
        return moves(lambda w: func(ids, w, *args, **kwargs), weight)
    weight = total_of(weight)
    if variant("embedding") == "detached":
        weight = weight.detach()
    return looked_up(ids, func(ids.total, weight, *args, **kwargs))


def looked_up(ids: Pair, total: Tensor) -> Pair:
    """What stands in a table at the ids, `[*ids, …]`: relevant where the ids are."""

    def part(mask: Tensor) -> Tensor:
        mask = mask[(..., *(None,) * (total.dim() - mask.dim()))]
        return total * mask if total.is_floating_point() else mask.expand(total.shape)

    return ids.map(total, part)


register_rule("neg", "negative")(or_ids(moves))


@register_rule(Tensor.__getitem__)
def getitem(func, table, index):
    """table[ids] is an embedding; everything else moves data."""
    if isinstance(table, Pair) or not is_ids(index):
        if not isinstance(table, Pair) and any(is_ids(i) for i in index):
            raise MissingRuleError(
                "table[…, ids, …]", cure="Use torch.nn.functional.embedding, or table[ids]."
            )
        return moves(func, table, index)
    total = func(table, index.total)
    return looked_up(index, total)


@register_rule("index_select")
def index_select(func, table, dim, index):
    """Of an ordinary table by ids as `embedding`; of a pair moves data."""
    if isinstance(table, Pair) or dim != 0:
        return moves(func, table, dim, index)
    return getitem(Tensor.__getitem__, table, index)


@register_rule("embedding_bag")
def embedding_bag(
    func,
    ids,
    weight,
    offsets=None,
    max_norm=None,
    norm_type=2.0,
    scale_grad_by_freq=False,
    mode="mean",
    sparse=False,
    per_sample_weights=None,
    include_last_offset=False,
    padding_idx=None,
):
    """Sum, mean or maximum of the vectors of a row of ids."""
    if offsets is not None or (padding_idx is not None and mode == "max"):
        raise MissingRuleError(f"{describe(func)} with offsets, or the maximum with padding")
    vectors = F.embedding(ids, weight, None, max_norm, norm_type, scale_grad_by_freq, sparse)
    if mode == "max":
        return vectors.amax(1)
    counts = torch.ones_like(ids.total) if padding_idx is None else ids.total != padding_idx
    scale = counts.to(vectors.dtype)
    if per_sample_weights is not None:
        scale = scale * per_sample_weights
    result = (vectors * scale.unsqueeze(-1)).sum(1)
    return result if mode == "sum" else result / scale.sum(1, keepdim=True).clamp(min=1)


@register_rule("one_hot")
def one_hot(func, ids, num_classes=-1):
    """As `embedding`."""
    return looked_up(ids, func(ids.total, num_classes))
