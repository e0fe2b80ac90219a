"""Feature groups that are linear maps of the input: colour, a frequency band, a direction, columns.

A shortcut need not be a region. The colour of an image is a direction at every pixel, its texture
a band of frequencies, the gender of a pronoun a direction among word vectors. Each of them is a
linear map P, and P x is what must not matter of an input x.

Data are standardised, (raw − mean) / std, and the maps are meant in raw units: with S = diag(std)
they act as S⁻¹ P S, so that P x is the projected deviation from the mean input, in standardised
units. The maps here are symmetric in raw units, Pᵀ = P, and the adjoint is S P S⁻¹.
"""

from __future__ import annotations

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cdep_run.batch import Groups, Projection
from cdep_run.datasets.base import Annotation, DataError


class Symmetric(ABC):
    """A map that is its own adjoint in raw units; a subclass says what it is called and does.

    Args:
        scale: raw units in one standardised unit, such as the std of each channel `[C, 1, 1]`; it
            broadcasts to the features. None: the inputs are in raw units, or all scales agree.
    """

    name: str

    def __init__(self, scale: Tensor | None = None) -> None:
        self.scale = scale

    @abstractmethod
    def raw(self, inputs: Tensor) -> Tensor:
        """P x of `[..., *features]` in raw units."""

    def project(self, inputs: Tensor) -> Tensor:
        """S⁻¹ P S x of `[..., *features]` in standardised units."""
        if self.scale is None:
            return self.raw(inputs)
        scale = self.scale.to(inputs.dtype)
        return self.raw(inputs * scale) / scale

    def adjoint(self, gradient: Tensor) -> Tensor:
        """S P S⁻¹ g of a gradient `[..., *features]` in standardised units."""
        if self.scale is None:
            return self.raw(gradient)
        scale = self.scale.to(gradient.dtype)
        return self.raw(gradient / scale) * scale

    def to(self, device: torch.device | str) -> Symmetric:
        """Return the same map with its tensors on `device`."""
        moved = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(moved, name, value.to(device))
        return moved


class Chroma(Symmetric):
    """The colour of images `[..., C, H, W]`: what differs from the grey mean over the channels."""

    name = "chroma"

    def raw(self, inputs: Tensor) -> Tensor:
        """x − mean over the channels of x."""
        return inputs - inputs.mean(-3, keepdim=True)


class Channels(Symmetric):
    """Some channels of images `[..., C, H, W]`.

    Args:
        channels: their numbers, counted from 0.
        count: C.
    """

    def __init__(self, channels: Sequence[int], count: int) -> None:
        super().__init__()  # a channel stays itself in any unit
        self.name = f"channel {', '.join(map(str, channels))}"
        self.chosen = torch.zeros(count, 1, 1)
        self.chosen[list(channels)] = 1

    def raw(self, inputs: Tensor) -> Tensor:
        """x in the chosen channels, 0 in the others."""
        return inputs * self.chosen.to(inputs.dtype)


class Frequency(Symmetric):
    """A band of spatial frequencies of images `[..., H, W]`: texture is high, shape is low.

    A wave of f_y cycles a pixel down and f_x across has the frequency 2·√(f_y² + f_x²), cut off at
    1: 0 is the mean, 1 the finest stripes that pixels can show.

    Args:
        low, high: the band; low is in it, high is not, unless it is 1.
        height, width: of the images.
    """

    def __init__(self, low: float, high: float, height: int, width: int) -> None:
        super().__init__()  # a channel's scale passes through a map of its plane
        self.name = f"frequencies {low:g} to {high:g}"
        rows, columns = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)
        frequency = (2 * (rows**2 + columns**2).sqrt()).clamp(max=1)
        self.band = ((frequency >= low) & ((frequency < high) | (high >= 1))).float()

    def raw(self, inputs: Tensor) -> Tensor:
        """Drop the other waves from each plane of `[..., H, W]`."""
        dtype = inputs.dtype if inputs.dtype == torch.float64 else torch.float32
        waves = torch.fft.rfft2(inputs.to(dtype)) * self.band.to(dtype)
        return torch.fft.irfft2(waves, s=inputs.shape[-2:]).to(inputs.dtype)


class Span(Symmetric):
    """What lies in the span of some directions, of vectors `[..., D]`: words' or a table's rows.

    Args:
        directions: `[K, D]`; they need neither be orthogonal nor of length 1.
        name: what the span is called.

    Raises:
        DataError: a direction is zero.
    """

    def __init__(self, directions: Tensor, name: str) -> None:
        super().__init__()
        self.name = name
        lengths = directions.norm(dim=1)
        if not bool((lengths > 0).all()):
            raise DataError(f"the group {name} is a direction of length 0")
        _, sizes, rows = torch.linalg.svd(directions.double() / lengths[:, None], False)
        self.basis = rows[sizes > 1e-6 * sizes[0]].float()  # [rank, D], orthonormal

    def raw(self, inputs: Tensor) -> Tensor:
        """Q Qᵀ x with the columns of Q an orthonormal basis of the span."""
        basis = self.basis.to(inputs.dtype)
        return (inputs @ basis.mT) @ basis


