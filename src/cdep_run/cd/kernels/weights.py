"""Weights (a matrix, a convolution) applied to the total and to every part of a pair, quickly."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cdep_run.cd.kernels import convolution
from cdep_run.cd.kernels.windows import Windows
from cdep_run.cd.pair import Pair, Part


def apply_weights(
    func, x: Pair, weight: Tensor, bias: Tensor | None, *args, **kwargs
) -> tuple[Pair, Tensor | None]:
    """The pair `func(x, weight)` of a layer without its bias; func(T, W) and func(β, W).

    Two things are faster than one call each for the total and the parts: a matrix that is larger
    than the batch multiplies them together, and parts that are zero outside windows are convolved
    inside the windows only.

    Args:
        func: `F.linear` or a convolution; `args`, `kwargs` are its further arguments.
        weight, bias: the layer's ordinary tensors.

    Returns:
        The pair without the bias, and the total with it if that was computed on the way, else
        None. (The total without the bias is then missing from the pair, and no window needs it.)
    """
    if func is F.linear and weight.numel() > x.total.numel() and x.dim() > 1:
        return _together(x, weight), None

    def weighted(part: Part) -> Part:
        if isinstance(part, Windows) and func is torch.conv2d:
            return convolution.conv2d(part, x.total, weight, *args, **kwargs)
        part = part.dense() if isinstance(part, Windows) else part
        return func(part, weight, None, *args, **kwargs)

    parts = tuple(weighted(part) for part in x.parts)
    # Where all windows know their total, nothing reads the total without the bias.
    known = all(isinstance(part, Windows) and part.total is not None for part in parts)
    total = func(x.total, weight, bias if known else None, *args, **kwargs)
    return Pair(total, parts), total if known else None


def _together(x: Pair, weight: Tensor) -> Pair:
    """W of the total and of the parts in one product: weights larger than the batch are read once,
    and so is their gradient written, which takes longer than the sums do."""
    stacked = F.linear(torch.cat([x.total, *x.dense()]), weight)
    total, *parts = stacked.chunk(1 + len(x.parts))
    return Pair(total, tuple(parts))
