"""Annotations: what the groups cover, and where sampled pixels come from."""

from __future__ import annotations

import pytest
import torch

from cdep_run.batch import Groups
from cdep_run.datasets.annotation import ConstantGroups, SampledPixels, corners

INDEX = torch.arange(3)


def covered(groups: Groups) -> torch.Tensor:
    """The mask that the boxes describe, one example, drawn pixel by pixel."""
    drawn = torch.zeros_like(groups.mask)
    for group, boxes in enumerate(groups.boxes or ()):
        for top, bottom, left, right in boxes:
            for row in range(top, bottom):
                for column in range(left, right):
                    drawn[0, group, 0, row, column] = True
    return drawn


@pytest.mark.parametrize("size", [1, 4, 14])
def test_corner_boxes_cover_exactly_the_mask(size: int) -> None:
    groups = corners(size, 28, 28)
    assert torch.equal(covered(groups), groups.mask)
    assert groups.mask.sum() == 4 * size**2


def test_corners_of_an_oblong_image_lie_in_its_corners() -> None:
    mask = corners(2, 6, 9).mask[0, 0, 0]
    assert mask[0, 0] and mask[0, 8] and mask[5, 0] and mask[5, 8]
    assert not mask[2].any() and not mask[:, 2].any()


def test_constant_groups_are_the_same_for_every_index() -> None:
    annotation = ConstantGroups(corners(5, 28, 28))
    assert annotation(INDEX) is annotation(INDEX + 7)


def test_pixel_boxes_cover_exactly_the_mask() -> None:
    torch.manual_seed(0)
    groups = SampledPixels(torch.rand(28, 28), 8)(INDEX)
    assert groups.mask.shape == (1, 8, 1, 28, 28)
    assert groups.mask.flatten(2).sum(2).tolist() == [[1] * 8]
    assert torch.equal(covered(groups), groups.mask)


def test_pixels_follow_their_weights_and_never_fall_where_it_is_zero() -> None:
    torch.manual_seed(0)
    weights = torch.tensor([[0.0, 1.0, 0.0], [3.0, 0.0, 4.0]])
    drawn = SampledPixels(weights, 20000)(INDEX).mask[0, :, 0].double().mean(0)
    torch.testing.assert_close(drawn, weights.double() / 8, atol=0.015, rtol=0)
    assert (drawn > 0).equal(weights > 0)


def test_pixels_come_from_the_global_generator_and_change_from_batch_to_batch() -> None:
    sample = SampledPixels(torch.ones(28, 28), 8)
    torch.manual_seed(1)
    first, second = sample(INDEX).boxes, sample(INDEX).boxes
    torch.manual_seed(1)
    assert sample(INDEX).boxes == first != second
