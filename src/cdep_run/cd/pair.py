"""The pair (total, relevant) that travels through a model's own forward pass."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from cdep_run.cd import registry
from cdep_run.cd.kernels.autograd import as_when_deferred, in_checkpoint
from cdep_run.cd.kernels.windows import LazyTotal, Relevant, Total, Windows, with_totals

Part = Tensor | Windows

OPERANDS = (
    "condition",
    "input",
    "other",
    *(f"{kind}{k}" for kind in ("mat", "batch", "tensor") for k in "12"),
    "exponent",
)
"""Names of the first arguments of torch functions, in their order: rules get them by position."""


NEW_VIEWS = ("transpose", "t", "swapaxes", "swapdims", "squeeze", "unsqueeze")
"""Ops whose in-place form (`transpose_`) gives a tensor another shape and leaves its memory."""


class Pair(torch.Tensor):
    """A tensor together with what each of G feature groups contributed to it.

    To a model it is a tensor of the total's shape; every torch function that meets it is handed to
    the rule registered for it (`__torch_function__`). The irrelevant part is never stored:
    γ = total − β.

    In-place ops: the rule computes a new pair, and the old object takes its tensors over. That is
    wrong once another pair is a view of the same memory; then (`_shares_memory`) the new numbers
    are copied into the old memory, where the views see them. Deferred ops still have to read the
    total as it was before such a copy: so the pair lists their readers (`_lazy`), and they get a
    copy of the total when the first view is made (`share_memory`).

    Attributes:
        total: the ordinary activation β + γ. Of an integer input (token ids) it is the ids.
        parts: G relevant parts β, one a feature group, each of the total's shape, or `Windows` when
            β is known to be zero outside some rectangles. For an integer input: the bool masks.
        variants: the variants of rules that were in force where the pair was made.
    """

    total: Tensor
    parts: tuple[Part, ...]
    variants: Mapping[str, str] | None
    _shares_memory: bool = False
    _lazy: tuple[LazyTotal, ...] = ()

    @staticmethod
    def __new__(cls, total: Tensor, parts: tuple[Part, ...]) -> Pair:
        self = torch.Tensor._make_wrapper_subclass(
            cls, total.shape, dtype=total.dtype, device=total.device
        )
        self.total, self.parts, self.variants = total, parts, registry.chosen()
        return self

    def map(self, total: Tensor, fn: Callable[[Tensor], Tensor]) -> Pair:
        """The pair of `total`, the op's ordinary result, and `fn(relevant)` for each group."""
        return Pair(total, tuple(fn(part) for part in self.dense()))

    def map_elements(self, total: Tensor, fn: Callable[[Tensor], Tensor]) -> Pair:
        """As `map`, for `fn` that works element by element and maps 0 to 0: inside windows only."""
        return Pair(
            total,
            tuple(
                Windows(fn(part.evaluated.values), part.corners, part.size)
                if isinstance(part, Windows)
                else fn(part)
                for part in self.parts
            ),
        )

    def apply(self, fn: Total, part: Relevant, total: Tensor | None = None) -> Pair:
        """The pair of `fn(total)`, an elementwise op, and `part(relevant, before, after)` for each.

        `before` and `after` are the total on either side of the op; where `relevant` is 0 it stays
        0. A part that is zero outside some windows is computed there only. `total` is
        `fn(total)`, if it is known.
        """
        total = fn(self.total) if total is None else total
        lazy, parts = with_totals(self.total, self.parts)
        if lazy is not None and torch.is_grad_enabled():
            self._lazy += (lazy,)
        return Pair(
            total,
            tuple(
                rel.apply(fn, part) if isinstance(rel, Windows) else part(rel, self.total, total)
                for rel in parts
            ),
        )

    def share_memory(self) -> None:
        """From now on in-place writes go into the memory: another pair is a view of it."""
        for lazy in self._lazy:
            lazy.keep()
        self._lazy, self._shares_memory = (), True

    def link_view(self, result: Pair) -> Pair:
        """`result` of an op that may return a view: in-place writes then reach both pairs."""
        # In inference mode torch does not know which tensors are views.
        if result.total._is_view() or _memory(result.total) == _memory(self.total):
            self.share_memory()
            result.share_memory()
        return result

    def lay_out(self) -> tuple[Tensor, ...]:
        """The parts, from now on tensors with the total's strides: a view of it is one of them."""
        with as_when_deferred():  # they stay this pair's, where gradients may be wanted again
            self.parts = tuple(_laid_out_as(self.total, part) for part in self.parts)
        return self.parts  # type: ignore[return-value]

    def dense(self) -> Iterator[Tensor]:
        """The relevant parts as ordinary tensors of the total's shape, one a group."""
        return (part.dense() if isinstance(part, Windows) else part for part in self.parts)

    def densified(self) -> Pair:
        """This pair with ordinary tensors as its parts."""
        return Pair(self.total, tuple(self.dense()))

    def _write(self, result: Tensor) -> Tensor:
        """Take over `result`, as an in-place op does; views of the same memory see it too.

        What is no pair, such as a comparison, leaves a constant.
        """
        if not isinstance(result, Pair):
            if self._shares_memory:
                raise registry.MissingRuleError(
                    "a comparison or the like, in place", cure="Write it out of place."
                )
            self.total, self.__class__ = result.to(self.total.dtype), Constant  # type: ignore[assignment]
            return self
        if self._shares_memory:
            self.total.copy_(result.total)
            for mine, new in zip(self.dense(), result.dense(), strict=True):
                mine.copy_(new)
        else:
            self.total, self.parts = result.total, result.parts
        return self

    def _look_through(self, view: Pair) -> Pair:
        """Become `view`, as an op does that changes the shape in place and writes nothing."""
        self.total, self.parts = view.total, view.parts
        return self

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"Pair(total={self.total!r}, groups={len(self.parts)})"

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if _gradient_wanted.get() and not torch.is_grad_enabled():
            _refuse_autograd_functions()
        if registry.chosen() is None:  # a checkpoint computes again, after `decompose`
            variants = next(_pairs((args, kwargs))).variants
            if variants is not None:
                with registry.use_variants(variants):
                    return cls.__torch_function__(func, types, args, kwargs)
        if in_checkpoint():  # which computes the same again: by then all parts are ordinary tensors
            for pair in _pairs((args, kwargs)):
                pair.lay_out()
        kwargs = dict(kwargs) if kwargs else {}
        if kwargs:
            if kwargs.pop("out", None) is not None:
                raise registry.MissingRuleError(
                    f"{registry.describe(func)} with out=", cure="Use what it returns instead."
                )
            args = (*args, *(kwargs.pop(name) for name in OPERANDS if name in kwargs))
        rule, func, in_place = registry.find(func)
        in_place = kwargs.pop("inplace", False) or in_place
        if not in_place:
            return rule(func, *args, **kwargs)
        if not isinstance(args[0], Pair):
            raise registry.MissingRuleError(
                f"{registry.describe(func)}_ of an ordinary tensor with a decomposed one",
                cure="Make the first with decomposed.new_zeros(...), or write it out of place.",
            )
        written = args[0]
        if func.__name__ in NEW_VIEWS:
            return written._look_through(rule(func, *args, **kwargs))
        if written._shares_memory:
            # What the rule keeps for the backward pass must not be what is written to.
            args = (written.map(written.total.clone(), torch.clone), *args[1:])
        return written._write(rule(func, *args, **kwargs))

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        # Only code that bypasses __torch_function__ (scripted modules, C++ extensions) gets here.
        raise registry.MissingRuleError(
            f"{func}, called from scripted or C++ code",
            cure="Rules see torch functions alone: write this step with them.",
        )


