"""The references themselves: their parts add up to what torch computes, and small cases by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import reference

pytestmark = pytest.mark.usefixtures("double")


def test_bias_is_shared_by_size_and_goes_to_the_irrelevant_part_where_both_are_zero():
    relevant, irrelevant = reference.share_bias(
        torch.tensor([3.0, 0.0, -1.0]), torch.tensor([1.0, 0.0, 0.0]), torch.tensor([4.0, 4.0, 4.0])
    )
    assert relevant.tolist() == [6, 0, 3]
    assert irrelevant.tolist() == [2, 4, 0]


def test_an_empty_part_stays_empty_through_a_sigmoid():
    x = torch.randn(5)
    relevant, irrelevant = reference.symmetric(torch.sigmoid, torch.zeros(5), x)
    assert not relevant.any()
    torch.testing.assert_close(irrelevant, torch.sigmoid(x))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_recurrent_parts_add_up_to_the_hidden_states(kind, layers, bidirectional):
    net = kind(3, 4, layers, batch_first=True, bidirectional=bidirectional)
    x, lengths = torch.randn(2, 5, 3), [5, 3]
    mask = torch.zeros(2, 5, dtype=torch.bool)
    mask[0, 1:3] = mask[1, 0] = True
    parts = reference.recurrent(net, x, mask, lengths)
    for n, length in enumerate(lengths):
        expected = net(x[n : n + 1, :length])[0][0]
        torch.testing.assert_close(parts[n][0] + parts[n][1], expected)
    empty = reference.recurrent(net, x, torch.zeros_like(mask), lengths)
    assert not any(relevant.any() for relevant, _ in empty)
