"""Gradient attributions that a loss can train through: input gradients and expected gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from cdep_run.batch import Box
from cdep_run.cd import windows

Model = Callable[[Tensor], Tensor]


def input_gradients(
    model: Model, inputs: Tensor, score: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Gradient of a score of the logits with respect to the inputs.

    Args:
        model: maps `[N, *features]` to logits `[N, C]`.
        inputs: `[N, *features]` float; a graph that they hang on is kept, so that what made them
            is trained too.
        score: maps logits `[N, C]` to a scalar.

    Returns:
        logits `[N, C]` and the gradient `[N, *features]`, both differentiable in the parameters.
    """
    with torch.enable_grad():
        inputs = inputs if inputs.requires_grad else inputs.detach().requires_grad_()
        logits = model(inputs)
        (gradient,) = torch.autograd.grad(score(logits), inputs, create_graph=True)
    return logits, gradient


def expected_gradients(
    model: Model, inputs: Tensor, labels: Tensor, references: Tensor, alpha: Tensor
) -> Tensor:
    """One sample of expected gradients for each reference: (x − x′) ⊙ ∂p_y/∂x at x′ + α(x − x′).

    The attribution φ is the mean over the samples. Source: Erion et al. 2019, Eq. 2.

    Args:
        model: maps `[N, *features]` to logits `[N, C]`.
        inputs: x, `[N, *features]` float.
        labels: y, int64 `[N]`.
        references: x′, `[S, N, *features]`.
        alpha: α in [0, 1], `[S, N]`.

    Returns:
        `[S, N, *features]`, in units of probability, differentiable in the parameters.
    """
    difference = inputs - references
    points = references + alpha.view(*alpha.shape, *(1,) * (inputs.dim() - 1)) * difference
    repeated = labels.repeat(len(references))[:, None]

    def probability(logits: Tensor) -> Tensor:
        return F.softmax(logits, 1).gather(1, repeated).sum()

    _, gradient = input_gradients(model, points.flatten(0, 1), probability)
    return difference * gradient.view_as(points)


def features(
    model: nn.Module, inputs: Tensor, boxes: Sequence[Sequence[Box]] | None = None
) -> tuple[Model, Tensor]:
    """What gradients are taken of: float inputs as they are; of token ids, the words' vectors.

    The vectors are those of the first embedding that the model looks its inputs up in, whatever the
    model; they hang on its weights.

    Args:
        model: maps `inputs` to logits.
        inputs: `[N, *features]` float, or token ids int64 `[N, T]`.
        boxes: of images, for each group the boxes outside which nobody asks for the gradient: it
            may be 0 there, and is found sooner.

    Returns:
        A function from features `[S·N, …]` to logits `[S·N, C]`, and the features of `inputs`.

    Raises:
        ValueError: the model looks token ids up in no embedding.
    """
    if inputs.is_floating_point():
        every = sorted({box for group in boxes or () for box in group})
        if not every or inputs.requires_grad:  # what made the inputs wants the whole gradient
            return model, inputs
        return partial(_narrowly, model, every), inputs
    lookup = _Lookup(inputs)
    with suppress(_Found), lookup:
        model(inputs)
    if lookup.vectors is None:
        raise ValueError("the model gets token ids, but looks them up in no embedding")

    def from_vectors(vectors: Tensor) -> Tensor:
        tokens = inputs.repeat(len(vectors) // len(inputs), 1)
        # cuDNN has no second derivative of recurrent nets.
        with _Lookup(tokens, vectors), torch.backends.cudnn.flags(enabled=False):
            return model(tokens)

    return from_vectors, lookup.vectors


def _narrowly(model: Model, boxes: Sequence[Box], inputs: Tensor) -> Tensor:
    """`model(inputs)`; where it convolves them the gradient comes through in the boxes only."""
    with _Narrow(inputs, boxes):
        return model(inputs)


class _Narrow(TorchFunctionMode):
    """Convolves `inputs` so that their gradient is found in some boxes only.

    The first layer of a net of images has large planes and few channels, and for its input gradient
    the library takes longer than for all else in it. Other uses of the inputs stay as they are.
    """

    def __init__(self, inputs: Tensor, boxes: Sequence[Box]) -> None:
        super().__init__()
        self.inputs, self.boxes = inputs, boxes

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.conv2d and args and args[0] is self.inputs and self.inputs.dim() == 4:
            return self._convolve(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _convolve(self, x, weight, bias=None, *how, **named) -> Tensor:
        adjoint = windows.adjoint(x.shape[-2:], self.boxes, weight, *how, **named)
        if adjoint is None:
            return torch.conv2d(x, weight, bias, *how, **named)
        result = torch.conv2d(x.detach(), weight, bias, *how, **named)
        return result + _Zero.apply(x, result, adjoint)


class _Zero(torch.autograd.Function):
    """Zeros shaped like `like` that depend on `inputs` by a function for their gradient alone."""

    @staticmethod
    def forward(ctx, inputs: Tensor, like: Tensor, adjoint: Callable[[Tensor], Tensor]):
        ctx.adjoint, ctx.dtype = adjoint, inputs.dtype
        return like.new_zeros(()).expand_as(like)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return ctx.adjoint(grad).to(ctx.dtype), None, None


class _Found(Exception):
    """Ends a forward pass as soon as the vectors are known."""


class _Lookup(TorchFunctionMode):
    """Gives out `vectors` where `tokens` are looked up; without them it notes those and stops."""

    def __init__(self, tokens: Tensor, vectors: Tensor | None = None) -> None:
        super().__init__()
        self.tokens, self.vectors, self.given = tokens, vectors, vectors is not None

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is not F.embedding or not self._is_tokens(args[0] if args else kwargs["input"]):
            return func(*args, **kwargs)
        if not self.given:
            self.vectors = func(*args, **kwargs)
            raise _Found
        return self.vectors

    def _is_tokens(self, ids: Tensor) -> bool:
        return ids.shape == self.tokens.shape and ids.data_ptr() == self.tokens.data_ptr()


def covering(mask: Tensor, features: Tensor) -> Tensor:
    """A mask `[N or 1, G, *…]` with the missing last dimensions of `features` `[N, *…]`."""
    return mask.view(*mask.shape, *(1,) * (features.dim() + 1 - mask.dim()))


@contextmanager
def statistics_at_rest(model: nn.Module) -> Iterator[None]:
    """Batch-norm layers normalise as always, but an extra pass does not move their statistics."""
    moving = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
    ]
    kept = [(module.momentum, module.num_batches_tracked) for module in moving]
    for module in moving:
        module.momentum, module.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for module, (momentum, counter) in zip(moving, kept, strict=True):
            module.momentum, module.num_batches_tracked = momentum, counter
