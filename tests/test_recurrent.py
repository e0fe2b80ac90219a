"""Rules of recurrent nets against the formulas written out sentence by sentence, and identities."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import reference
from cdep_run.cd import MissingRuleError, decompose


@pytest.fixture(autouse=True)
def double():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class States(nn.Module):
    """The hidden states `[N, T·H]` of a recurrent net, padding 0, on a packed or padded batch."""

    def __init__(self, net: nn.RNNBase, packed: bool = True):
        super().__init__()
        self.net, self.packed = net, packed

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        x = x if self.net.batch_first else x.transpose(0, 1)
        if self.packed:
            x = pack_padded_sequence(x, lengths, self.net.batch_first, enforce_sorted=False)
        output, _ = self.net(x)
        if self.packed:
            output, _ = pad_packed_sequence(output, self.net.batch_first)
        output = output if self.net.batch_first else output.transpose(0, 1)
        return output.flatten(1)


LENGTHS = torch.tensor([3, 5, 4])
X = torch.randn(3, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def masks() -> Tensor:
    """Two groups over 5 positions, `[3, 2, 5]`: not contiguous, and absent from a sentence."""
    mask = torch.zeros(3, 2, 5, dtype=torch.bool)
    mask[0, 0, 1] = mask[1, 0, 0] = mask[1, 0, 3] = True
    mask[1, 1, 2:] = mask[2, 1, 0] = True
    return mask


def check_against_reference(net: nn.RNNBase, packed: bool) -> None:
    model = States(net, packed)
    lengths = LENGTHS if packed else torch.full((3,), 5)
    found = decompose(model, X, masks()[..., None], lengths)
    torch.testing.assert_close(found.total, model(X, lengths), rtol=0, atol=1e-12)
    for g in range(2):
        expected = reference.recurrent(net, X, masks()[:, g], lengths.tolist())
        for n, (relevant, irrelevant) in enumerate(expected):
            for part, want in (found.relevant, relevant), (found.irrelevant, irrelevant):
                states = part[n, g].view(5, -1)
                torch.testing.assert_close(states[: len(want)], want, rtol=0, atol=1e-12)
                assert not states[len(want) :].any()


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_parts_follow_the_formulas(kind, layers, bidirectional, packed, batch_first):
    net = kind(3, 4, layers, batch_first=batch_first, bidirectional=bidirectional)
    check_against_reference(net, packed)


def test_projections_are_refused():
    model = States(nn.LSTM(3, 4, proj_size=2), packed=False)
    with pytest.raises(MissingRuleError, match=r"proj_size \(in module 'net'\)\. Put an nn.Linear"):
        decompose(model, X, masks()[..., None], LENGTHS)
