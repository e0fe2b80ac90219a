"""PROTOCOL's formulas written out the dull way: what the tests judge the package against.

Nothing of the package is imported here. Both parts (β, γ) are carried explicitly through every
layer, each with its own convolution; penalties and recurrent nets are loops over examples and time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Pair = tuple[Tensor, Tensor]

# --- Layers that torch.nn has no module for ------------------------------------------------------


class SymmetricReLU(NamedTuple):
    """ReLU split by the symmetric rule instead of ACD's."""


class Dropped(NamedTuple):
    """Dropout that has been drawn: `factor` is 0 or 1 / (1 − p), shaped like the activation."""

    factor: Tensor


class Add(NamedTuple):
    """The sum of branches that start from the same pair; an empty branch is the identity."""

    branches: Sequence[Sequence[object]]


class Concat(NamedTuple):
    """The branches' results side by side along the channels."""

    branches: Sequence[Sequence[object]]


# --- One layer -----------------------------------------------------------------------------------


def share_bias(relevant: Tensor, irrelevant: Tensor, bias: Tensor) -> Pair:
    """Split a bias in proportion to |Wβ| and |Wγ|; where both are 0 it belongs to γ."""
    size = relevant.abs() + irrelevant.abs()
    dead = size == 0
    safe = torch.where(dead, torch.ones_like(size), size)
    to_relevant = torch.where(dead, torch.zeros_like(size), bias * relevant.abs() / safe)
    to_irrelevant = torch.where(dead, bias.expand_as(size), bias * irrelevant.abs() / safe)
    return relevant + to_relevant, irrelevant + to_irrelevant


def share_at_most_half(relevant: Tensor, irrelevant: Tensor, bias: Tensor) -> Pair:
    """As `share_bias`, but the relevant part gets no more of the bias than half its own size."""
    size = torch.maximum(relevant.abs() + irrelevant.abs(), 2 * bias.abs())
    safe = torch.where(size == 0, torch.ones_like(size), size)
    given = bias * relevant.abs() / safe
    return relevant + given, irrelevant + bias - given


def symmetric(f: Callable[[Tensor], Tensor], relevant: Tensor, irrelevant: Tensor) -> Pair:
    """½[f(β) + f(β+γ) − f(γ)] and its mirror, of f − f(0); the constant f(0) is shared like a bias.

    Taking f(0) out first keeps an empty part empty: f(β) of β = 0 contributes nothing.
    """
    start = f(torch.zeros_like(relevant))
    both = f(relevant + irrelevant) - start
    from_relevant = f(relevant) - start
    from_irrelevant = f(irrelevant) - start
    return share_bias(
        0.5 * (from_relevant + both - from_irrelevant),
        0.5 * (from_irrelevant + both - from_relevant),
        start,
    )


def max_pool(layer: nn.MaxPool2d, relevant: Tensor, irrelevant: Tensor) -> Pair:
    """The position is chosen by β + γ; both parts are read there.

    Where two positions hold the same activation (such as a bias over dead inputs) the last bit of
    the sum β + γ decides here, and not necessarily as it would in an ordinary pass.
    """
    _, position = F.max_pool2d(
        relevant + irrelevant,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.ceil_mode,
        return_indices=True,
    )
    flat = position.flatten(2)
    return (
        relevant.flatten(2).gather(2, flat).view_as(position),
        irrelevant.flatten(2).gather(2, flat).view_as(position),
    )


def batch_norm(layer: nn.BatchNorm2d, relevant: Tensor, irrelevant: Tensor) -> Pair:
    """x · scale + shift per channel, with the running statistics; the shift is a bias.

    In training mode the statistics are those of the whole activation β + γ of this batch.
    """
    mean, var = layer.running_mean, layer.running_var
    if layer.training:
        total = relevant + irrelevant
        mean, var = total.mean((0, 2, 3)), total.var((0, 2, 3), unbiased=False)
    scale = layer.weight / (var + layer.eps).sqrt()
    shift = layer.bias - mean * scale
    scale, shift = scale[:, None, None], shift[:, None, None]
    return share_at_most_half(relevant * scale, irrelevant * scale, shift)


LINEAR = (nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Flatten, nn.Identity)


