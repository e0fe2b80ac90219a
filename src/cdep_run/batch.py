"""What a data set hands to a penalty: inputs, labels, and feature groups that must not matter."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

Box = tuple[int, int, int, int]
"""A rectangle on the last two input dimensions: top, bottom, left, right; half-open, in pixels."""


@dataclass(frozen=True)
class Groups:
    """Knowledge about feature groups of a batch of N examples, G groups each.

    Attributes:
        mask: bool `[N or 1, G, *features]`, True inside the group; the feature dimensions
            broadcast to those of one input (images `[1, G, 1, 28, 28]`, tokens `[N, G, T]`).
        boxes: for each group the boxes that hold every True of the mask, for every example of the
            batch. They are plain integers known on the host, so that the engine can work inside
            them without asking the device. None: unknown, the engine works on the whole input.
        targets: float `[G]`, the wanted share of each group in [0, 1]. None: 0, must not matter.
        annotated: bool `[N]`, which examples carry knowledge. None: all of them.
        relevant: float `[N, G, *features]`, what each group contributed to the inputs, where these
            are features that a frozen trunk made of images: CD starts from it. None: the inputs are
            what the mask says, and inputs · mask is relevant.
    """

    mask: Tensor
    boxes: tuple[tuple[Box, ...], ...] | None = None
    targets: Tensor | None = None
    annotated: Tensor | None = None
    relevant: Tensor | None = None


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
