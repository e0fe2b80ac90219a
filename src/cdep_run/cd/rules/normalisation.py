"""Normalisation and dropout: an affine map, and one mask for both parts."""

from __future__ import annotations

import torch

from cdep_run.cd.registry import register_rule
from cdep_run.cd.rules.linear import share_bias


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
    """An affine map a·x + c, a = w/√(σ² + ε), c = b − a·μ; c is shared out like any bias.

    μ and σ² are the running statistics, in training mode the total's over the batch. The running
    statistics move once, from the total.
    """
    total = func(x.total, running_mean, running_var, weight, bias, training, momentum, eps)
    if training or running_mean is None:
        dims = [d for d in range(x.total.dim()) if d != 1]
        var, mean = torch.var_mean(x.total, dims, correction=0)
    else:
        mean, var = running_mean, running_var
    scale = torch.rsqrt(var + eps)
    if weight is not None:
        scale = scale * weight
    constant = -mean * scale if bias is None else bias - mean * scale
    shape = (1, -1) + (1,) * (x.total.dim() - 2)
    scale, constant = scale.view(shape), constant.view(shape)
    return share_bias(x.map_elements(total, lambda rel: rel * scale), constant)


@register_rule("dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout")
def dropout(func, x, p=0.5, training=True):
    """The same units are dropped in both parts; nothing happens in eval mode."""
    if not training or p == 0:
        return x
    mask = func(torch.ones_like(x.total), p=p, training=True)
    return x.map(x.total * mask, lambda rel: rel * mask)
