"""Normalisation and dropout: an affine map whose scale is read from the total, and shared masks.

Layer, group, instance and RMS norm: β' = w·(β − mean β) / √(σ² + ε), σ² the total's variance; the
offset b is shared out. Source: Hsu et al. 2024 (arXiv:2407.00886), published code.

A layer's constant c is shared out in proportion, but no part receives more of it than half its
own size: c·|β| / max(|β| + |γ|, 2|c|), ours. Linear layers have small biases; the constant of
batch norm, b − w·μ/σ, is often larger than the activations, and in proportion to them, as ACD's
code shares it (variant "proportional" of rule "norm_constant"), it has slopes up to c/ε. One layer
after the other they multiply: 20 layers up, β changes with the last bit of the input, and the
gradient of a penalty in float32 is noise. What is left of c belongs to γ, even where γ itself is 0.
No rule with a bounded slope can avoid this: near β = γ = 0 the share would have to rise from 0
(nothing is relevant) to 1 (everything is) over an arbitrarily short distance.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cdep_run.cd.pair import Pair
from cdep_run.cd.registry import register_rule, variant
from cdep_run.cd.rules.sharing import share_bias


def share_constant(x: Pair, constant: Tensor, scale: Tensor) -> Pair:
    """s(β + γ) + c, c shared out as the rule "norm_constant" says."""
    return share_bias(x, constant, scale, bounded=variant("norm_constant") == "bounded")


@register_rule("batch_norm")
def batch_norm(
    func,
    x,
    running_mean,
    running_var,
    weight=None,
    bias=None,
    training=False,
    momentum=0.1,
    eps=1e-5,
):
    """An affine map a·x + c, a = w/√(σ² + ε), c = b − a·μ; c is shared out.

    μ and σ² are the running statistics, in training mode the total's over the batch. The running
    statistics move once, from the total.
    """
    if training or running_mean is None:
        func(x.total, running_mean, running_var, weight, bias, training, momentum, eps)
        dims = [d for d in range(x.total.dim()) if d != 1]
        var, mean = torch.var_mean(x.total, dims, correction=0)
    else:
        mean, var = running_mean, running_var
    scale = torch.rsqrt(var + eps)
    if weight is not None:
        scale = scale * weight
    constant = -mean * scale if bias is None else torch.addcmul(bias, mean, scale, value=-1)
    shape = (1, -1) + (1,) * (x.total.dim() - 2)
    scale, constant = scale.view(shape), constant.view(shape)
    return share_constant(x, constant, scale)


def standardise(x: Pair, dims, eps, weight=None, bias=None, centre=True) -> Pair:
    """w·(β − mean β) / √(σ² + ε) and the offset's share; no mean without `centre`.

    Args:
        dims: the dimensions over which the mean and the total's σ² are taken.
        weight, bias: broadcastable to x.
    """
    if centre:
        x = x.map(
            x.total - x.total.mean(dims, keepdim=True), lambda rel: rel - rel.mean(dims, True)
        )
    count = math.prod(x.total.shape[d] for d in dims)
    square = torch.linalg.vector_norm(x.total, 2, dims, keepdim=True).square() / count
    scale = torch.rsqrt(square + eps)
    if weight is not None:
        scale = scale * weight
    if bias is None:
        return x.map(x.total * scale, lambda rel: rel * scale)
    return share_constant(x, bias, scale)


@register_rule("layer_norm", "native_layer_norm")
def layer_norm(func, x, normalized_shape, weight=None, bias=None, eps=1e-5, *args):
    """Over the last dimensions."""
    return standardise(x.contiguous(), list(range(-len(normalized_shape), 0)), eps, weight, bias)


@register_rule("rms_norm")
def rms_norm(func, x, normalized_shape, weight=None, eps=None):
    """Over the last dimensions, without a mean: divided by the root of the mean square."""
    eps = torch.finfo(x.total.dtype).eps if eps is None else eps
    return standardise(x, list(range(-len(normalized_shape), 0)), eps, weight, centre=False)


@register_rule("group_norm")
def group_norm(func, x, num_groups, weight=None, bias=None, eps=1e-5, *args):
    """Over each group of channels and all positions."""
    groups = x.unflatten(1, (num_groups, -1))
    shape = (1, num_groups, -1) + (1,) * (x.total.dim() - 2)
    weight, bias = (None if t is None else t.view(shape) for t in (weight, bias))
    return standardise(groups, list(range(2, groups.dim())), eps, weight, bias).flatten(1, 2)


@register_rule("instance_norm")
def instance_norm(
    func,
    x,
    running_mean=None,
    running_var=None,
    weight=None,
    bias=None,
    use_input_stats=True,
    momentum=0.1,
    eps=1e-5,
    *args,
):
    """Over all positions of each channel; with running statistics as batch norm."""
    if not use_input_stats:
        return batch_norm(
            torch.nn.functional.batch_norm, x, running_mean, running_var, weight, bias, eps=eps
        )
    if running_mean is not None:  # which move
        func(x.total, running_mean, running_var, weight, bias, True, momentum, eps, *args)
    shape = (1, -1) + (1,) * (x.total.dim() - 2)
    weight, bias = (None if t is None else t.view(shape) for t in (weight, bias))
    return standardise(x, list(range(2, x.total.dim())), eps, weight, bias)


@register_rule("dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout")
def dropout(func, x, p=0.5, training=True):
    """The same units are dropped in both parts; nothing happens in eval mode."""
    if not training or p == 0:
        return x
    mask = func(torch.ones_like(x.total), p=p, training=True)
    return x.map(x.total * mask, lambda rel: rel * mask)


@register_rule("alpha_dropout", "feature_alpha_dropout")
def alpha_dropout(func, x, p=0.5, training=False):
    """a·x + c with a and c drawn once, read off at 0 and 1 in one draw; c is shared like a bias."""
    if not training or p == 0:
        return x
    like = x.total.detach()
    with torch.random.fork_rng([like.device] if like.is_cuda else []):
        constant = func(torch.zeros_like(like), p=p, training=True)
    scale = func(torch.ones_like(like), p=p, training=True) - constant
    return share_bias(x.map(x.total * scale, lambda rel: rel * scale), constant)
