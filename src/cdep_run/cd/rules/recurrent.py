"""Recurrent nets: `nn.LSTM`, `nn.GRU`, `nn.RNN`, their cells, and packing, a rule for each call.

The relevant state is carried through time beside the ordinary one, step by step as in gates.py.

What biases alone put into the state (C_i·C_g in an LSTM) is relevant while the position is inside
the group. The group is a mask over positions, but the rule sees vectors: a position counts as
inside by σ = Σ|β| / Σ(|β| + |γ|) over the features of the call's input there. Of masked words σ is
1 inside and 0 outside; where earlier layers have mixed the parts it is their share, as for the bias
of a linear layer; a vector of zeros says nothing, and its σ is 0. All layers of one call use the σ
of its input: a position is inside the group or it is not, at every height. So an empty group stays
0, and a group of all positions leaves nothing irrelevant but an initial state that was given.
Variant "first" of rule "recurrent_bias": of neighbouring positions of a group the first alone gets
the biases, as in the published CDEP code, whose groups are a word and the next one.

In an LSTM the published rule leaves what a gate of one part does to another part's content to the
irrelevant part, and does not decompose the output gate. A net under CDEP can so go on listening to
a word by what it opens and closes. Variant "shared" of rule "lstm_gates", ours, halves such
products between the parts (their Shapley value), the output gate's too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cdep_run.cd.kernels.lstm import lstm
from cdep_run.cd.pair import Constant, Pair
from cdep_run.cd.registry import register_rule, variant
from cdep_run.cd.rules.gates import STEPS, Inputs, State, Weights
from cdep_run.cd.rules.sharing import share_of


def scan(name: str, inputs: Inputs, start: State, weights: Weights, lengths) -> State:
    """The states after every step, `[T, ...]` each."""
    states: State
    if name == "lstm" and variant("lstm_gates") == "shared":
        name = "lstm_shared"
    if name == "lstm" and weights.w_hr is None:
        states = lstm(*inputs, start, weights[:4], lengths)
    else:
        steps = [start]
        for x, rel, inside in zip(*inputs, strict=True):
            steps.append(STEPS[name](steps[-1], x, rel, inside, weights))
        states = tuple(torch.stack(step) for step in zip(*steps[1:], strict=True))
    # Until something is relevant the parts are 0 but for rounding: f(0 + c) − f(c).
    begun = (inputs.rel != 0).any(-1, keepdim=True).cumsum(0) > 0
    for part in start[1::2]:
        begun |= (part != 0).any(-1, keepdim=True)
    return tuple(torch.where(begun, t, 0) if k % 2 else t for k, t in enumerate(states))


def reverse(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Each of the sequences `[T, N, ...]` backwards; what stands behind its length stays."""
    if lengths is None:
        return x.flip(0)
    steps = torch.arange(len(x), device=x.device)[:, None]
    lengths = lengths.repeat(x.shape[1] // len(lengths))
    order = torch.where(steps < lengths, lengths - 1 - steps, steps)
    return x[order, torch.arange(x.shape[1], device=x.device)]


def last(x: Tensor, lengths: Tensor | None) -> Tensor:
    """The last of the states `[T, N, ...]` that belongs to each sequence."""
    if lengths is None:
        return x[-1]
    lengths = lengths.repeat(x.shape[1] // len(lengths))
    return x[lengths - 1, torch.arange(x.shape[1], device=x.device)]


def parts_of(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Total `[..., N, D]` and relevant parts `[..., G·N, D]` of a pair; of a constant 0."""
    if isinstance(x, Pair):
        return x.total, torch.cat(tuple(x.dense()), -2)
    x = x.total if isinstance(x, Constant) else x
    return x, torch.zeros_like(x).repeat(*(1,) * (x.dim() - 2), groups, 1)


def paired(total: Tensor, rel: Tensor) -> Pair:
    """The opposite of `parts_of`."""
    return Pair(total, rel.split(total.shape[-2], -2))


def positions_inside(x: Tensor, rel: Tensor) -> Tensor:
    """σ = Σ|β| / Σ(|β| + |γ|) at every position, `[T, G·N, 1]`; 0 where both are 0."""
    size = rel.abs().sum(-1, keepdim=True)
    irrelevant = x.repeat(1, rel.shape[1] // x.shape[1], 1) - rel
    both = size + irrelevant.abs().sum(-1, keepdim=True)
    return share_of(size, both)


def weights_of(
    params: Sequence[Tensor], has_biases: bool, layers: int, directions: int
) -> list[list[Weights]]:
    """The weights of each layer and direction; biases that a net lacks are 0."""
    each, biases = len(params) // (layers * directions), 2 if has_biases else 0
    no_biases = () if has_biases else (params[0].new_zeros(len(params[0])),) * 2
    weights = []
    for k in range(0, len(params), each):
        w_ih, w_hh, *rest = params[k : k + each]
        weights.append(Weights(w_ih, w_hh, *rest[:biases], *no_biases, *rest[biases:]))
    return [weights[k : k + directions] for k in range(0, len(weights), directions)]


@register_rule(torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu)
def recurrent(func, x, *args):
    """A whole net, as `nn.LSTM`, `nn.GRU` and `nn.RNN` call it, on a padded or a packed batch.

    Layers feed on the parts of the layer below; dropout between layers drops the same units in
    both parts. An initial state that is given belongs to the irrelevant part, unless it is itself
    decomposed. Under autocast the call computes in the weights' precision.
    """
    packed = not isinstance(args[2], bool)  # (batch_sizes, hx, params, …) or (hx, params, bool, …)
    hx, params, has_biases, layers, dropout, train, bidirectional, *rest = args[packed:]
    batch_first, states = bool(rest and rest[0]), hx if isinstance(hx, (list, tuple)) else (hx,)
    weights = weights_of(params, has_biases, layers, 1 + bidirectional)
    groups = next(len(t.parts) for t in (x, *states) if isinstance(t, Pair))
    lengths = None
    with torch.autocast(x.device.type, enabled=False):
        x = x.to(params[0].dtype)
        if packed:
            x, lengths = torch._pad_packed_sequence(x, args[0], False, 0.0, len(args[0]))
        total, rel = parts_of(x.transpose(0, 1) if batch_first else x, groups)
        inside = positions_inside(total, rel)
        if variant("recurrent_bias") == "first":
            inside = inside * (1 - F.pad(inside[:-1], (0, 0, 0, 0, 1, 0)))
        start = [part for t in states for part in parts_of(t.to(total.dtype), groups)]
        ends = []
        for depth, layer in enumerate(weights):
            outputs = []
            for backward, own in enumerate(layer):
                place = depth * len(layer) + backward
                inputs = Inputs(total, rel, inside)
                if backward:
                    inputs = Inputs(*(reverse(t, lengths) for t in inputs))
                begin = tuple(t[place] for t in start)
                result = scan(func.__name__, inputs, begin, own, lengths)
                ends.append([last(t, lengths) for t in result])
                outputs.append([reverse(t, lengths) if backward else t for t in result[:2]])
            total, rel = (torch.cat(t, -1) for t in zip(*outputs, strict=True))
            if train and dropout and depth < layers - 1:
                kept = F.dropout(torch.ones_like(total), dropout)
                total, rel = total * kept, rel * kept.repeat(1, groups, 1)
        output = paired(total, rel)
        if packed:
            output = torch._pack_padded_sequence(output, lengths, False)[0]
        elif batch_first:
            output = output.transpose(0, 1)
        end = [torch.stack(t) for t in zip(*ends, strict=True)]
    return output, *(paired(*end[k : k + 2]) for k in range(0, len(end), 2))


@register_rule(torch.lstm_cell, torch.gru_cell, torch.rnn_tanh_cell, torch.rnn_relu_cell)
def cell(func, x, hx, *weights):
    """One step of a net of one layer, as `nn.LSTMCell`, `nn.GRUCell` and `nn.RNNCell` call it."""
    states = hx if isinstance(hx, (list, tuple)) else (hx,)
    biases = weights[2:] if len(weights) > 2 and weights[2] is not None else ()
    net = getattr(torch, func.__name__.removesuffix("_cell"))
    _, *ends = recurrent(
        net,
        x.unsqueeze(0),
        tuple(t.unsqueeze(0) for t in states) if len(states) > 1 else states[0].unsqueeze(0),
        [*weights[:2], *biases],
        bool(biases),
        1,
        0.0,
        False,
        False,
    )
    ends = tuple(t.squeeze(0) for t in ends)
    return ends if len(ends) > 1 else ends[0]


@register_rule(torch._pack_padded_sequence)
def packs(func, x, lengths, *args):
    """Drops what stands behind each sequence's end."""
    data, batch_sizes = func(x.total, lengths, *args)
    return x.map(data, lambda rel: func(rel, lengths, *args)[0]), batch_sizes


@register_rule(torch._pad_packed_sequence)
def unpacks(func, x, batch_sizes, batch_first, padding_value, *args):
    """The padding belongs to nobody: the parts are padded with zeros."""
    total, lengths = func(x.total, batch_sizes, batch_first, padding_value, *args)
    return x.map(total, lambda rel: func(rel, batch_sizes, batch_first, 0.0, *args)[0]), lengths