def _laid_out_as(total: Tensor, part: Part) -> Tensor:
    """The part as a tensor of its own with the total's strides: whether `reshape` copies depends
    on them."""
    if isinstance(part, Windows):
        values, part = part.evaluated.values, part.dense()
        part = part.clone() if part is values else part  # other pairs' windows may hold them, too
    if part.stride() == total.stride():
        return part
    new = torch.empty_like(total, dtype=part.dtype)
    return new.copy_(part) if new.stride() == total.stride() else part


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


_gradient_wanted: ContextVar[bool] = ContextVar("gradient_wanted", default=False)


@contextmanager
def gradient_wanted() -> Iterator[None]:
    """While it lasts, ops that would lose the parts' gradients are refused, if gradients are on."""
    token = _gradient_wanted.set(torch.is_grad_enabled())
    try:
        yield
    finally:
        _gradient_wanted.reset(token)


def _refuse_autograd_functions() -> None:
    """Raise inside the forward of a `torch.autograd.Function`: its backward knows no parts."""
    kinds, forwards = [torch.autograd.Function], {}
    for kind in kinds:
        kinds += kind.__subclasses__()
        forwards[getattr(kind.forward, "__code__", None)] = kind.__name__
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        if frame.f_code in forwards:
            raise registry.MissingRuleError(
                f"{forwards[frame.f_code]}.apply, a torch.autograd.Function",
                cure="Its backward would lose the parts: write its forward as ordinary torch ops "
                "(a checkpoint: with use_reentrant=False), or decompose under torch.no_grad().",
            )
        frame = frame.f_back