# --- From a setting to a map ---------------------------------------------------------------------


@dataclass(frozen=True)
class Facts:
    """What a data set knows of its inputs, as far as maps ask for it.

    Attributes:
        shape: of one input, `(C, H, W)`, `(T,)` or `(F,)`.
        std: per channel or column, raw units in one standardised unit; None: raw units already.
        vocabulary, vectors: words, and the vector of each, `[V, D]`.
        columns: names of a table's F columns.
    """

    shape: tuple[int, ...]
    std: Tensor | None = None
    vocabulary: Sequence[str] | None = None
    vectors: Tensor | None = None
    columns: Sequence[str] | None = None


def _image(kind: str, facts: Facts) -> tuple[int, int, int]:
    """Channels, height and width.

    Raises:
        DataError: the inputs are no images.
    """
    if len(facts.shape) != 3 or facts.columns is not None:
        raise DataError(
            f"dataset.groups={kind} is for images, and an input here is {list(facts.shape)}"
        )
    return facts.shape[0], facts.shape[1], facts.shape[2]


def chroma(facts: Facts) -> Projection:
    """Colour: `chroma`."""
    count, _, _ = _image("chroma", facts)
    if count < 2:
        raise DataError("dataset.groups=chroma needs colours, and the images have one channel")
    return Chroma(None if facts.std is None else facts.std.float().view(-1, 1, 1))


def channels(facts: Facts, *numbers: int) -> Projection:
    """Some channels: `[channels, 0, 2]`."""
    count, _, _ = _image("channels", facts)
    whole = all(isinstance(number, int) for number in numbers)
    if not numbers or not whole or not set(numbers) <= set(range(count)):
        raise DataError(
            f"dataset.groups=channels names {list(numbers)}; the images have the channels "
            f"{list(range(count))}: [channels, 0]"
        )
    return Channels(numbers, count)


def frequency(facts: Facts, low: float, high: float) -> Projection:
    """A band of frequencies: `[frequency, 0.5, 1]`."""
    _, height, width = _image("frequency", facts)
    if not 0 <= low < high <= 1:
        raise DataError(
            f"dataset.groups=frequency names the band {low} to {high}; 0 ≤ low < high ≤ 1, and 1 "
            "is the finest that pixels can show: [frequency, 0.5, 1]"
        )
    return Frequency(low, high, height, width)


def direction(facts: Facts, *pairs: Sequence[str]) -> Projection:
    """Differences of word vectors, for every word: `[direction, [he, she], [him, her]]`."""
    if facts.vectors is None or facts.vocabulary is None:
        raise DataError("dataset.groups=direction is for text with word vectors (dataset.vectors)")
    if not pairs or any(isinstance(pair, str) or len(pair) != 2 for pair in pairs):
        raise DataError(
            f"dataset.groups=direction names {[*pairs]}; it wants pairs of words: "
            "[direction, [he, she]]"
        )
    words = [word for pair in pairs for word in pair]
    number = {word: place for place, word in enumerate(facts.vocabulary)}
    if unknown := [word for word in words if word not in number]:
        raise DataError(
            f"dataset.groups=direction names {', '.join(map(repr, unknown))}, not among the "
            f"{len(number)} words of the data set"
        )
    rows = facts.vectors[torch.tensor([number[word] for word in words])]
    if lacking := [w for w, row in zip(words, rows, strict=True) if not bool(row.any())]:
        raise DataError(
            f"dataset.groups=direction names {', '.join(map(repr, lacking))}, which has no vector"
        )
    name = ", ".join(f"{first} − {second}" for first, second in pairs)
    return Span(rows[0::2] - rows[1::2], name)


def columns(facts: Facts, *wanted: str | dict[str, float]) -> Projection:
    """Columns of a table, and weighted sums of them: `[columns, age, {income: 1, debt: -1}]`.

    The weights are of raw columns. What a sum Σ w_i·raw_i says of a row is taken away with the
    least change in standardised units: the direction is w_i·std_i.
    """
    if facts.columns is None:
        raise DataError("dataset.groups=columns is for tables")
    sums = [{one: 1.0} if isinstance(one, str) else dict(one) for one in wanted]
    names = [name for one in sums for name in one]
    unknown = [name for name in names if name not in facts.columns]
    if unknown or not sums:
        raise DataError(
            f"dataset.groups=columns names {', '.join(unknown) or 'none'}; the columns are "
            f"{', '.join(facts.columns)}"
        )
    directions = torch.zeros(len(sums), len(facts.columns))
    for row, one in enumerate(sums):
        for name, weight in one.items():
            directions[row, list(facts.columns).index(name)] = weight
    if facts.std is not None:
        directions = directions * facts.std.float()
    return Span(directions, ", ".join(" + ".join(one) for one in sums))


KINDS: dict[str, Callable[..., Projection]] = {
    "chroma": chroma,
    "channels": channels,
    "frequency": frequency,
    "direction": direction,
    "columns": columns,
}
"""What `dataset.groups` may name, besides a data set's own masks and a map of a user's own."""