def step(layer: object, relevant: Tensor, irrelevant: Tensor) -> Pair:
    """One layer's (β', γ') from its (β, γ)."""
    if isinstance(layer, nn.Conv2d):
        options = (layer.stride, layer.padding, layer.dilation, layer.groups)
        relevant = F.conv2d(relevant, layer.weight, None, *options)
        irrelevant = F.conv2d(irrelevant, layer.weight, None, *options)
        if layer.bias is None:
            return relevant, irrelevant
        return share_bias(relevant, irrelevant, layer.bias[:, None, None])
    if isinstance(layer, nn.Linear):
        relevant, irrelevant = relevant @ layer.weight.T, irrelevant @ layer.weight.T
        if layer.bias is None:
            return relevant, irrelevant
        return share_bias(relevant, irrelevant, layer.bias)
    if isinstance(layer, nn.BatchNorm2d):
        return batch_norm(layer, relevant, irrelevant)
    if isinstance(layer, nn.ReLU):
        part = relevant.clamp(min=0)
        return part, (relevant + irrelevant).clamp(min=0) - part
    if isinstance(layer, SymmetricReLU):
        return symmetric(lambda x: x.clamp(min=0), relevant, irrelevant)
    if isinstance(layer, nn.Tanh):
        return symmetric(torch.tanh, relevant, irrelevant)
    if isinstance(layer, nn.Sigmoid):
        return symmetric(torch.sigmoid, relevant, irrelevant)
    if isinstance(layer, nn.MaxPool2d):
        return max_pool(layer, relevant, irrelevant)
    if isinstance(layer, LINEAR):
        return layer(relevant), layer(irrelevant)
    if isinstance(layer, Dropped):
        return relevant * layer.factor, irrelevant * layer.factor
    if isinstance(layer, nn.Sequential):
        return walk(list(layer), relevant, irrelevant)
    if isinstance(layer, Add):
        pairs = [walk(branch, relevant, irrelevant) for branch in layer.branches]
        return sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)
    if isinstance(layer, Concat):
        pairs = [walk(branch, relevant, irrelevant) for branch in layer.branches]
        return torch.cat([pair[0] for pair in pairs], 1), torch.cat([pair[1] for pair in pairs], 1)
    raise TypeError(f"the reference has no formula for {type(layer).__name__}")


def walk(layers: Sequence[object], relevant: Tensor, irrelevant: Tensor) -> Pair:
    """Carry (β, γ) through the layers, one after the other."""
    for layer in layers:
        relevant, irrelevant = step(layer, relevant, irrelevant)
    return relevant, irrelevant


def decompose(layers: Sequence[object], inputs: Tensor, mask: Tensor) -> Pair:
    """β and γ of the outputs, `[N, G, C]` each; `mask` is `[N or 1, G, *features]`."""
    results = []
    for group in range(mask.shape[1]):
        m = mask[:, group].to(inputs.dtype)
        results.append(walk(layers, m * inputs, (1 - m) * inputs))
    return torch.stack([r for r, _ in results], 1), torch.stack([i for _, i in results], 1)


# --- The decomposition of the published CDEP code, quirks included --------------------------------


def published_affine(layer: nn.Module, relevant: Tensor, irrelevant: Tensor) -> Pair:
    """A convolution or dense layer: both parts and a zero input, each in a pass of its own."""
    bias = layer(torch.zeros_like(relevant))
    relevant, irrelevant = layer(relevant) - bias, layer(irrelevant) - bias
    size = relevant.abs() + irrelevant.abs() + 1e-19
    return relevant + bias * relevant.abs() / size, irrelevant + bias * irrelevant.abs() / size


def published_pool(relevant: Tensor, irrelevant: Tensor) -> Pair:
    """2x2 max pooling: 4 times the mean of what stands at the maximum of β + γ."""
    both, place = F.max_pool2d(relevant + irrelevant, 2, return_indices=True)
    chosen = F.max_unpool2d(torch.ones_like(both), place, 2, output_size=relevant.shape)
    return 4 * F.avg_pool2d(chosen * relevant, 2), 4 * F.avg_pool2d(chosen * irrelevant, 2)


