"""One LSTM layer over time: the ordinary states, and beside them those of the relevant part.

The formulas stand in `Ordinary.forward` and `Relevant.forward`, one step after the other. What need
not wait for the step before is done for all steps at once: products with the input, slopes of the
activations, gradients of the weights. Backward passes are written by hand, since autograd would
keep and visit some twenty small tensors a step; gradients of gradients are refused.
Source of the rule: Murdoch et al. 2018 (CD for LSTMs).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def activate_(gates: Tensor, hidden: int) -> Tensor:
    """Gates `[..., K·H]` in torch's order i, f, g, o (or i, f, g): tanh for g, σ for the others."""
    gates[..., : 2 * hidden].sigmoid_()
    gates[..., 2 * hidden : 3 * hidden].tanh_()
    gates[..., 3 * hidden :].sigmoid_()
    return gates


def slopes(active: Tensor, hidden: int) -> Tensor:
    """The derivatives of `activate_`, from what it returned: 1 − y² for g, y(1 − y) for others."""
    slope = active - active.square()
    g = active[..., 2 * hidden : 3 * hidden]
    torch.addcmul(g.new_ones(()), g, g, value=-1, out=slope[..., 2 * hidden : 3 * hidden])
    return slope


def handwritten(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Runs a backward pass written by hand without autocast; refuses gradients of gradients."""

    def checked(ctx, *grads):
        if torch.is_grad_enabled():
            raise RuntimeError(
                "CD of nn.LSTM has no second derivatives: leave out create_graph=True"
            )
        with torch.autocast(ctx.saved_tensors[0].device.type, enabled=False):
            return backward(ctx, *grads)

    return checked


class Ordinary(torch.autograd.Function):
    """An LSTM over T steps, with what the relevant part needs to know of it.

    Args:
        inputs: `[T, N, 4·H]`, W_ih·x + b for all steps.
        w_hh: `[4·H, H]`.
        h0, c0: `[N, H]`.

    Returns:
        h and c `[T, N, H]`, the gates before activation `[T, N, 4·H]`; and, as numbers without a
        gradient of their own, the gates and tanh(c).
    """

    @staticmethod
    def forward(ctx, inputs: Tensor, w_hh: Tensor, h0: Tensor, c0: Tensor):
        size = w_hh.shape[1]
        before, gates = torch.empty_like(inputs), torch.empty_like(inputs)
        h, c, tanh_c = (inputs.new_empty(*inputs.shape[:2], size) for _ in range(3))
        w, h_t, c_t = w_hh.t().contiguous(), h0, c0
        for t, x in enumerate(inputs):
            gates[t] = torch.addmm(x, h_t, w, out=before[t])
            i, f, g, o = activate_(gates[t], size).chunk(4, -1)
            c_t = torch.mul(f, c_t, out=c[t]).addcmul_(i, g)
            h_t = torch.mul(o, torch.tanh(c_t, out=tanh_c[t]), out=h[t])
        ctx.save_for_backward(w_hh, h0, c0, h, c, gates, tanh_c)
        ctx.mark_non_differentiable(gates, tanh_c)
        ctx.set_materialize_grads(False)
        return h, c, before, gates, tanh_c

    @staticmethod
    @handwritten
    def backward(ctx, of_h, of_c, of_before, *_):
        w_hh, h0, c0, h, c, gates, tanh_c = ctx.saved_tensors
        (steps, count, size), like = h.shape, gates.new_empty
        i, f, g, o = gates.chunk(4, -1)
        # ∂c/∂(i, f, g) and ∂h/∂o before activation; ∂h/∂c.
        d_gates = slopes(gates, size)
        c_before = torch.cat((c0[None], c[:-1]))
        for gate, factor in zip(d_gates.chunk(4, -1), (g, c_before, i, tanh_c), strict=True):
            gate.mul_(factor)
        d_c = o - o * tanh_c.square()
        grad_inputs = like(gates.shape) if of_before is None else of_before.contiguous().clone()
        grad_h, grad_c = h.new_zeros(count, size), h.new_zeros(count, size)
        for t in reversed(range(steps)):
            if of_h is not None:
                grad_h += of_h[t]
            grad_c.addcmul_(grad_h, d_c[t])
            if of_c is not None:
                grad_c += of_c[t]
            gate, slope = grad_inputs[t].view(count, 4, size), d_gates[t].view(count, 4, size)
            if of_before is None:
                torch.mul(slope[:, :3], grad_c[:, None], out=gate[:, :3])
                torch.mul(slope[:, 3], grad_h, out=gate[:, 3])
            else:
                gate[:, :3].addcmul_(slope[:, :3], grad_c[:, None])
                gate[:, 3].addcmul_(slope[:, 3], grad_h)
            grad_h = torch.mm(grad_inputs[t], w_hh, out=grad_h)
            grad_c.mul_(f[t])
        h_before = torch.cat((h0[None], h[:-1]))
        return grad_inputs, grad_inputs.flatten(0, 1).t() @ h_before.flatten(0, 1), grad_h, grad_c


class Relevant(torch.autograd.Function):
    """The relevant part of an LSTM over rows: of S sequences, those still running at each step.

    Rows are ordered as in a packed sequence: all sequences' first steps, all second steps, …

    Args:
        inputs: `[R, 3·H]`, W_ih·x_rel of the gates i, f, g.
        w_hh: `[3·H, H]`; bias: `[3·H]`, b_ih + b_hh.
        before, gates: `[R, 4·H]`, the ordinary gates before and after activation; c, tanh_c:
            `[R, H]`, the ordinary cell. The gradient by what was activated goes to what was not.
        inside: `[R, 1]`, 1 inside the group, 0 outside.
        h0, c0: `[S, H]`, relevant parts of the initial state.
        sizes: sequences running at each step, never growing.

    Returns:
        Relevant parts of h and of c, `[R, H]`.
    """

    @staticmethod
    def forward(ctx, inputs, w_hh, bias, before, gates, c, tanh_c, inside, h0, c0, sizes):
        size = w_hh.shape[1]
        bounds = list(pairwise(accumulate(sizes, initial=0)))
        # With A = R + C for the gates' relevant parts, the cell's is
        # R_i(R_g + C_g) + C_i·R_g + inside·C_i·C_g + (R_f + C_f)·c_rel
        #     = A_i·A_g − (1 − inside)·C_i·C_g + A_f·c_rel,
        # and A = ½[f(r + c) + f(c) + f(r + i + c) − f(i + c)].
        constant = activate_(bias.clone(), size)
        product = constant[:size] * constant[2 * size :]
        share = (gates[:, : 3 * size] + constant).div_(2)
        c_rel, h_rel = (inside - 1) * product, torch.empty_like(c)
        # f(r + c) and f(i + c), first without what the relevant state adds to r
        terms = torch.stack((inputs + bias, before[:, : 3 * size] - inputs), 1)
        tanhs = terms.new_empty(len(terms), 2, size)
        half_o, w = gates[:, 3 * size :] / 2, w_hh.t().contiguous()
        h_t, c_t = h0, c0
        for start, stop in bounds:
            now, alive = slice(start, stop), stop - start
            r = h_t[:alive] @ w
            terms[now, 0] += r
            terms[now, 1] -= r
            activate_(terms[now], size)
            a = share[now].add_(terms[now, 0], alpha=0.5).sub_(terms[now, 1], alpha=0.5)
            a_i, a_f, a_g = a.chunk(3, -1)
            c_t = c_rel[now].addcmul_(a_i, a_g).addcmul_(a_f, c_t[:alive])
            # h_rel = o·½[tanh(c_rel) + tanh(c) − tanh(c_irrel)]
            tanhs[now, 0] = c_t
            torch.sub(c[now], c_t, out=tanhs[now, 1])
            of_rel, of_irrel = tanhs[now].tanh_().unbind(1)
            h_t = torch.sub(of_rel, of_irrel, out=h_rel[now]).add_(tanh_c[now]).mul_(half_o[now])
        ctx.bounds = bounds
        ctx.save_for_backward(
            w_hh, constant, gates, tanh_c, inside, h0, c0, share, terms, tanhs, h_rel, c_rel
        )
        ctx.set_materialize_grads(False)
        return h_rel, c_rel

    @staticmethod
    @handwritten
    def backward(ctx, of_h, of_c):
        w_hh, constant, gates, tanh_c, inside, h0, c0, a, terms, tanhs, h_rel, c_rel = (
            ctx.saved_tensors
        )
        bounds, size = ctx.bounds, w_hh.shape[1]
        a_i, a_f, a_g = a.chunk(3, -1)
        o = gates[:, 3 * size :]
        c_before, h_before = (
            torch.cat(
                [first[: bounds[0][1]]] + [x[i : i + k - j] for (i, _), (j, k) in pairwise(bounds)]
            )
            for first, x in ((c0, c_rel), (h0, h_rel))
        )
        of_rel, of_irrel = tanhs.square().unbind(1)
        d_c = (2 - of_rel).sub_(of_irrel).mul_(o).div_(2)
        d_a = torch.cat((a_g, c_before, a_i), -1)  # ∂c_rel/∂A
        slope = slopes(terms, size)
        d_r = (slope[:, 0] + slope[:, 1]).mul_(d_a).div_(2)
        grad_h = torch.zeros_like(h_rel) if of_h is None else of_h.clone()
        grad_c = torch.zeros_like(c_rel) if of_c is None else of_c.clone()
        grad_r = torch.empty_like(d_r)
        for step in reversed(range(len(bounds))):
            now = slice(*bounds[step])
            if step + 1 < len(bounds):
                start, stop = bounds[step + 1]
                earlier = slice(now.start, now.start + stop - start)
                later = slice(start, stop)
                grad_h[earlier].addmm_(grad_r[later], w_hh)
                grad_c[earlier].addcmul_(grad_c[later], a_f[later])
            grad_c[now].addcmul_(grad_h[now], d_c[now])
            gates_of = (-1, 3, size)
            torch.mul(d_r[now].view(gates_of), grad_c[now, None], out=grad_r[now].view(gates_of))
        first = slice(*bounds[0])
        grad_h0, grad_c0 = grad_r[first] @ w_hh, grad_c[first] * a_f[first]

        grad_a = d_a.view(-1, 3, size).mul_(grad_c[:, None]).view_as(d_a).div_(2)
        grad_before = torch.empty_like(gates)
        of_gates = slopes(gates, size)[:, : 3 * size]
        torch.sub(of_gates, slope[:, 1], out=grad_before[:, : 3 * size]).mul_(grad_a)
        torch.mul(grad_h, h_rel, out=grad_before[:, 3 * size :]).mul_(1 - o)
        grad_ordinary_c = (of_irrel - tanh_c.square()).mul_(grad_h).mul_(o).div_(2)
        grad_constant = grad_a.sum(0)
        lost = ((1 - inside) * grad_c).sum(0)
        grad_constant[:size] -= lost * constant[2 * size :]
        grad_constant[2 * size :] -= lost * constant[:size]
        grad_bias = grad_constant.mul_(slopes(constant, size)) + slope[:, 0].mul_(grad_a).sum(0)
        grad_inside = (grad_c @ (constant[:size] * constant[2 * size :]))[:, None]
        grad_w = grad_r.t() @ h_before
        return (
            grad_r,
            grad_w,
            grad_bias,
            grad_before,
            None,
            grad_ordinary_c,
            None,
            grad_inside,
            grad_h0,
            grad_c0,
            None,
        )


def may_look(x: Tensor) -> bool:
    """Whether Python may ask for values of `x`; a GPU would have to finish its work first."""
    return x.is_cpu


class Rows(NamedTuple):
    """The rows of `[T, S]` steps of S sequences that `Relevant` visits, in its order.

    Attributes:
        places: their places in the flat `[T·S]`.
        ordinary: places of the same steps in the flat `[T·N]` of ordinary sequences, s mod N.
        order: the sequences in the order in which they run.
        sizes: how many of them run at each step.
        entries: among the rows those whose input has a relevant part.
    """

    places: Tensor
    ordinary: Tensor
    order: Tensor
    sizes: list[int]
    entries: Tensor


def rows_of(rel: Tensor, started: Tensor, count: int, lengths: Tensor | None) -> Rows:
    """On a CPU a sequence runs from where its input `rel` `[T, S, D]` is first relevant, if ever.

    Elsewhere all rows run. `started`: bool `[S]`, which initial
    states have a relevant part; `count`: N; `lengths`: int64 `[N]`, None: all T.
    """
    steps, sequences = rel.shape[:2]
    order = torch.arange(sequences, device=rel.device)
    if not may_look(rel):
        places = torch.arange(steps * sequences, device=rel.device)
        ordinary = places // sequences * count + places % count  # N divides S
        return Rows(places, ordinary, order, [sequences] * steps, places)
    relevant = (rel != 0).any(-1)
    begun = relevant.clone()
    begun[0] |= started
    end = torch.full_like(order, steps) if lengths is None else lengths.repeat(sequences // count)
    first = torch.where(begun.any(0), begun.int().argmax(0), end)
    length, order = (end - first).clamp(min=0).sort(descending=True, stable=True)
    step = torch.arange(int(length[0]))[:, None]
    running = step < length
    time, sequence = (step + first[order])[running], order.expand_as(running)[running]
    places = time * sequences + sequence
    entries = relevant.flatten()[places].nonzero()[:, 0]
    return Rows(places, time * count + sequence % count, order, running.sum(1).tolist(), entries)


def lstm(
    x: Tensor,
    rel: Tensor,
    inside: Tensor,
    start: Sequence[Tensor],
    weights: Sequence[Tensor],
    lengths: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One layer in one direction.

    Args:
        x: `[T, N, D]`; rel: its parts `[T, S, D]`, S = G·N sequences of G groups; inside:
            `[T, S, 1]`, how much of a position is in the group.
        start: h `[N, H]`, its parts `[S, H]`, c, and its parts.
        weights: W_ih, W_hh, b_ih, b_hh as in `nn.LSTM`.
        lengths: int64 `[N]`: the parts are 0 from there on. None: all T.

    Returns:
        h, its parts, c, and its parts, of all steps.
    """
    w_ih, w_hh, b_ih, b_hh = weights
    h0, h0_rel, c0, c0_rel = start
    (steps, count), sequences, size = x.shape[:2], rel.shape[1], w_hh.shape[1]
    bias = b_ih + b_hh
    h, c, *known = Ordinary.apply(F.linear(x, w_ih, bias), w_hh, h0, c0)
    before, gates, tanh_c = known
    rows = rows_of(rel, ((h0_rel != 0) | (c0_rel != 0)).any(-1), count, lengths)
    none = x.new_zeros(steps * sequences, size)
    if not rows.sizes:
        return h, none.view(steps, -1, size), c, none.view(steps, -1, size)
    read = F.linear(rel.flatten(0, 1)[rows.places[rows.entries]], w_ih[: 3 * size])
    inputs = x.new_zeros(len(rows.places), 3 * size).index_copy(0, rows.entries, read)
    before, gates, c_rows, tanh_c = (
        t.flatten(0, 1).index_select(0, rows.ordinary) for t in (before, gates, c, tanh_c)
    )
    first = rows.order[: rows.sizes[0]]
    found = Relevant.apply(
        inputs,
        w_hh[: 3 * size],
        bias[: 3 * size],
        before,
        gates,
        c_rows,
        tanh_c,
        inside.flatten(0, 1)[rows.places],
        h0_rel[first],
        c0_rel[first],
        rows.sizes,
    )
    h_rel, c_rel = (none.index_copy(0, rows.places, t).view(steps, -1, size) for t in found)
    return h, h_rel, c, c_rel
