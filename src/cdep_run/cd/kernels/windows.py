"""Relevant parts that are zero outside a few rectangles of an activation.

A corner patch or a single pixel reaches only a small part of the first layers. There only the
rectangles that can differ from zero are computed. Where they would overlap, or an op has no rule
for them, the part becomes an ordinary tensor again; the result is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from cdep_run.cd.kernels.autograd import as_when_deferred, run
from cdep_run.cd.kernels.geometry import place, spans_of
from cdep_run.cd.kernels.rectangles import Corner, Inside, Move, Put, Read, Rectangle, cut

Total = Callable[[Tensor], Tensor]

Relevant = Callable[[Tensor, Tensor, Tensor], Tensor]

Elementwise = tuple[Total, Relevant]
"""An elementwise op: of the total, and of a part, given the total before and after it."""


class LazyTotal:
    """A total `[N, C, H, W]`, read when it is asked for, for all groups at once."""

    def __init__(self, x: Tensor, places: Sequence[tuple[Sequence[Corner], Sequence[int]]]):
        self.x, self.places = x, places
        self.pooled: tuple[Tensor, Tensor] | None = None

    @cached_property
    def inside(self) -> tuple[Tensor, ...]:
        """What it holds in the windows of each group."""
        return run(Inside, self.x, self.places)

    def keep(self) -> None:
        """Read a copy from now on: ops in place may write into the total."""
        with as_when_deferred():
            self.x = self.x.clone()

    def at(self, indices: Tensor) -> Tensor:
        """What it holds where max pooling chose, `[N, C, H', W']`."""
        if self.pooled is None or self.pooled[0] is not indices:
            values = self.x.flatten(2).gather(2, indices.flatten(2)).view_as(indices)
            self.pooled = indices, values
        return self.pooled[1]


@dataclass(frozen=True)
class Windows:
    """A part of an activation `[N, C, H, W]` that is zero outside P rectangles of one size h × w.

    Elementwise ops wait until the values are asked for: max pooling, which comes after them in most
    nets, leaves few places where they are needed.

    Attributes:
        values: `[P·N, C, h, w]`, the rectangles stacked on the batch dimension.
        corners: top and left of each rectangle; they do not overlap.
        size: (H, W) of the whole activation.
        total: what the total holds in the rectangles, `[P·N, C, h, w]`, or where to read it and the
            number of the group there; None if nobody has asked for it.
        deferred: ops still to be done, as for `Pair.apply`; `total` too is from before them.
    """

    values: Tensor
    corners: tuple[Corner, ...]
    size: tuple[int, int]
    total: Tensor | tuple[LazyTotal, int] | None = None
    deferred: tuple[Elementwise, ...] = ()

    @classmethod
    def of_input(cls, x: Tensor, mask: Tensor, boxes: Sequence[Rectangle]) -> Windows | None:
        """The windows of x ⊙ mask at `boxes`; None where windows would not pay.

        Args:
            x: `[N, C, H, W]`; mask: `[N or 1, C or 1, H, W]`.
            boxes: (top, bottom, left, right); several sizes are widened to the largest one.
        """
        size = (x.shape[-2], x.shape[-1])
        placed = place(spans_of(boxes), size)
        if placed is None:
            return None
        inside = cut(mask.expand(len(x), *mask.shape[1:]), *placed)
        return cls(run(Read, x, *placed) * inside, placed[0], size)

    def apply(self, fn: Total, part: Relevant) -> Windows:
        """The windows after an elementwise op, as in `Pair.apply`; their `total` is known."""
        if torch.is_grad_enabled():
            return replace(self, deferred=(*self.deferred, (fn, part)))
        return self.evaluated._after(fn, part)  # what comes later may want gradients again

    @cached_property
    def evaluated(self) -> Windows:
        """The same windows with nothing deferred."""
        done = replace(self, deferred=()) if self.deferred else self
        with as_when_deferred():
            for fn, part in self.deferred:
                done = done._after(fn, part)
        return done

    def _after(self, fn: Total, part: Relevant) -> Windows:
        before = self.total_inside
        assert before is not None
        total = fn(before)
        return replace(self, values=part(self.values, before, total), total=total)

    @property
    def total_inside(self) -> Tensor | None:
        """What the total holds in the rectangles, `[P·N, C, h, w]`, if anybody has asked for it."""
        if isinstance(self.total, tuple):
            totals, group = self.total
            return totals.inside[group]
        return self.total

    def dense(self) -> Tensor:
        """The ordinary tensor `[N, C, H, W]`, to be read alone: it may be the values themselves."""
        if self.values.shape[-2:] == self.size and self.corners == ((0, 0),):
            return self.evaluated.values
        return run(Put, self.evaluated.values, self.corners, self.size)

    def read(self, rectangles: Sequence[Rectangle]) -> Tensor:
        """One rectangle of the plane for each window, `[P·N, C, height, width]`.

        Each holds its own window only; the rectangles are of one size.
        """
        offsets = [
            (top - r, left - c)
            for (top, left), (r, c, *_) in zip(self.corners, rectangles, strict=True)
        ]
        return run(Move, self.values, offsets, rectangles[0][2:])


def pad(windows: Windows, left: int, right: int, top: int, bottom: int) -> Windows:
    """The same rectangles on a plane with more zeros around it."""
    corners = tuple((row + top, column + left) for row, column in windows.corners)
    height, width = windows.size
    values = windows.evaluated.values
    return Windows(values, corners, (height + top + bottom, width + left + right))


def combine(
    func: Callable[[Tensor, Tensor], Tensor], one: Windows, other: Windows
) -> Windows | None:
    """`func`, a sum or difference, of two parts of one plane, such as at a residual link.

    Returns:
        Windows around each rectangle of `one` and the one of `other` of the same number, or None
        where there are not as many, or they would overlap or cover most of the plane.
    """
    if len(one.corners) != len(other.corners) or one.size != other.size:
        return None
    sizes = one.values.shape[-2:], other.values.shape[-2:]
    spans = [
        tuple((min(a[k], b[k]), max(a[k] + sizes[0][k], b[k] + sizes[1][k])) for k in (0, 1))
        for a, b in zip(one.corners, other.corners, strict=True)
    ]
    placed = place(spans, one.size)  # type: ignore[arg-type]
    if placed is None:
        return None
    corners, size = placed
    rectangles = [(*corner, *size) for corner in corners]
    one_there, other_there = (part.evaluated.read(rectangles) for part in (one, other))
    return Windows(func(one_there, other_there), corners, one.size)


def added(
    func: Callable[[Tensor, Tensor], Tensor],
    a: Tensor | Windows,
    b: Tensor | Windows,
    shape: torch.Size,
) -> Tensor | Windows:
    """`func`, a sum or difference, of two parts, of `shape`: in windows if that pays."""
    if isinstance(a, Windows) and isinstance(b, Windows):
        combined = combine(func, a, b)
        if combined is not None:
            return combined
    a, b = (part.dense() if isinstance(part, Windows) else part for part in (a, b))
    return func(a, b).expand(shape)


def with_totals(
    x: Tensor, parts: Sequence[Tensor | Windows]
) -> tuple[LazyTotal | None, Sequence[Tensor | Windows]]:
    """The parts, the windows among them able to read what the total `x` `[N, C, H, W]` holds.

    Those that were not before read it through the `LazyTotal` that comes first, if there are any.
    """
    unread = [k for k, part in enumerate(parts) if isinstance(part, Windows) and part.total is None]
    if not unread:
        return None, parts
    known: list[Any] = list(parts)
    totals = LazyTotal(x, [(known[k].corners, known[k].values.shape[-2:]) for k in unread])
    for number, k in enumerate(unread):
        known[k] = replace(known[k], total=(totals, number))
    return totals, known