def published_relu(relevant: Tensor, irrelevant: Tensor) -> Pair:
    """ReLU(β), and what ReLU(β + γ) has besides."""
    part = torch.relu(relevant)
    return part, torch.relu(relevant + irrelevant) - part


def published_mnist_cnn(model: nn.Module, inputs: Tensor, mask: Tensor) -> Pair:
    """β, γ `[N, C]` of the MNIST net, for one group's mask: it pools before ReLU."""
    relevant, irrelevant = mask * inputs, (~mask) * inputs
    for layer in (model.conv1, model.conv2):
        pair = published_pool(*published_affine(layer, relevant, irrelevant))
        relevant, irrelevant = published_relu(*pair)
    pair = published_affine(model.fc1, relevant.flatten(1), irrelevant.flatten(1))
    return published_affine(model.fc2, *published_relu(*pair))


def published_text_penalty(
    model: nn.Module, tokens: Tensor, word: Tensor, labels: Tensor
) -> Tensor:
    """The published CDEP penalty of an LSTM of one layer that reads its state after the padding.

    The group is the word at position `word` `[N]` and the next one; the biases of the cell's input
    are relevant at the first of them alone; the output's bias is left out; no gradient reaches the
    word vectors. −log of γ's share at the true class, mean over examples.
    """
    net, vectors = model.recurrent, model.embedding(tokens).detach()
    hidden = net.hidden_size
    bias = (net.bias_ih_l0 + net.bias_hh_l0).split(hidden)
    values = []
    for n in range(len(tokens)):
        h_rel = h_irrel = c_rel = c_irrel = vectors.new_zeros(hidden)
        for t in range(tokens.shape[1]):
            word_part = net.weight_ih_l0 @ vectors[n, t]
            inside = int(word[n]) <= t <= int(word[n]) + 1
            r = (net.weight_hh_l0 @ h_rel + inside * word_part).split(hidden)
            i = (net.weight_hh_l0 @ h_irrel + (not inside) * word_part).split(hidden)
            r_in, i_in, c_in = three_terms(torch.sigmoid, r[0], i[0], bias[0])
            r_new, i_new, c_new = three_terms(torch.tanh, r[2], i[2], bias[2])
            new_rel = r_in * (r_new + c_new) + c_in * r_new
            new_irrel = i_in * (r_new + i_new + c_new) + (r_in + c_in) * i_new
            if t == int(word[n]):
                new_rel = new_rel + c_in * c_new
            else:
                new_irrel = new_irrel + c_in * c_new
            if t > 0:
                r_keep, i_keep, c_keep = three_terms(torch.sigmoid, r[1], i[1], bias[1])
                new_rel = new_rel + (r_keep + c_keep) * c_rel
                new_irrel = new_irrel + (r_keep + i_keep + c_keep) * c_irrel + i_keep * c_rel
            c_rel, c_irrel = new_rel, new_irrel
            out = torch.sigmoid(r[3] + i[3] + bias[3])
            both = torch.tanh(c_rel + c_irrel)
            h_rel = out * 0.5 * (torch.tanh(c_rel) + both - torch.tanh(c_irrel))
            h_irrel = out * 0.5 * (torch.tanh(c_irrel) + both - torch.tanh(c_rel))
        row = model.output.weight[int(labels[n])]
        values.append(-torch.log(torch.softmax(torch.stack([row @ h_rel, row @ h_irrel]), 0)[1]))
    return torch.stack(values).mean()


# --- CDEP: functions of β, γ [N, G, C] -----------------------------------------------------------


def annotated_examples(count: int, annotated: Tensor | None) -> list[int]:
    """The examples that carry knowledge; a mean over examples counts these only."""
    return [n for n in range(count) if annotated is None or bool(annotated[n])]


def cdep_pair(relevant: Tensor, irrelevant: Tensor, annotated: Tensor | None = None) -> Tensor:
    """β's share e^β / (e^β + e^γ): mean over annotated examples and classes, sum over groups."""
    examples = annotated_examples(len(relevant), annotated)
    _, groups, classes = relevant.shape
    value = relevant.new_zeros(())
    for n in examples:
        for g in range(groups):
            for k in range(classes):
                both = torch.stack([relevant[n, g, k], irrelevant[n, g, k]])
                value = value + torch.softmax(both, 0)[0] / (len(examples) * classes)
    return value


