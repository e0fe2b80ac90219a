"""Attention: queries times keys, softmax, times values, each by its own rule.

Sources: the products are Shapley's (products.py), softmax is split by the symmetric rule of Murdoch
et al. 2018. Hsu et al. 2024 (contextual decomposition for transformers, arXiv:2407.00886) publish
code that holds the attention weights fixed: variant "fixed" of rule "softmax".
"""

from __future__ import annotations

import types

import torch
import torch.nn.functional as F

from cdep_run.cd.registry import register_rule, variant
from cdep_run.cd.rules.sharing import settled, share_of

MASKED = -5e3
"""Scores so far below the largest are masked, whichever stand-in for −∞ a model has: −1e4, −1e9

The weight of such a position is 0, but would not be in a part that the mask does not reach.
"""

NO_SCORE = -1e8
"""A score of this or less is masked, though all others of its row are, too."""


@register_rule("softmax", "log_softmax", "_safe_softmax")
def softmax(func, x, dim=None, *args, **kwargs):
    """½[g(β) + g(β+γ) − g(γ)], g = f − f(0); f(0), evenly spread weights, is shared like a bias.

    It is shared in proportion to the parts of the scores along `dim`. Masked positions (`MASKED`,
    `NO_SCORE`) are masked in every term. Variant "fixed": the weights are a constant.
    """
    total = func(x.total, dim, *args, **kwargs)
    if variant("softmax") == "fixed":
        return total
    axis = kwargs.get("dim", dim)
    largest = x.total.detach().amax(() if axis is None else axis, keepdim=True)
    masked = x.total < largest + MASKED
    masked |= x.total <= max(NO_SCORE, torch.finfo(x.total.dtype).min)
    open_total = x.total.masked_fill(masked, 0)

    def f(value):
        return func(torch.where(masked, x.total, value), dim, *args, **kwargs)

    at_zero = f(torch.zeros_like(x.total))

    def part(rel):
        rel = rel.masked_fill(masked, 0)
        rest = open_total - rel
        own = ((f(rel) - at_zero) + (total - f(rest))) / 2
        size = rel.abs().sum(axis, keepdim=True)
        both = size + rest.abs().sum(axis, keepdim=True)
        return settled(own, at_zero, share_of(size, both), total)

    return x.map(total, part)


@register_rule("logsumexp")
def logsumexp(func, x, dim, keepdim=False):
    """x − log softmax(x), the same at every entry."""
    for d in [dim] if isinstance(dim, int) else sorted((d % x.dim() for d in dim), reverse=True):
        x = (x - F.log_softmax(x, d)).mean(d, keepdim=keepdim)
    return x


@register_rule("softmin")
def softmin(func, x, dim=None, **kwargs):
    """softmax(−x)."""
    return F.softmax(-x, dim)


@register_rule("scaled_dot_product_attention")
def attention(
    func,
    query,
    key,
    value,
    attn_mask=None,
    dropout_p=0.0,
    is_causal=False,
    scale=None,
    enable_gqa=False,
):
    """softmax(QKᵀ/√d + mask) V, by the rules of its pieces."""
    if enable_gqa:
        repeats = query.shape[-3] // key.shape[-3]
        key, value = (t.repeat_interleave(repeats, -3) for t in (key, value))
    scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.mT
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attn_mask, float("-inf"))
        else:
            scores = scores + attn_mask
    return F.dropout(torch._safe_softmax(scores, -1), dropout_p) @ value


_BODIES: dict = {}


def body(func, *args, **kwargs):
    """Run the Python body of a torch function on the pairs: its pieces have rules of their own."""
    if func not in _BODIES:
        own_globals = {**func.__globals__, "has_torch_function": lambda _: False}
        for name in ("has_torch_function_unary", "has_torch_function_variadic"):
            own_globals[name] = lambda *_: False
        copy = types.FunctionType(func.__code__, own_globals, func.__name__, func.__defaults__)
        copy.__kwdefaults__ = func.__kwdefaults__
        _BODIES[func] = copy
    return _BODIES[func](*args, **kwargs)


register_rule(
    F.multi_head_attention_forward,
    F.normalize,
    F.local_response_norm,
    F.lp_pool1d,
    F.lp_pool2d,
    F.lp_pool3d,
    F.gumbel_softmax,
)(body)


@register_rule(torch._nested_tensor_from_mask_left_aligned)
def no_nested_tensors(func, x, mask):
    """Answers `nn.TransformerEncoder`, in eval mode, that padded sequences stay padded."""
    return False
