"""What nobody made alone, a bias or f(0), is shared out in proportion to the parts."""

from __future__ import annotations

import torch
from torch import Tensor

from cdep_run.cd.kernels.autograd import run
from cdep_run.cd.kernels.bias import BiasShare, affine
from cdep_run.cd.pair import Pair
from cdep_run.cd.registry import variant


def share_of(size: Tensor, both: Tensor) -> Tensor:
    """size / both, where 0 ≤ size ≤ both; at 0/0 it is 0, and so is its gradient.

    A tiny number in place of 0 would not do: a gradient divided by it overflows.
    """
    return size / (both + (both == 0))


def share_bias(
    pair: Pair,
    bias: Tensor,
    scale: Tensor | None = None,
    total: Tensor | None = None,
    bounded: bool = False,
) -> Pair:
    """s(β + γ) + b with β' = sβ + b·|sβ| / (|sβ| + |sγ|): add a constant and hand it out.

    Bounded: β' = sβ + b·|sβ| / max(|sβ| + |sγ|, 2|b|), so that β receives at most |sβ| / 2 of b.
    Under the variant "last" of the rule for ReLU the constant belongs to γ.

    The total is computed by the steps that compute the parts, so that the two agree to the last bit
    where the group is everything: γ is then 0 and not a rounding error, to which a bias could go.

    Args:
        pair: the total and the parts without the constant.
        bias: b, broadcastable to them.
        scale: s, broadcastable to them; None: 1.
        total: s(β + γ) + b, if it is known.
        bounded: whether no part receives more of b than half its own size.

    Returns:
        The total with the constant, and the parts β'; 0 wherever β is 0.
    """
    of_channels = bias.shape[-2:] == (1, 1) and (bias.dim() < 4 or bias.shape[0] == 1)
    if bias.numel() > 1 and not of_channels:  # differs from place to place or between examples
        pair = pair.densified()  # windows know constants a channel alone
    constant, shared = bias.to(pair.total.dtype), variant("relu") != "last"

    def part(rel: Tensor, before: Tensor, _: Tensor) -> Tensor:
        if not shared:
            return rel.clone() if scale is None else rel * scale
        return run(BiasShare, rel, before, bias, scale, bounded)

    return pair.apply(lambda t: affine(t, scale, constant), part, total)


def settled(own, at_zero, share, total):
    """own + f(0)·share; nothing and everything to the last bit where the share is 0 and 1."""
    part = torch.where(share == 1, total, own + at_zero * share)
    return torch.where(share == 0, 0, part)