def cdep_centred(relevant: Tensor, annotated: Tensor | None = None) -> Tensor:
    """Σ_k (β_k − mean β)². Mean over annotated examples, sum over groups and classes."""
    examples = annotated_examples(len(relevant), annotated)
    value = relevant.new_zeros(())
    for n in examples:
        for beta in relevant[n]:
            for k in range(len(beta)):
                value = value + (beta[k] - sum(beta) / len(beta)) ** 2 / len(examples)
    return value


def cdep_eq5(relevant: Tensor, annotated: Tensor | None = None) -> Tensor:
    """Eq. 5 with the neutral target 1/classes: ‖softmax over classes of β − 1/classes‖₁.

    Mean over annotated examples, sum over groups and classes.
    """
    examples = annotated_examples(len(relevant), annotated)
    _, groups, classes = relevant.shape
    value = relevant.new_zeros(())
    for n in examples:
        for g in range(groups):
            explained = torch.softmax(relevant[n, g], 0)
            for k in range(classes):
                value = value + (explained[k] - 1 / classes).abs() / len(examples)
    return value


def cdep_text(
    relevant: Tensor, irrelevant: Tensor, labels: Tensor, annotated: Tensor | None = None
) -> Tensor:
    """−log of γ's share at the true class: mean over annotated examples, sum over groups."""
    examples = annotated_examples(len(relevant), annotated)
    value = relevant.new_zeros(())
    for n in examples:
        y = int(labels[n])
        for g in range(relevant.shape[1]):
            both = torch.stack([relevant[n, g, y], irrelevant[n, g, y]])
            value = value - torch.log(torch.softmax(both, 0)[1]) / len(examples)
    return value


# --- RRR and EG: `mask` is [N or 1, G, *features], True where a feature must not matter -----------


def masked_sum(values: Tensor, mask: Tensor, n: int) -> Tensor:
    """Example n's `values` `[*features]` summed over the features of each group, over groups."""
    total = values.new_zeros(())
    for group in mask[n if len(mask) > 1 else 0]:
        total = total + (values * group).sum()
    return total


def rrr_paper(
    model: nn.Module, inputs: Tensor, mask: Tensor, annotated: Tensor | None = None
) -> Tensor:
    """(A ⊙ ∂/∂x Σ_c log p_c)²: sum over features and groups, mean over annotated examples."""
    examples = annotated_examples(len(inputs), annotated)
    value = inputs.new_zeros(())
    for n in examples:
        x = inputs[n : n + 1].clone().requires_grad_()
        log_probabilities = torch.log_softmax(model(x), 1)
        (gradient,) = torch.autograd.grad(log_probabilities.sum(), x, create_graph=True)
        value = value + masked_sum(gradient[0].square(), mask, n) / len(examples)
    return value