class Constant(torch.Tensor):
    """An ordinary tensor that a model made like a pair (`x.new_zeros`, `torch.empty_like(x)`).

    It has no parts and counts as a constant; when something decomposed is written into it, it
    becomes a `Pair`.
    """

    total: Tensor

    @staticmethod
    def __new__(cls, total: Tensor) -> Constant:
        self = torch.Tensor._make_wrapper_subclass(
            cls, total.shape, dtype=total.dtype, device=total.device
        )
        self.total = total
        return self

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        target, name = (args[0] if args else None), getattr(func, "__name__", "")
        pair = next((a for a in args if isinstance(a, Pair)), None)
        writes = name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))
        if writes and pair is not None and isinstance(target, Constant):
            zeros = torch.zeros_like(target.total)
            target.__class__ = Pair
            target.variants = pair.variants
            target.parts = (zeros,) * len(pair.parts)
        result = func(*_plain(args), **_plain(kwargs or {}))
        written = isinstance(target, Constant) and result is target.total
        return target if written else result

    __torch_dispatch__ = Pair.__torch_dispatch__  # type: ignore[assignment]


def _plain(value: Any) -> Any:
    """`value` with every `Constant` in it made an ordinary tensor."""
    if isinstance(value, Constant):
        return value.total
    if isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
        items = [_plain(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _pairs(value: Any) -> Iterator[Pair]:
    """Every pair in `value`, also inside lists, tuples and dicts."""
    if isinstance(value, Pair):
        yield value
    elif isinstance(value, dict):
        yield from _pairs(list(value.values()))
    elif isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
        for item in value:
            yield from _pairs(item)


def total_of(value: Any) -> Any:
    """`value` with every `Pair` in it, also inside lists, tuples and dicts, made its total."""
    if isinstance(value, Pair):
        return value.total
    if isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
        items = [total_of(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, dict):
        return {key: total_of(item) for key, item in value.items()}
    return value


def ordinary(value: Any) -> Any:
    """`value` itself if no pair or made constant is in it; else with ordinary tensors for them."""
    if isinstance(value, (Pair, Constant)):
        return value.total
    if isinstance(value, dict):
        items = {key: ordinary(item) for key, item in value.items()}
        return items if any(items[key] is not value[key] for key in items) else value
    if isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
        items_of = [ordinary(item) for item in value]
        if all(a is b for a, b in zip(items_of, value, strict=True)):
            return value
        return type(value)(*items_of) if hasattr(value, "_fields") else type(value)(items_of)
    return value
