"""`decompose`: run a model on a pair and read off what feature groups contributed."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cdep_run.batch import Box, fit_mask
from cdep_run.cd.kernels.windows import Windows
from cdep_run.cd.pair import Pair, Part, gradient_wanted, ordinary
from cdep_run.cd.registry import MissingRuleError, use_variants

MODULE_STATE = vars(nn.Module()).keys() - {"training"}
"""Names of the attributes in which `nn.Module` keeps its own: hooks, parameters, submodules."""


@dataclass(frozen=True)
class Decomposition:
    """β and γ of the model's output: `relevant + irrelevant` is the output, for every group.

    Attributes:
        relevant: `[N, G, C]`, what each of G groups contributed; `[N, C]` if the mask had no group
            axis. In the output's unit (logits).
        irrelevant: the rest, of the same shape.
    """

    relevant: Tensor
    irrelevant: Tensor

    @property
    def total(self) -> Tensor:
        """The model's output, `[N, C]`."""
        total = self.relevant + self.irrelevant
        return total[:, 0] if total.dim() == 3 else total


def decompose(
    model: nn.Module,
    x: Tensor,
    mask: Tensor,
    *args: Any,
    boxes: Sequence[Sequence[Box]] | None = None,
    rules: Mapping[str, str] | None = None,
    relevant: Tensor | None = None,
    **kwargs: Any,
) -> Decomposition:
    """Contextual decomposition of `model(x)` into the part due to feature groups and the rest.

    The model's own forward runs once, on a `Pair`; every torch function it calls is replaced by its
    rule. The model is left as one plain forward pass leaves it. Differentiable in the parameters.
    Sources: Murdoch et al. 2018, Singh et al. 2019, Rieger et al. 2019 (arXiv:1909.13584).

    Args:
        model: any module whose forward maps `x` to `[N, C]`, or to an object that has them as its
            `logits`.
        x: `[N, *features]`, float, or int token ids.
        mask: bool `[N or 1, *features]` (one group) or `[N or 1, G, *features]`, True inside the
            group; feature dimensions of size 1 broadcast.
        boxes: for image-shaped `x` `[N, C, H, W]`, per group the boxes (top, bottom, left, right)
            outside which the mask is False in every example; the result is the same, sooner. On a
            CPU the one box around the mask is found if none are given.
        rules: variants of rules by name, such as `{"relu": "symmetric"}`; `VARIANTS` lists them.
        relevant: `[N, G, *features]`, what the groups contributed to `x`, where something else made
            `x`: it stands in for x · mask, and of the mask the group axis alone is read.
        args, kwargs: further arguments of the model's forward, such as `attention_mask`.

    Returns:
        `Decomposition`, `[N, G, C]`, or `[N, C]` for a mask without a group axis.

    Raises:
        MissingRuleError: the forward uses an op without a rule; names the op and the module.
        ValueError: `x` or the mask is no tensor, the mask or `relevant` does not fit `x`, `x` is
            complex or sparse, or the model's output is not `[N, C]`.
    """
    if not (isinstance(x, Tensor) and isinstance(mask, Tensor)):
        kinds = f"{type(x).__name__} and {type(mask).__name__}"
        raise ValueError(f"inputs and mask must be tensors, got {kinds}; use torch.as_tensor")
    if x.is_complex() or x.layout != torch.strided or x.is_nested:
        raise ValueError(f"decompose needs a dense real input, got {x.dtype}, {x.layout}")
    masks = fit_mask(x, mask).unbind(1)
    if boxes is not None:
        _check_boxes(x, boxes, len(masks))
        boxes = boxes if len(x) else None
    elif x.dim() == 4 and x.is_cpu and relevant is None:
        boxes = [_bounds(m) for m in masks] if len(x) else None
    if relevant is None:
        parts = tuple(_part(x, m, boxes[g] if boxes else None) for g, m in enumerate(masks))
    elif relevant.shape == (len(x), len(masks), *x.shape[1:]):
        parts = relevant.unbind(1)
    else:
        wanted = [len(x), len(masks), *x.shape[1:]]
        raise ValueError(f"relevant is {list(relevant.shape)}; it must be {wanted}")
    try:
        with use_variants(rules or {}), _uncompiled(), gradient_wanted():
            output = model(Pair(x, parts), *args, **kwargs)
    except MissingRuleError as error:
        if error.module_path is not None:
            raise
        modules = model.modules() if isinstance(model, nn.Module) else ()
        scripted = any(isinstance(module, torch.jit.ScriptModule) for module in modules)
        cure = "Decompose the module as it was before torch.jit." if scripted else error.cure
        raise MissingRuleError(error.name, _module_path(model, error), cure) from None
    finally:
        _make_state_plain(model)
    output = _logits(output)
    relevant = torch.stack(tuple(output.dense()), 1)
    irrelevant = output.total.unsqueeze(1) - relevant
    return (
        Decomposition(relevant, irrelevant)
        if mask.dim() == x.dim() + 1
        else Decomposition(relevant[:, 0], irrelevant[:, 0])
    )


