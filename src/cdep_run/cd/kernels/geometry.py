"""Which outputs of a sliding window see which inputs, and where windows are worth while."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cdep_run.cd.kernels.rectangles import Corner, Rectangle

Spans = Sequence[tuple[tuple[int, int], tuple[int, int]]]
"""For each rectangle the half-open row range and column range."""

WORTHWHILE = 0.6
"""Windows that cover more than this share of the plane cost more than they save."""


def place(spans: Spans, size: Sequence[int]) -> tuple[tuple[Corner, ...], tuple[int, int]] | None:
    """Corners and the one size of windows that hold `spans`.

    None where they overlap or cover more than is worth while.
    """
    h, w = (max(span[axis][1] - span[axis][0] for span in spans) for axis in (0, 1))
    corners = tuple((min(r[0], size[0] - h), min(c[0], size[1] - w)) for r, c in spans)
    overlap = any(
        abs(a[0] - b[0]) < h and abs(a[1] - b[1]) < w
        for i, a in enumerate(corners)
        for b in corners[:i]
    )
    if overlap or len(spans) * h * w > WORTHWHILE * size[0] * size[1]:
        return None
    return corners, (h, w)


def spans_of(boxes: Sequence[Rectangle]) -> Spans:
    """The spans of boxes (top, bottom, left, right)."""
    return [((top, bottom), (left, right)) for top, bottom, left, right in boxes]


@dataclass(frozen=True)
class Geometry:
    """Kernel, stride, padding and dilation of a sliding window over two dimensions."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    def reach(self, axis: int) -> int:
        return self.dilation[axis] * (self.kernel[axis] - 1)

    def outputs(self, axis: int, start: int, stop: int, limit: int) -> tuple[int, int]:
        """Outputs in [0, limit) that see an input in [start, stop)."""
        s, p = self.stride[axis], self.padding[axis]
        first = max(0, -(-(start + p - self.reach(axis)) // s))
        last = min(limit - 1, (stop - 1 + p) // s)
        # An input that no output sees (cut off by the stride) still needs a place: an empty reach
        # is widened to one output, where the values are zero.
        first = min(first, limit - 1)
        return first, max(last, first) + 1

    def first_input(self, output: Corner) -> Corner:
        """The first input that an output sees; negative inside the padding."""
        return (
            output[0] * self.stride[0] - self.padding[0],
            output[1] * self.stride[1] - self.padding[1],
        )

    def whole(self, axis: int, inputs: int) -> int:
        """How many outputs a plane of so many inputs has."""
        room = inputs + 2 * self.padding[axis] - self.reach(axis) - 1
        return room // self.stride[axis] + 1

    def seen(self, axis: int, outputs: int) -> int:
        """How many inputs so many neighbouring outputs see."""
        return (outputs - 1) * self.stride[axis] + self.reach(axis) + 1

    def spans(self, corners: Sequence[Corner], extent: Sequence[int], size: Sequence[int]) -> Spans:
        """The outputs, of `size` in all, that see something of the rectangles of one `extent`."""
        h, w = extent
        return [
            (self.outputs(0, top, top + h, size[0]), self.outputs(1, left, left + w, size[1]))
            for top, left in corners
        ]


def both_ways(value) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])
