"""Annotations: callables that say which feature groups must not matter for the examples asked."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from cdep_run.batch import Box, Groups


class ConstantGroups:
    """The same groups for every example, such as the four corners of a decoyed image.

    Args:
        groups: mask `[1, G, ...]`; moved to the device of the first index that is asked for.
    """

    def __init__(self, groups: Groups) -> None:
        self.groups = groups

    def __call__(self, index: Tensor) -> Groups:
        if self.groups.mask.device != index.device:
            self.groups = replace(self.groups, mask=self.groups.mask.to(index.device))
        return self.groups


class SampledPixels:
    """`count` groups of one pixel each, drawn anew for each batch and shared by its examples.

    Drawn with replacement with probability proportional to `weights`, from torch's global CPU
    generator: the same pixels on every device, and no wait for the device.
    Source: Rieger et al. 2019 (arXiv:1909.13584), ColorMNIST; 8 pixels from the distribution of
    non-zero training pixels.

    Args:
        weights: `[H, W]` on the CPU, not negative, such as how often each pixel is non-zero.
        count: number of pixels a batch.
    """

    def __init__(self, weights: Tensor, count: int) -> None:
        self.weights = weights
        self.count = count

    def __call__(self, index: Tensor) -> Groups:
        """Groups with a mask `[1, count, 1, H, W]` on the device of `index`."""
        height, width = self.weights.shape
        pixels = torch.multinomial(self.weights.flatten(), self.count, replacement=True).tolist()
        boxes = tuple(
            ((row, row + 1, column, column + 1),)
            for row, column in (divmod(pixel, width) for pixel in pixels)
        )
        return Groups(boxes_mask(boxes, height, width).to(index.device, non_blocking=True), boxes)


def corners(size: int, height: int, width: int) -> Groups:
    """One group: the four corner squares, `size` pixels wide; mask `[1, 1, 1, height, width]`."""
    tops, lefts = (0, height - size), (0, width - size)
    boxes = (tuple((top, top + size, left, left + size) for top in tops for left in lefts),)
    return Groups(boxes_mask(boxes, height, width), boxes)


def boxes_mask(boxes: tuple[tuple[Box, ...], ...], height: int, width: int) -> Tensor:
    """Bool `[1, G, 1, height, width]` on the CPU: True inside the boxes of each of the G groups."""
    mask = torch.zeros(1, len(boxes), 1, height, width, dtype=torch.bool)
    for group, group_boxes in enumerate(boxes):
        for top, bottom, left, right in group_boxes:
            mask[0, group, 0, top:bottom, left:right] = True
    return mask
