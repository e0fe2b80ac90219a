"""One step of a recurrent net: the ordinary state, and beside it what the group put into it.

Every gate's input is a sum of three terms, relevant r, irrelevant i and bias c, and an activation f
of it has the parts R = ½[f(r+c) − f(c) + f(r+i+c) − f(i+c)], C = f(c) and I, the rest. A = R + C is
`with_bias`. Source: Murdoch et al. 2018 for the LSTM; GRU and plain nets are ours, from the same
three terms. σ, `inside`, is how much of the position is in the group (see recurrent.py).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Weights(NamedTuple):
    """Of one layer and direction: `[K·H, D]`, `[K·H, P]` and biases `[K·H]` of K gates.

    The hidden state has P = H entries, or what `proj_size` says; `w_hr` is then `[P, H]`.
    """

    w_ih: Tensor
    w_hh: Tensor
    b_ih: Tensor
    b_hh: Tensor
    w_hr: Tensor | None = None


State = tuple[Tensor, ...]
"""h and h_rel, of an LSTM also the cell's c and c_rel: `[N, H]`, parts `[G·N, H]` of G groups.

The states of all steps have a dimension of time before these.
"""


class Inputs(NamedTuple):
    """One layer's input, time first: `[T, N, D]`, its parts `[T, G·N, D]`, and σ `[T, G·N, 1]`."""

    x: Tensor
    rel: Tensor
    inside: Tensor


def with_bias(f, r: Tensor, total: Tensor, c: Tensor) -> Tensor:
    """R + C of the activation f, where total = r + i + c: ½[f(r+c) + f(c) + f(total) − f(i+c)]."""
    return (f(r + c) + f(c) + f(total) - f(total - r)) / 2


def repeat(total: Tensor, like: Tensor) -> Tensor:
    """A total `[N, ...]`, once for each of the groups in `like`, `[G·N, ...]`."""
    groups = len(like) // len(total)
    return total if groups == 1 else total.repeat(groups, *(1,) * (total.dim() - 1))


def lstm_step(state: State, x: Tensor, rel: Tensor, inside: Tensor, weights: Weights) -> State:
    """The published rule. Source: Murdoch et al. 2018 (CD for LSTMs).

    c_rel' = R_i·R_g + R_i·C_g + C_i·R_g + σ·C_i·C_g + (R_f + C_f)·c_rel
    h_rel' = o·½[tanh(c_rel') + tanh(c') − tanh(c_irrel')]

    The output gate o is not decomposed. `kernels/lstm.py` computes the same for all steps at once;
    this one serves nets with `proj_size`.
    """
    h, h_rel, c, c_rel = state
    bias = weights.b_ih + weights.b_hh
    total = F.linear(x, weights.w_ih) + F.linear(h, weights.w_hh) + bias
    r = F.linear(rel, weights.w_ih) + F.linear(h_rel, weights.w_hh)
    i, f, g, o = total.chunk(4, -1)
    (r_i, r_f, r_g, _), (b_i, b_f, b_g, _) = r.chunk(4, -1), bias.chunk(4)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(c)

    a_i = with_bias(torch.sigmoid, r_i, repeat(i, rel), b_i)
    a_f = with_bias(torch.sigmoid, r_f, repeat(f, rel), b_f)
    a_g = with_bias(torch.tanh, r_g, repeat(g, rel), b_g)
    both_biases = torch.sigmoid(b_i) * torch.tanh(b_g)
    # R_i·R_g + R_i·C_g + C_i·R_g + C_i·C_g = A_i·A_g; of the last term (1 − σ) is not relevant.
    c_rel = a_i * a_g - (1 - inside) * both_biases + a_f * c_rel
    c_all = repeat(c, rel)
    h_rel = repeat(torch.sigmoid(o), rel) * (
        (torch.tanh(c_rel) + torch.tanh(c_all) - torch.tanh(c_all - c_rel)) / 2
    )
    return projected(h, weights), projected(h_rel, weights), c, c_rel


def projected(h: Tensor, weights: Weights) -> Tensor:
    """W_hr·h, of a net with `proj_size`."""
    return h if weights.w_hr is None else F.linear(h, weights.w_hr)


