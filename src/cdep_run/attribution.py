"""Gradient attributions that a loss can train through: input gradients and expected gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from cdep_run.batch import Box
from cdep_run.cd.kernels import convolution
from cdep_run.errors import CdepError

Model = Callable[[Tensor], Tensor]


class PenaltyError(CdepError):
    """A penalty cannot be computed on this batch, or is constant whatever the model does."""


def logits_of(output: Any) -> Tensor:
    """Return the logits `[N, C]`, C at least 2, of a model's output: itself, or its `logits`.

    Raises:
        PenaltyError: the output is anything else; says what came and what to do.
    """
    output = getattr(output, "logits", output)
    if isinstance(output, Tensor) and output.dim() == 2 and output.shape[1] > 1:
        return output
    got, cure = f"a {type(output).__name__}", ""
    if isinstance(output, Tensor):
        got = f"a tensor {list(output.shape)}"
    if isinstance(output, (tuple, list, dict)):
        cure = (
            "; wrap the model in a module that returns one tensor, `model(x)[0]` or "
            "`model(x)['out']`"
        )
    elif isinstance(output, Tensor) and output.dim() == 4:
        cure = "; pool it over height and width first: `model(x).mean((2, 3))`"
    elif isinstance(output, Tensor) and output.shape[1:] in ((), (1,)):
        cure = (
            "; one logit z of two classes is the same model as the pair (0, z): return "
            "`torch.cat([0 * z, z], 1)` and train with cross-entropy"
        )
    raise PenaltyError(
        f"a penalty compares classes: it needs logits [N, C], C >= 2, got {got}{cure}"
    )


def input_gradients(
    model: Model, inputs: Tensor, score: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Gradient of a score of the logits with respect to the inputs.

    Args:
        model: maps `[N, *features]` to logits `[N, C]`.
        inputs: `[N, *features]` float. If they carry a graph it is kept, so that what made them is
            trained too.
        score: maps logits `[N, C]` to a scalar.

    Returns:
        logits `[N, C]` and the gradient `[N, *features]`, both differentiable in the parameters.

    Raises:
        PenaltyError: the output is no logits `[N, C]`, or has no gradient in the inputs.
    """
    with torch.enable_grad():
        inputs = inputs if inputs.requires_grad else inputs.detach().requires_grad_()
        logits = logits_of(model(inputs))
        value = score(logits)
        gradient = None
        if value.requires_grad:
            (gradient,) = torch.autograd.grad(value, inputs, create_graph=True, allow_unused=True)
    if gradient is None:
        raise PenaltyError(
            "the model's logits have no gradient in its input, so an input gradient cannot be "
            "penalised: on the way from input to logits stands torch.no_grad, detach, .data, or an "
            "op without a gradient, such as argmax or round"
        )
    return logits, gradient


