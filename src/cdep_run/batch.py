"""What a data set hands to a penalty: inputs, labels, and feature groups that must not matter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Box = tuple[int, int, int, int]
"""A rectangle on the last two input dimensions: top, bottom, left, right; half-open, in pixels."""


class Projection(Protocol):
    """A linear map of the inputs that says what must not matter, where no mask can: their colour.

    `cdep_run.datasets.projections` holds ours; any object with these attributes will do. It works
    on inputs as the model gets them (standardised; of token ids, the words' vectors), and keeps
    the axes before the features as they are.
    """

    name: str
    """What the projected part is called in reports, such as "chroma"."""

    def project(self, inputs: Tensor) -> Tensor:
        """P x: the relevant part of `[..., *features]`, of the same shape."""

    def adjoint(self, gradient: Tensor) -> Tensor:
        """Pᵀ g of `[..., *features]`, of the same shape: ⟨P x, g⟩ = ⟨x, Pᵀ g⟩ for all x and g."""

    def to(self, device: torch.device | str) -> Projection:
        """Return the same map with its tensors on `device`."""


@dataclass(frozen=True)
class Groups:
    """Knowledge about feature groups of a batch of N examples, G groups each.

    What belongs to a group of the inputs x is mask · x, or mask · P x where there is a projection
    P: the projected part inside the mask. Penalties ask `project`, `adjoint`, `sensitivity` and
    `attribution`, and need not know which of the two it is.

    Attributes:
        mask: bool `[N or 1, G, *features]`, True inside the group; the feature dimensions
            broadcast to those of one input (images `[1, G, 1, 28, 28]`, tokens `[N, G, T]`).
        boxes: for each group the boxes that hold every True of the mask, for every example of the
            batch. They are plain integers known on the host, so that the engine can work inside
            them without asking the device. None: unknown, the engine works on the whole input.
        annotated: bool `[N]`, which examples carry knowledge. None: all of them.
        relevant: float `[N, G, *features]`, what each group contributed to the inputs, where these
            are features that a frozen trunk made of images: CD starts from it. None: the inputs are
            what the mask says, and inputs · mask is relevant.
        projection: the linear map P, the same for all groups. None: the identity, masks alone.
    """

    mask: Tensor
    boxes: tuple[tuple[Box, ...], ...] | None = None
    annotated: Tensor | None = None
    relevant: Tensor | None = None
    projection: Projection | None = None

    def project(self, inputs: Tensor) -> Tensor:
        """mask · P x: what of `inputs` `[N, *features]` belongs to each group.

        Args:
            inputs: as the model gets them, or a difference of such; of token ids, the words'
                vectors `[N, T, D]`.

        Returns:
            `[N, G, *features]`.
        """
        parts = inputs.unsqueeze(1)
        parts = parts if self.projection is None else self.projection.project(parts)
        return parts * covering(self.mask, inputs)

    def adjoint(self, gradient: Tensor) -> Tensor:
        """Pᵀ(mask · g): what of a gradient `[N, *features]` each group feels, `[N, G, *features]`.

        A step in a direction d of the inputs that keeps to a group changes the score by
        ⟨d, adjoint⟩; where P is the identity the gradient inside the mask.
        """
        inside = gradient.unsqueeze(1) * covering(self.mask, gradient)
        return inside if self.projection is None else self.projection.adjoint(inside)

    def sensitivity(self, gradient: Tensor) -> Tensor:
        """‖Pᵀ(mask · g)‖², summed over the features: `[N, G]`, of a gradient `[N, *features]`."""
        if self.projection is not None:
            return self.adjoint(gradient).square().flatten(2).sum(2)
        squared = gradient.square().unsqueeze(1)  # once for all groups
        return (squared * covering(self.mask, gradient)).flatten(2).sum(2)

    def attribution(self, difference: Tensor, gradient: Tensor) -> Tensor:
        """mask · P d ⊙ Pᵀ(mask · g): a gradient times a difference, both kept to each group.

        Its sum is ⟨mask · P d, g⟩ where mask and P commute and P P = P. Both factors are kept to
        the group so that what cancels out among its features, such as a grey change seen channel
        by channel, does not count.

        Args:
            difference, gradient: `[N, *features]`.

        Returns:
            `[N, G, *features]`.
        """
        return self.project(difference) * self.adjoint(gradient)


@dataclass(frozen=True)
class Batch:
    """One step's examples: `inputs` `[N, ...]`, `labels` int64 `[N]`, and `groups` if known.

    `images`: where the inputs are features that a frozen trunk made, and the penalty asks for what
    they were made of: the annotated examples' images (perhaps none), their labels and groups.
    """

    inputs: Tensor
    labels: Tensor
    groups: Groups | None = None
    images: Batch | None = None


def covering(mask: Tensor, features: Tensor) -> Tensor:
    """Return a mask `[N or 1, G, *…]` with the missing last dimensions of `features` `[N, *…]`."""
    return mask.view(*mask.shape, *(1,) * (features.dim() + 1 - mask.dim()))


def fit_mask(inputs: Tensor, mask: Tensor) -> Tensor:
    """`mask` with a group axis, `[N or 1, G, *features]`, if it fits `inputs` `[N, *features]`.

    Raises:
        ValueError: wrong type, device or shape; says what came and what is accepted.
    """
    if mask.dtype != torch.bool:
        raise ValueError(f"the mask must be bool, got {mask.dtype}; write mask > 0")
    if mask.device != inputs.device:
        raise ValueError(
            f"the mask is on {mask.device}, the inputs are on {inputs.device}; move one of them"
        )
    grouped = mask if mask.dim() == inputs.dim() + 1 else mask.unsqueeze(1)
    features = (grouped.shape[0], *grouped.shape[2:])
    if (
        grouped.dim() != inputs.dim() + 1
        or grouped.shape[1] == 0
        or any(m not in (1, n) for m, n in zip(features, inputs.shape, strict=True))
    ):
        raise ValueError(
            f"mask is {list(mask.shape)}, inputs are {list(inputs.shape)}: it must be "
            "[N or 1, *features] or [N or 1, groups, *features]; a mask without a batch axis "
            "wants mask[None], one without a channel axis mask[:, None]"
        )
    return grouped