def interaction(
    model: nn.Module,
    x: Tensor,
    mask_a: Tensor,
    mask_b: Tensor,
    *args: Any,
    rules: Mapping[str, str] | None = None,
    **kwargs: Any,
) -> Tensor:
    """What two feature groups contribute only together: β(A ∪ B) − β(A) − β(B).

    One pass of the total serves all three. Meant for groups that do not overlap: what both hold
    would be taken away twice. Differentiable in the parameters.
    Source: Singh et al. 2019 (ACD); Jumelet et al. 2019.

    Args:
        mask_a, mask_b: masks of the two groups, or of G pairs of groups, as for `decompose`; the
            other arguments as there.

    Returns:
        `[N, G, C]`, or `[N, C]` for masks without a group axis, in the output's unit.

    Raises:
        As `decompose`.
    """
    a, b = fit_mask(x, mask_a), fit_mask(x, mask_b)
    a, b = torch.broadcast_tensors(a, b)
    masks = torch.cat([a | b, a, b], 1)
    together, first, second = decompose(
        model, x, masks, *args, rules=rules, **kwargs
    ).relevant.chunk(3, 1)
    result = together - first - second
    grouped = x.dim() + 1 in (mask_a.dim(), mask_b.dim())
    return result if grouped else result[:, 0]


def _make_state_plain(model: nn.Module) -> None:
    """Make pairs that a forward has left in the model (`self.h = …`) ordinary tensors."""
    for module in model.modules() if isinstance(model, nn.Module) else ():
        for holder in (module.__dict__, module._buffers):
            for name, value in list(holder.items()):
                if name not in MODULE_STATE and (plain := ordinary(value)) is not value:
                    holder[name] = plain


def _logits(output: Any) -> Pair:
    """The model's output, or its `logits`, if it is a pair of `[N, C]`."""
    output = getattr(output, "logits", output)
    if isinstance(output, Pair) and output.total.dim() == 2:
        return output
    if isinstance(output, Tensor):
        got, cure = f"a tensor {list(output.shape)}", ""
        if not isinstance(output, Pair):
            cure = "; it does not depend on the input through decomposed ops"
    else:
        got = f"a {type(output).__name__}"
        cure = (
            "; wrap the model in a module whose forward returns one tensor, `model(x)[0]` or "
            "`model(x)['out']`, or, where only training adds auxiliary outputs, call model.eval()"
        )
    raise ValueError(f"the model's output must be logits [N, C], got {got}{cure}")


def _uncompiled() -> AbstractContextManager:
    """Lets models and functions under `torch.compile` run as they were written."""
    if "torch._dynamo" not in sys.modules:  # nothing was compiled, and importing it takes seconds
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


def _check_boxes(x: Tensor, boxes: Sequence[Sequence[Box]], groups: int) -> None:
    if len(boxes) != groups:
        raise ValueError(f"boxes are given for {len(boxes)} groups, the mask has {groups}")
    if x.dim() != 4:
        raise ValueError(f"boxes are for images [N, C, H, W], the inputs are {list(x.shape)}")
    height, width = x.shape[-2:]
    for top, bottom, left, right in (box for group in boxes for box in group):
        if not (0 <= top < bottom <= height and 0 <= left < right <= width):
            raise ValueError(
                f"box (top {top}, bottom {bottom}, left {left}, right {right}) is empty or not "
                f"inside the image of {height} x {width}"
            )


def _bounds(mask: Tensor) -> Sequence[Box]:
    """The rectangle that holds a mask `[N or 1, C or 1, H, W]`; on a GPU, asking would wait."""
    plane = mask.any(0).any(0)
    if plane.shape[0] == 1 or plane.shape[1] == 1:  # broadcasts over the image
        return ()
    sides = [side.nonzero() for side in (plane.any(1), plane.any(0))]
    if not len(sides[0]):
        return ((0, 1, 0, 1),)
    (top, bottom), (left, right) = ((int(side[0]), int(side[-1]) + 1) for side in sides)
    return ((top, bottom, left, right),)


def _part(x: Tensor, mask: Tensor, boxes: Sequence[Box] | None) -> Part:
    """The relevant part of the input: x inside the group, 0 outside; of token ids the mask."""
    if not x.is_floating_point():
        return mask.expand_as(x)
    if boxes:
        plane = mask.expand(*mask.shape[:2], *x.shape[-2:])
        if (windows := Windows.of_input(x, plane, boxes)) is not None:
            return windows
    return x * mask


def _module_path(model: nn.Module, error: BaseException) -> str:
    """Name of the innermost submodule whose forward was running when `error` was raised."""
    named = model.named_modules() if isinstance(model, nn.Module) else ()
    names = {id(module): name for name, module in named}
    path, traceback = "", error.__traceback__
    while traceback is not None:
        owner = traceback.tb_frame.f_locals.get("self")
        path = names.get(id(owner), path) if isinstance(owner, nn.Module) else path
        traceback = traceback.tb_next
    return path