def expected_gradients(
    model: Model,
    inputs: Tensor,
    labels: Tensor,
    references: Tensor,
    alpha: Tensor,
    product: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """One sample of expected gradients for each reference: (x − x′) ⊙ ∂p_y/∂x at x′ + α(x − x′).

    The attribution φ is the mean over the samples. Source: Erion et al. 2019, Eq. 2.

    Args:
        model: maps `[N, *features]` to logits `[N, C]`.
        inputs: x, `[N, *features]` float.
        labels: y, int64 `[N]`.
        references: x′, `[S, N, *features]`.
        alpha: α in [0, 1], `[S, N]`.
        product: takes the place of ⊙, of one sample's difference and gradient `[N, *features]`,
            such as `Groups.attribution`, which keeps both to feature groups. None: ⊙.

    Returns:
        `[S, N, *features]`, in units of probability, differentiable in the parameters; with a
        `product` of one's own what it returns, for each sample.
    """
    difference = inputs - references
    points = references + alpha.view(*alpha.shape, *(1,) * (inputs.dim() - 1)) * difference
    repeated = labels.repeat(len(references))[:, None]

    def probability(logits: Tensor) -> Tensor:
        return F.softmax(logits, 1).gather(1, repeated).sum()

    _, gradient = input_gradients(model, points.flatten(0, 1), probability)
    gradient = gradient.view_as(points)
    if product is None:
        return difference * gradient
    return torch.stack([product(*pair) for pair in zip(difference, gradient, strict=True)])


def features(
    model: nn.Module, inputs: Tensor, boxes: Sequence[Sequence[Box]] | None = None
) -> tuple[Model, Tensor]:
    """Continuous features of the inputs: float inputs themselves; of token ids the word vectors.

    The vectors are those of the first embedding in which the model looks its inputs up; they carry
    the graph to its weights.

    Args:
        model: maps `inputs` to logits.
        inputs: `[N, *features]` float, or token ids int64 `[N, T]`.
        boxes: for images, the boxes of each group. Outside all of them the gradient may come out
            as 0, which saves time.

    Returns:
        A function from features `[S·N, …]` to the model's output `[S·N, C]`, twice differentiable,
        and the features of `inputs`.

    Raises:
        PenaltyError: the model looks token ids up in no embedding.
    """
    if inputs.is_floating_point():
        every = sorted({box for group in boxes or () for box in group})
        if inputs.requires_grad:  # what made the inputs wants the whole gradient
            every = []
        return partial(_from_floats, model, every), inputs
    lookup = _Lookup(inputs)
    with suppress(_VectorsFound), lookup:
        model(inputs)
    if lookup.vectors is None:
        raise PenaltyError(
            "the model gets token ids, but looks them up in no embedding, so there is nothing to "
            "take a gradient of; use nn.Embedding or F.embedding on the ids themselves"
        )
    return partial(_from_vectors, model, inputs), lookup.vectors


def _from_floats(model: nn.Module, boxes: Sequence[Box], inputs: Tensor) -> Tensor:
    """`model(inputs)`; with boxes, the inputs' gradient through convolutions is 0 outside them."""
    with twice_differentiable(model), _Narrow(inputs, boxes) if boxes else nullcontext():
        return model(inputs)


def _from_vectors(model: nn.Module, tokens: Tensor, vectors: Tensor) -> Tensor:
    """`model(tokens)` where its embedding gives out `vectors` `[S·N, T, D]`."""
    tokens = tokens.repeat(len(vectors) // len(tokens), 1)
    with twice_differentiable(model), _Lookup(tokens, vectors):
        return model(tokens)


@contextmanager
def twice_differentiable(model: nn.Module) -> Iterator[None]:
    """Run attention and recurrent nets on kernels that have a second derivative.

    Fused attention and cuDNN's recurrent nets have none. The plain ones keep every attention weight
    in memory and cost more time (docs/penalties.md).
    """
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if recurrent:
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        yield


class _Narrow(TorchFunctionMode):
    """Convolves `inputs` so that their gradient is computed inside some boxes only.

    The first layer of a net for images has large planes and few channels, and its input gradient
    takes longer than all else in that layer. Other uses of the inputs stay as they are.
    """

    def __init__(self, inputs: Tensor, boxes: Sequence[Box]) -> None:
        super().__init__()
        self.inputs, self.boxes = inputs, boxes

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.conv2d and args and args[0] is self.inputs and self.inputs.dim() == 4:
            return self._convolve(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _convolve(self, x, weight, bias=None, *how, **named) -> Tensor:
        adjoint = convolution.adjoint(x.shape[-2:], self.boxes, weight, *how, **named)
        if adjoint is None:
            return torch.conv2d(x, weight, bias, *how, **named)
        result = torch.conv2d(x.detach(), weight, bias, *how, **named)
        return result + _Zero.apply(x, result, adjoint)


class _Zero(torch.autograd.Function):
    """Zeros shaped like `like`; their gradient in `inputs` is what `adjoint` makes of theirs."""

    @staticmethod
    def forward(ctx, inputs: Tensor, like: Tensor, adjoint: Callable[[Tensor], Tensor]):
        ctx.adjoint, ctx.dtype = adjoint, inputs.dtype
        return like.new_zeros(()).expand_as(like)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return ctx.adjoint(grad).to(ctx.dtype), None, None


class _VectorsFound(Exception):
    """Ends a forward pass as soon as the vectors are known."""


class _Lookup(TorchFunctionMode):
    """Replaces the vectors of `tokens` by `vectors`; without any, keeps the model's own and stops.

    Raises:
        _VectorsFound: no vectors were given, and the model looked its tokens up.
    """

    def __init__(self, tokens: Tensor, vectors: Tensor | None = None) -> None:
        super().__init__()
        self.tokens, self.vectors, self.given = tokens, vectors, vectors is not None

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is not F.embedding or not self._is_tokens(args[0] if args else kwargs["input"]):
            return func(*args, **kwargs)
        if not self.given:
            self.vectors = func(*args, **kwargs)
            raise _VectorsFound
        return self.vectors

    def _is_tokens(self, ids: Tensor) -> bool:
        return ids.shape == self.tokens.shape and ids.data_ptr() == self.tokens.data_ptr()


@contextmanager
def statistics_at_rest(model: nn.Module) -> Iterator[None]:
    """Keep the running statistics of batch-norm layers while an extra pass goes through them."""
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