def rrr_code(model: nn.Module, inputs: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """The CDEP code: the batch-mean NLL's gradient, summed over channels, masked, squared, summed.

    Where no example sees another (no batch statistics) each one's gradient is 1/N of its own
    loss's; the code knows no examples without annotation.
    """
    value = inputs.new_zeros(())
    for n in range(len(inputs)):
        x = inputs[n : n + 1].clone().requires_grad_()
        loss = -torch.log_softmax(model(x), 1)[0, labels[n]] / len(inputs)
        (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
        value = value + masked_sum(gradient[0].sum(0, keepdim=True).square(), mask, n)
    return value


def eg_attribution(
    model: nn.Module, inputs: Tensor, labels: Tensor, references: Tensor, alpha: Tensor
) -> Tensor:
    """(x − x′) ⊙ ∂p_y/∂x at x′ + α(x − x′), for each sample and example: `[S, N, *features]`."""
    samples = []
    for s in range(len(references)):
        rows = []
        for n in range(len(inputs)):
            difference = inputs[n] - references[s, n]
            point = (references[s, n] + alpha[s, n] * difference).detach()[None].requires_grad_()
            probability = torch.softmax(model(point), 1)[0, labels[n]]
            (gradient,) = torch.autograd.grad(probability, point, create_graph=True)
            rows.append(difference * gradient[0])
        samples.append(torch.stack(rows))
    return torch.stack(samples)


def eg_paper(attribution: Tensor, mask: Tensor, annotated: Tensor | None = None) -> Tensor:
    """φ = mean over samples; Σ over features and groups of |φ|, mean over annotated examples."""
    samples, count = attribution.shape[:2]
    examples = annotated_examples(count, annotated)
    value = attribution.new_zeros(())
    for n in examples:
        phi = sum(attribution[s, n] for s in range(samples)) / samples
        value = value + masked_sum(phi.abs(), mask, n) / len(examples)
    return value


def eg_code(attribution: Tensor, mask: Tensor, annotated: Tensor | None = None) -> Tensor:
    """The CDEP code: |·| of every sample, then the mean over samples; the rest as `eg_paper`."""
    samples, count = attribution.shape[:2]
    examples = annotated_examples(count, annotated)
    value = attribution.new_zeros(())
    for n in examples:
        for s in range(samples):
            value = value + masked_sum(attribution[s, n].abs(), mask, n) / (samples * len(examples))
    return value


# --- Recurrent nets: one sentence, one time step after the other ---------------------------------


def three_terms(
    f: Callable[[Tensor], Tensor], r: Tensor, i: Tensor, c: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """f(r + i + c) as R + I + C: relevant, irrelevant and bias part."""
    relevant = 0.5 * (f(r + c) - f(c) + f(r + i + c) - f(i + c))
    irrelevant = 0.5 * (f(i + c) - f(c) + f(r + i + c) - f(r + c))
    return relevant, irrelevant, f(c)


def lstm_direction(
    weights: tuple[Tensor, Tensor, Tensor, Tensor],
    relevant: Tensor,
    irrelevant: Tensor,
    inside: Sequence[bool],
    shared: bool = False,
) -> Pair:
    """One layer, one direction, one sentence `[T, features]`: the hidden states' parts `[T, H]`.

    `weights` are W_ih, W_hh, b_ih, b_hh in torch's gate order i, f, g, o; the initial state is 0.
    `shared`: of products of a relevant and an irrelevant factor both get a half.
    """
    w_ih, w_hh, b_ih, b_hh = weights
    hidden_size = w_hh.shape[1]
    h_rel = h_irrel = c_rel = c_irrel = relevant.new_zeros(hidden_size)
    outputs = []
    for t in range(len(relevant)):
        r = (w_ih @ relevant[t] + w_hh @ h_rel).split(hidden_size)
        i = (w_ih @ irrelevant[t] + w_hh @ h_irrel).split(hidden_size)
        c = (b_ih + b_hh).split(hidden_size)
        r_in, i_in, c_in = three_terms(torch.sigmoid, r[0], i[0], c[0])
        r_forget, i_forget, c_forget = three_terms(torch.sigmoid, r[1], i[1], c[1])
        r_cell, i_cell, c_cell = three_terms(torch.tanh, r[2], i[2], c[2])
        out = torch.sigmoid(r[3] + i[3] + c[3])

        cell = (r_forget + i_forget + c_forget) * (c_rel + c_irrel)
        cell = cell + (r_in + i_in + c_in) * (r_cell + i_cell + c_cell)
        new_rel = r_in * (r_cell + c_cell) + c_in * r_cell + (r_forget + c_forget) * c_rel
        if inside[t]:
            new_rel = new_rel + c_in * c_cell
        if shared:
            new_rel = new_rel + 0.5 * (r_in * i_cell + i_in * r_cell)
            new_rel = new_rel + 0.5 * (r_forget * c_irrel + i_forget * c_rel)
        c_rel, c_irrel = new_rel, cell - new_rel

        both = torch.tanh(c_rel + c_irrel)
        h_rel = out * 0.5 * (torch.tanh(c_rel) + both - torch.tanh(c_irrel))
        h_irrel = out * 0.5 * (torch.tanh(c_irrel) + both - torch.tanh(c_rel))
        if shared:
            r_out, i_out, c_out = three_terms(torch.sigmoid, r[3], i[3], c[3])
            a, b = h_rel / out, h_irrel / out
            h_rel = r_out * a + c_out * a + 0.5 * (r_out * b + i_out * a)
            h_irrel = i_out * b + c_out * b + 0.5 * (i_out * a + r_out * b)
        outputs.append((h_rel, h_irrel))
    return torch.stack([a for a, _ in outputs]), torch.stack([b for _, b in outputs])


def gru_direction(
    weights: tuple[Tensor, Tensor, Tensor, Tensor],
    relevant: Tensor,
    irrelevant: Tensor,
    inside: Sequence[bool],
) -> Pair:
    """As `lstm_direction` for a GRU, torch's gate order r, z, n."""
    w_ih, w_hh, b_ih, b_hh = weights
    hidden_size = w_hh.shape[1]
    w_in, w_hn = w_ih[2 * hidden_size :], w_hh[2 * hidden_size :]
    b_in, b_hn = b_ih[2 * hidden_size :], b_hh[2 * hidden_size :]
    h_rel = h_irrel = relevant.new_zeros(hidden_size)
    outputs = []
    for t in range(len(relevant)):
        r = (w_ih @ relevant[t] + w_hh @ h_rel).split(hidden_size)
        i = (w_ih @ irrelevant[t] + w_hh @ h_irrel).split(hidden_size)
        c = (b_ih + b_hh).split(hidden_size)
        r_reset, i_reset, c_reset = three_terms(torch.sigmoid, r[0], i[0], c[0])
        r_update, i_update, c_update = three_terms(torch.sigmoid, r[1], i[1], c[1])
        reset, update = r_reset + i_reset + c_reset, r_update + i_update + c_update

        x, h = relevant[t] + irrelevant[t], h_rel + h_irrel
        candidate_input = w_in @ x + b_in + reset * (w_hn @ h + b_hn)
        n_rel = w_in @ relevant[t] + (r_reset + c_reset) * (w_hn @ h_rel) + r_reset * b_hn
        n_bias = b_in + c_reset * b_hn
        n_irrel = candidate_input - n_rel - n_bias
        r_new, i_new, c_new = three_terms(torch.tanh, n_rel, n_irrel, n_bias)
        candidate = r_new + i_new + c_new

        state = (1 - update) * candidate + update * h
        new_rel = (1 - c_update) * r_new - r_update * (r_new + c_new)
        if inside[t]:
            new_rel = new_rel + (1 - c_update) * c_new
        new_rel = new_rel + (r_update + c_update) * h_rel
        h_rel, h_irrel = new_rel, state - new_rel
        outputs.append((h_rel, h_irrel))
    return torch.stack([a for a, _ in outputs]), torch.stack([b for _, b in outputs])


def recurrent(
    net: nn.LSTM | nn.GRU, inputs: Tensor, mask: Tensor, lengths: Sequence[int]
) -> list[Pair]:
    """Parts of the last layer's hidden states, `[length, directions · H]`, for each sentence.

    Args:
        inputs: `[N, T, features]`.
        mask: bool `[N, T]`, the positions of the group: their whole vectors are relevant.
        lengths: each sentence's number of tokens; what stands behind them is not read.
    """
    direction = lstm_direction if isinstance(net, nn.LSTM) else gru_direction
    results = []
    for n, length in enumerate(lengths):
        inside = [bool(mask[n, t]) for t in range(length)]
        rows = [(x, 0 * x) if m else (0 * x, x) for x, m in zip(inputs[n], inside, strict=False)]
        relevant, irrelevant = torch.stack([a for a, _ in rows]), torch.stack([b for _, b in rows])
        for layer in range(net.num_layers):
            parts = []
            for suffix in ("", "_reverse") if net.bidirectional else ("",):
                names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
                weights = tuple(getattr(net, f"{name}_l{layer}{suffix}") for name in names)
                if suffix:
                    rel, irrel = direction(
                        weights, relevant.flip(0), irrelevant.flip(0), inside[::-1]
                    )
                    parts.append((rel.flip(0), irrel.flip(0)))
                else:
                    parts.append(direction(weights, relevant, irrelevant, inside))
            relevant = torch.cat([a for a, _ in parts], 1)
            irrelevant = torch.cat([b for _, b in parts], 1)
        results.append((relevant, irrelevant))
    return results
