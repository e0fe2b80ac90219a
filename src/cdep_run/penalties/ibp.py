"""IBP-Ex: the worst input within a box around the group must still be classified right.

Source: Heo et al., "Use Perturbations when Learning from Explanations", NeurIPS 2023; interval
bounds by Gowal et al., "Scalable Verified Training for Provably Robust Image Classification", 2019.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdep_run.attribution import logits_of, statistics_at_rest
from cdep_run.batch import Batch
from cdep_run.penalties.base import PenaltyError, groups_of, mean_annotated
from cdep_run.penalties.counterfactual import other_examples


class IntervalBounds:
    """Cross-entropy of the worst logits, summed over groups, mean over annotated examples.

    Inputs x + δ with |δ| ≤ radius in the group and δ = 0 elsewhere give logits between bounds l and
    u (interval arithmetic); the worst ones are l at the true class and u at all others. Of a group
    that is a linear map P: |δ| ≤ radius · |P(x − x′)|, x′ another example of the batch.

    Args:
        radius: half the width of the box, in standardised input units.

    Raises:
        PenaltyError: `radius` is not above 0; the inputs are token ids; the model uses an op whose
            bounds are not known.
    """

    needs_groups = True

    def __init__(self, radius: float = 1.0):
        if not radius > 0:
            raise PenaltyError(f"penalty.radius is {radius}; it must be above 0")
        self.radius = radius

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits `[N, C]` and the penalty, a scalar in nats, λ not applied."""
        groups = groups_of(batch, self)
        inputs = batch.inputs
        if not inputs.is_floating_point():
            raise PenaltyError("IBP-Ex needs inputs that are numbers, and these are token ids")
        logits = logits_of(model(inputs))
        size = torch.ones_like(inputs)
        if groups.projection is not None:
            size = inputs - other_examples(inputs)
        true = F.one_hot(batch.labels, logits.shape[1]).to(torch.bool)
        value = logits.new_zeros(len(inputs))
        with statistics_at_rest(model):
            for part in groups.project(size).abs().unbind(1):
                bounds = model(Interval(inputs, self.radius * part))
                if not isinstance(bounds, Interval):
                    raise PenaltyError("the model's output has no bounds: it is no single tensor")
                worst = torch.where(true, bounds.lower, bounds.upper)
                value = value + F.cross_entropy(worst, batch.labels, reduction="none")
        return logits, mean_annotated(value, groups)


class Interval:
    """The box centre ± radius of a tensor, sent through a model's own forward pass."""

    def __init__(self, centre: Tensor, radius: Tensor) -> None:
        self.centre, self.radius = centre, radius

    @property
    def lower(self) -> Tensor:
        """Lower end of the box."""
        return self.centre - self.radius

    @property
    def upper(self) -> Tensor:
        """Upper end of the box."""
        return self.centre + self.radius

    @property
    def shape(self) -> torch.Size:
        """Shape of the tensor."""
        return self.centre.shape

    def dim(self) -> int:
        """Number of the tensor's dimensions."""
        return self.centre.dim()

    def size(self, *dim: int) -> Any:
        """Size of the tensor, or of one of its dimensions."""
        return self.centre.size(*dim)

    def __getattr__(self, name: str) -> Callable[..., Interval]:
        function = getattr(Tensor, name)
        return lambda *args, **kwargs: bound(function, self, *args, **kwargs)

    def __add__(self, other: Any) -> Interval:
        return bound(torch.add, self, other)

    __radd__ = __add__

    @classmethod
    def __torch_function__(cls, func: Callable, types: Any, args: Any = (), kwargs: Any = None):
        return bound(func, *args, **(kwargs or {}))


def affine(func: Callable, x: Interval, weight: Tensor, bias: Any = None, *args: Any, **kw: Any):
    """W x + b: the radius goes through |W|."""
    centre = func(x.centre, weight, bias, *args, **kw)
    return Interval(centre, func(x.radius, weight.abs(), None, *args, **kw))


def monotone(func: Callable, x: Interval, *args: Any, **kwargs: Any) -> Interval:
    """Bounds of a function that rises everywhere are its values at the bounds."""
    kwargs.pop("inplace", None)
    lower, upper = func(x.lower, *args, **kwargs), func(x.upper, *args, **kwargs)
    return Interval((lower + upper) / 2, (upper - lower) / 2)


def linear_map(func: Callable, x: Interval, *args: Any, **kwargs: Any) -> Interval:
    """Move or average numbers: weights are 0 or more, so the radius goes the same way."""
    return Interval(func(x.centre, *args, **kwargs), func(x.radius, *args, **kwargs))


def batch_norm(
    func: Callable,
    x: Interval,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Interval:
    """The centre is normalised as always, and the radius is scaled by the same factor."""
    dims = [d for d in range(x.dim()) if d != 1]
    own = training or running_var is None
    var = x.centre.var(dims, unbiased=False) if own else running_var
    scale = (var + eps).rsqrt() * (1 if weight is None else weight.abs())
    centre = func(x.centre, running_mean, running_var, weight, bias, training, momentum, eps)
    return Interval(centre, x.radius * scale.view(1, -1, *(1,) * (x.dim() - 2)))


def dropout(
    func: Callable, x: Interval, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Interval:
    """The same units are dropped in both."""
    kept = func(torch.ones_like(x.centre), p, training)
    return Interval(x.centre * kept, x.radius * kept)


def add(func: Callable, x: Any, y: Any) -> Interval:
    """Radii add up; a constant has none."""
    if not isinstance(x, Interval):
        x, y = y, x
    if isinstance(y, Interval):
        return Interval(x.centre + y.centre, x.radius + y.radius)
    return Interval(x.centre + y, x.radius.expand_as(x.centre + y))


BOUNDS: dict[str, Callable[..., Interval]] = {
    **dict.fromkeys(("linear", "conv1d", "conv2d", "conv3d"), affine),
    **dict.fromkeys(
        ("relu", "relu_", "leaky_relu", "elu", "hardtanh", "relu6", "softplus", "tanh", "sigmoid"),
        monotone,
    ),
    **dict.fromkeys(("max_pool1d", "max_pool2d", "adaptive_max_pool2d", "amax"), monotone),
    **dict.fromkeys(("avg_pool1d", "avg_pool2d", "adaptive_avg_pool2d", "mean", "sum"), linear_map),
    **dict.fromkeys(
        ("flatten", "view", "reshape", "permute", "transpose", "squeeze", "unsqueeze"), linear_map
    ),
    **dict.fromkeys(("contiguous", "float", "to"), linear_map),
    "batch_norm": batch_norm,
    "dropout": dropout,
    "dropout2d": dropout,
    "add": add,
}
"""Bounds of torch functions by name; another op is an error that names it."""


def bound(func: Callable, *args: Any, **kwargs: Any) -> Interval:
    """Bounds of `func(*args)`, where some arguments are boxes.

    Raises:
        PenaltyError: the function's bounds are not known.
    """
    name = getattr(func, "__name__", str(func))
    if name not in BOUNDS:
        raise PenaltyError(
            f"IBP-Ex knows no interval bounds for {name}; it works on nets of "
            f"{', '.join(sorted(BOUNDS))}; choose another penalty, such as consistency"
        )
    return BOUNDS[name](func, *args, **kwargs)