def projection(spec: Sequence[Any], facts: Facts) -> Projection:
    """The map that a setting asks for.

    Args:
        spec: its kind, one of `KINDS` or `package.module.Name`, and its arguments.

    Raises:
        DataError: no such kind, arguments that do not fit, or a map that does not fit the data.
    """
    kind, *arguments = spec
    known = KINDS.get(str(kind))
    try:
        if known is None and "." in str(kind):
            from cdep_run.training.build import target

            return target({"_target_": kind})(*arguments)
        if known is None:
            raise DataError(
                f"dataset.groups={kind} is unknown; choose the data set's own or one of "
                f"{', '.join(KINDS)}, or name a class of your own by its module"
            )
        inspect.signature(known).bind(facts, *arguments)
        return known(facts, *arguments)
    except TypeError as error:
        raise DataError(f"dataset.groups={list(spec)} does not fit: {error}") from error


class Projected:
    """An annotation whose groups are a linear map of the input, everywhere or inside masks.

    Args:
        projection: the map.
        dimensions: of one input's features, words' vectors not counted.
        masks: where the projected part must not matter; None: everywhere, in every example.
    """

    def __init__(
        self, projection: Projection, dimensions: int, masks: Annotation | None = None
    ) -> None:
        self.projection, self.masks = projection, masks
        self.everywhere = Groups(torch.ones(1, 1, *(1,) * dimensions, dtype=torch.bool))

    def holds(self, index: Tensor) -> bool:
        """Whether any of the examples at `index` is annotated; True where nothing is known."""
        holds = getattr(self.masks, "holds", None)
        return holds is None or holds(index)

    def __call__(self, index: Tensor) -> Groups:
        """Groups with the projection, on the device of `index`."""
        if self.everywhere.mask.device != index.device:
            mask = self.everywhere.mask.to(index.device)
            self.everywhere = replace(self.everywhere, mask=mask)
            self.projection = self.projection.to(index.device)
        groups = self.everywhere if self.masks is None else self.masks(index)
        return replace(groups, projection=self.projection)


MASKED = "masked"


def annotated(spec: Any, own: str, masks: Annotation | None, facts: Facts) -> Annotation | None:
    """The annotation that `dataset.groups` asks for.

    Args:
        spec: the setting: `own`; the name of a map, such as "chroma"; a list of a name and its
            arguments, such as ["frequency", 0.5, 1]; or such a list behind "masked", for the map
            inside the data set's own masks alone.
        own: what the data set's own masks are called.
        masks: the data set's own; None: this split has none.
        facts: of the inputs.

    Raises:
        DataError: see `projection`.
    """
    words = [spec] if isinstance(spec, str) else list(spec or ())
    if words == [own]:
        return masks
    inside = words[:1] == [MASKED]
    if not words[inside:]:
        raise DataError(f"dataset.groups={spec} names no group; choose {own} or one of "
                        f"{', '.join(KINDS)}")  # fmt: skip
    found = projection(words[inside:], facts)
    if inside and masks is None:
        return None
    return Projected(found, len(facts.shape), masks if inside else None)


def group_name(annotation: Annotation | None) -> list[str] | None:
    """What `Bunch.group_names` holds: the map's name; None where the groups are masks."""
    return [annotation.projection.name] if isinstance(annotation, Projected) else None


# --- Checks --------------------------------------------------------------------------------------


def refuse_unfit(map: Projection, shape: Sequence[int], everywhere: bool = True) -> None:
    """Refuse what is no linear map of the inputs with its adjoint, or leaves nothing or all.

    Tried on random inputs, drawn from a generator of its own.

    Args:
        shape: of one input's features; of text, words by numbers of a vector.
        everywhere: whether the map acts on the whole input; inside masks it may be the identity.

    Raises:
        DataError: says which of these it is.
    """
    generator = torch.Generator().manual_seed(0)
    x, y, g = torch.randn(3, 2, 1, *shape, generator=generator).unbind()
    map = map.to("cpu")
    name = f"the projection {map.name}"
    try:
        parts, other, both = map.project(x), map.project(y), map.project(2 * x - 3 * y)
        back = map.adjoint(g)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"{name} does not fit inputs {list(shape)}: {reason}") from error
    if parts.shape != x.shape or back.shape != x.shape:
        wrong = parts if parts.shape != x.shape else back
        raise DataError(
            f"{name} makes {list(wrong.shape)} of inputs {list(x.shape)}; a part of an input has "
            "the input's shape"
        )
    size = float(x.abs().max())

    def differs(first: Tensor, second: Tensor) -> bool:
        return not torch.allclose(first, second, rtol=1e-3, atol=1e-4 * size)

    if differs(both, 2 * parts - 3 * other):
        raise DataError(f"{name} is not linear: P(2x − 3y) is not 2 P x − 3 P y")
    if differs((parts * g).sum(), (x * back).sum()):
        raise DataError(f"{name}: its adjoint is not that of its project: ⟨P x, g⟩ ≠ ⟨x, Pᵀ g⟩")
    if not differs(parts, torch.zeros_like(parts)):
        raise DataError(f"{name} is zero: no part of an input belongs to the group")
    if everywhere and not differs(parts, x):
        raise DataError(f"{name} is everything: no part of an input would be left to learn from")