def lstm_step_shared(
    state: State, x: Tensor, rel: Tensor, inside: Tensor, weights: Weights
) -> State:
    """Variant "shared": relevant is R·R + R·C + C·R + ½(R·I + I·R) of each product, and σ·C_i·C_g.

    The bias terms of i·g are split as by the published rule, the old cell and its tanh have the
    parts R and I alone.
    """
    h, h_rel, c, c_rel = state
    bias = weights.b_ih + weights.b_hh
    before = F.linear(x, weights.w_ih) + F.linear(h, weights.w_hh) + bias
    rel_before = F.linear(rel, weights.w_ih) + F.linear(h_rel, weights.w_hh)
    functions = torch.sigmoid, torch.sigmoid, torch.tanh, torch.sigmoid
    chunks = zip(
        functions, rel_before.chunk(4, -1), before.chunk(4, -1), bias.chunk(4), strict=True
    )
    terms = []
    for function, r, total, constant in chunks:
        gate, bias_part = function(total), function(constant)
        rel_part = with_bias(function, r, repeat(total, rel), constant) - bias_part
        terms.append((gate, rel_part, repeat(gate, rel) - rel_part - bias_part, bias_part))
    (i, r_i, i_i, c_i), (f, r_f, i_f, c_f), (g, r_g, i_g, c_g), (o, r_o, i_o, c_o) = terms
    others = repeat(c, rel) - c_rel
    c_rel = (r_i * (r_g + c_g + i_g / 2) + (c_i + i_i / 2) * r_g + inside * c_i * c_g) + (
        (r_f + c_f + i_f / 2) * c_rel + r_f / 2 * others
    )
    c = f * c + i * g
    tanh = torch.tanh(c)
    tanh_rel = with_bias(torch.tanh, c_rel, repeat(c, rel), torch.zeros_like(bias[: c.shape[-1]]))
    h_rel = (r_o + c_o + i_o / 2) * tanh_rel + r_o / 2 * (repeat(tanh, rel) - tanh_rel)
    return projected(o * tanh, weights), projected(h_rel, weights), c, c_rel


def gru_step(state: State, x: Tensor, rel: Tensor, inside: Tensor, weights: Weights) -> State:
    """Gates r, z and candidate n. Relevant state:

    (1 − C_z)·R_n − R_z(R_n + C_n) + σ(1 − C_z)·C_n + (R_z + C_z)·h_rel, where n's relevant input is
    W_in·x_rel + (R_r + C_r)·W_hn·h_rel + R_r·b_hn and its bias b_in + C_r·b_hn.
    """
    h, h_rel = state
    in_r, in_z, in_n = F.linear(x, weights.w_ih, weights.b_ih).chunk(3, -1)
    h_r, h_z, h_n = F.linear(h, weights.w_hh, weights.b_hh).chunk(3, -1)
    r, z = torch.sigmoid(in_r + h_r), torch.sigmoid(in_z + h_z)
    new = in_n + r * h_n
    n = torch.tanh(new)
    h = (1 - z) * n + z * h

    rel_r, rel_z, rel_n = F.linear(rel, weights.w_ih).chunk(3, -1)
    h_rel_r, h_rel_z, h_rel_n = F.linear(h_rel, weights.w_hh).chunk(3, -1)
    (b_ir, b_iz, b_in), (b_hr, b_hz, b_hn) = weights.b_ih.chunk(3), weights.b_hh.chunk(3)
    c_r, c_z = torch.sigmoid(b_ir + b_hr), torch.sigmoid(b_iz + b_hz)
    a_r = with_bias(torch.sigmoid, rel_r + h_rel_r, repeat(in_r + h_r, rel), b_ir + b_hr)
    a_z = with_bias(torch.sigmoid, rel_z + h_rel_z, repeat(in_z + h_z, rel), b_iz + b_hz)
    c_n = torch.tanh(b_in + c_r * b_hn)
    rel_n = rel_n + a_r * h_rel_n + (a_r - c_r) * b_hn
    a_n = with_bias(torch.tanh, rel_n, repeat(new, rel), b_in + c_r * b_hn)
    # (1 − C_z)·R_n − R_z(R_n + C_n) = (1 − A_z)·A_n − (1 − C_z)·C_n, with A = R + C.
    h_rel = (1 - a_z) * a_n - (1 - inside) * (1 - c_z) * c_n + a_z * h_rel
    return h, h_rel


def plain_step(f):
    """h' = f(Wx + Uh + b); relevant: R + σ·C."""

    def step(state: State, x: Tensor, rel: Tensor, inside: Tensor, weights: Weights) -> State:
        h, h_rel = state
        bias = weights.b_ih + weights.b_hh
        total = F.linear(x, weights.w_ih) + F.linear(h, weights.w_hh) + bias
        r = F.linear(rel, weights.w_ih) + F.linear(h_rel, weights.w_hh)
        a = with_bias(f, r, repeat(total, rel), bias)
        return f(total), a - (1 - inside) * f(bias)

    return step


STEPS = {
    "lstm": lstm_step,
    "lstm_shared": lstm_step_shared,
    "gru": gru_step,
    "rnn_tanh": plain_step(torch.tanh),
    "rnn_relu": plain_step(torch.relu),
}
