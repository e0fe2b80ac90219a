"""Linear and convolution layers: the weights act on both parts, the bias is shared out.

β' = Wβ + b·|Wβ| / (|Wβ| + |Wγ|). Source: Singh et al. 2019 (ACD), as used by Rieger et al. 2019.
"""

from __future__ import annotations

from torch import Tensor

from cdep_run.cd.kernels.weights import apply_weights
from cdep_run.cd.pair import Pair
from cdep_run.cd.registry import register_rule
from cdep_run.cd.rules.products import product
from cdep_run.cd.rules.sharing import share_bias


@register_rule(
    "linear",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
)
def linear(func, x, weight, bias=None, *args, **kwargs):
    """Wx + b: β' = Wβ + b·|Wβ| / (|Wβ| + |Wγ|). Source: Singh et al. 2019 (ACD)."""
    if isinstance(weight, Pair) or isinstance(bias, Pair) or not isinstance(x, Pair):
        return computed_weights(func, x, weight, bias, *args, **kwargs)
    weighted, total = apply_weights(func, x, weight, bias, *args, **kwargs)
    if bias is None:
        return weighted
    return share_bias(weighted, along_channels(func, bias), total=total)


def computed_weights(func, x, weight, bias, *args, **kwargs):
    """Weights or a bias that depend on the input: a product of two decomposed tensors."""
    result = product(lambda a, w: func(a, w, None, *args, **kwargs), x, weight)
    return result if bias is None else result + along_channels(func, bias)


def along_channels(func, bias: Tensor) -> Tensor:
    """A bias `[C]` with the dimensions of the layer's output behind it, `[C, 1, 1]` of conv2d."""
    spatial = int(func.__name__[-2]) if "conv" in func.__name__ else 0
    return bias.view(-1, *(1,) * spatial)
