"""Rules of recurrent nets against the formulas written out sentence by sentence, and identities."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import reference
from cdep_run.cd import decompose
from cdep_run.cd.kernels import lstm
from cdep_run.cd.rules import gates

pytestmark = pytest.mark.usefixtures("double")


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


@pytest.mark.parametrize("form", ["published", "shared"])
@pytest.mark.parametrize("bias", [False, True])
def test_projections_are_matrices_behind_the_hidden_state(form, bias):
    """W_hr·h, fed back and up: a plain LSTM whose weights of h are multiplied by W_hr."""
    net = nn.LSTM(3, 4, 2, proj_size=2, bias=bias)
    plain = nn.LSTM(3, 4, 2, bias=bias)
    first, last = net.weight_hr_l0, net.weight_hr_l1
    with torch.no_grad():
        for name, weight in plain.named_parameters():
            by = {"weight_hh_l0": first, "weight_hh_l1": last, "weight_ih_l1": first}.get(name)
            mine = getattr(net, name)
            weight.copy_(mine if by is None else mine @ by)
    arguments, rules = (X, masks()[..., None], LENGTHS), {"lstm_gates": form}
    expected = decompose(States(plain), *arguments, rules=rules).relevant.unflatten(2, (5, 4))
    found = decompose(States(net), *arguments, rules=rules)
    torch.testing.assert_close(found.relevant, (expected @ last.T).flatten(2))
    torch.testing.assert_close(found.total, States(net)(X, LENGTHS))


def test_the_fast_lstm_is_the_readable_one_step_after_step():
    net, rel = nn.LSTM(3, 4), X.transpose(0, 1) * masks()[:, 0].T[..., None]
    weights = gates.Weights(*net.all_weights[0])
    inside, zero = masks()[:, 0].T[..., None].double(), torch.zeros(3, 4)
    state, steps = (zero,) * 4, []
    for x, rel_t, inside_t in zip(X.transpose(0, 1), rel, inside, strict=True):
        state = gates.lstm_step(state, x, rel_t, inside_t, weights)
        steps.append(state)
    fast = lstm.lstm(X.transpose(0, 1), rel, inside, (zero,) * 4, net.all_weights[0], None)
    for number, expected in enumerate(zip(*steps, strict=True)):
        begun = rel.any(-1, keepdim=True).cumsum(0) > 0 if number % 2 else 1
        torch.testing.assert_close(fast[number] * begun, torch.stack(expected) * begun)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("bias", [False, True])
def test_layers_without_biases_are_layers_whose_biases_are_zero(kind, bias):
    net = kind(3, 4, bias=bias)
    twin = kind(3, 4)
    twin.load_state_dict(net.state_dict(), strict=False)
    if not bias:
        nn.init.zeros_(twin.bias_ih_l0), nn.init.zeros_(twin.bias_hh_l0)
    arguments = X, masks()[..., None], LENGTHS
    found, expected = (decompose(States(n), *arguments).relevant for n in (net, twin))
    torch.testing.assert_close(found, expected)


class SentenceNet(nn.Module):
    """Word vectors, a recurrent net, logits from the last state of every layer and direction."""

    def __init__(self, kind=nn.LSTM, packed=True, **options):
        super().__init__()
        self.embedding = nn.Embedding(20, 3, padding_idx=0)
        self.net = kind(3, 4, **options)
        self.output = nn.Linear(4 * self.net.num_layers * (1 + self.net.bidirectional), 2)
        self.packed = packed

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids).transpose(0, 1)
        if self.packed:
            x = pack_padded_sequence(x, (ids > 0).sum(1), enforce_sorted=False)
        _, end = self.net(x)
        end = end[0] if isinstance(end, tuple) else end
        return self.output(end.transpose(0, 1).flatten(1))


KINDS = [nn.LSTM, nn.GRU, nn.RNN]
IDS = torch.tensor([[4, 9, 2, 0, 0], [7, 3, 11, 5, 19], [8, 2, 2, 13, 0]])
DEEP = {"num_layers": 2, "bidirectional": True}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_the_sum_is_the_models_logits(kind, dtype, atol):
    model = SentenceNet(kind, **DEEP).to(dtype)
    found = decompose(model, IDS, masks())
    for g in range(2):
        total = found.relevant[:, g] + found.irrelevant[:, g]
        torch.testing.assert_close(total, model(IDS), rtol=0, atol=atol)


@pytest.mark.parametrize("kind", KINDS)
def test_neither_padding_nor_the_batch_matters(kind):
    model = SentenceNet(kind, **DEEP)
    together = decompose(model, IDS, masks()).relevant
    padded = decompose(model, nn.functional.pad(IDS, (0, 4)), nn.functional.pad(masks(), (0, 4)))
    torch.testing.assert_close(padded.relevant, together)
    unpacked = SentenceNet(kind, packed=False, **DEEP)
    unpacked.load_state_dict(model.state_dict())
    for n, length in enumerate([3, 5, 4]):
        alone = decompose(unpacked, IDS[n : n + 1, :length], masks()[n : n + 1, :, :length])
        torch.testing.assert_close(alone.relevant, together[n : n + 1])


@pytest.mark.parametrize("looks", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_no_position_is_worth_nothing_and_all_positions_leave_nothing(kind, looks, monkeypatch):
    """`looks` False: as on a GPU, which is not asked where a group begins."""
    monkeypatch.setattr("cdep_run.cd.kernels.lstm.may_look", lambda x: looks)
    model = SentenceNet(kind, **DEEP)
    mask = masks()
    mask[:, 0], mask[:, 1] = False, True
    found = decompose(model, IDS, mask)
    bias = model.output.bias
    assert not found.relevant[:, 0].any()
    # The output layer's bias goes by size, so that both parts hold all or nothing of it.
    torch.testing.assert_close(found.relevant[:, 1], model(IDS), rtol=0, atol=1e-12)
    assert found.irrelevant[:, 1].abs().max() < 1e-12 < bias.abs().min()


def test_looking_where_a_group_begins_changes_nothing(monkeypatch):
    model, mask = SentenceNet(**DEEP), masks()
    expected = decompose(model, IDS, mask)
    monkeypatch.setattr("cdep_run.cd.kernels.lstm.may_look", lambda x: False)
    torch.testing.assert_close(decompose(model, IDS, mask).relevant, expected.relevant)


@pytest.mark.parametrize("looks", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_finite_differences(kind, looks, monkeypatch):
    monkeypatch.setattr("cdep_run.cd.kernels.lstm.may_look", lambda x: looks)
    model = SentenceNet(kind, **DEEP)
    weights = torch.randn(2, 3, 2, 2)

    def loss() -> Tensor:
        parts = decompose(model, IDS, masks())
        return (weights * torch.stack((parts.relevant, parts.irrelevant)).tanh()).sum()

    gradients = torch.autograd.grad(loss(), tuple(model.parameters()))
    assert all(gradient.any() for gradient in gradients)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        direction, step, values = torch.randn_like(parameter), 1e-6, []
        if parameter is model.embedding.weight:
            direction[0] = 0  # the vector of padding has no gradient
        for sign in (step, -2 * step, step):
            with torch.no_grad():
                parameter += sign * direction
                values.append(float(loss()))
        slope = (values[0] - values[1]) / (2 * step)
        assert slope == pytest.approx(float((gradient * direction).sum()), rel=1e-6, abs=1e-8)


def test_each_argument_of_the_lstm_scans_has_its_gradient():
    steps, count, size, sizes = 3, 2, 2, [3, 2, 2, 1]
    rows = sum(sizes)

    def tensors(*shapes):
        return tuple(torch.randn(*shape, requires_grad=True) for shape in shapes)

    def ordinary(*arguments):
        return lstm.Ordinary.apply(*arguments)[:3]

    def relevant(inputs, w_hh, bias, before, c, *rest):
        gates = lstm.activate_(before.detach().clone(), size)
        known = before, gates, c, torch.tanh(c.detach())
        return lstm.Relevant.apply(inputs, w_hh, bias, *known, *rest, sizes)

    arguments = tensors((steps, count, 8), (8, size), (count, size), (count, size))
    assert torch.autograd.gradcheck(ordinary, arguments)
    of_rows = [(rows, 6), (6, size), (6,), (rows, 8), (rows, size), (rows, 1)]
    assert torch.autograd.gradcheck(relevant, tensors(*of_rows, (3, size), (3, size)))


def test_gradients_of_gradients_are_refused():
    x = X.clone().requires_grad_()
    relevant = decompose(States(nn.LSTM(3, 4)), x, masks()[..., None], LENGTHS).relevant
    with pytest.raises(RuntimeError, match="LSTM has no second derivatives"):
        torch.autograd.grad(relevant.sum(), x, create_graph=True)


def test_dropout_between_layers_drops_the_same_units_in_both_parts():
    model = SentenceNet(num_layers=2, dropout=0.5).train()
    torch.manual_seed(3)
    found = decompose(model, IDS, torch.cat([masks(), ~masks()], 1))
    torch.manual_seed(3)
    again = decompose(model, IDS, masks())
    torch.testing.assert_close(found.relevant[:, :2], again.relevant)
    torch.testing.assert_close(found.total, again.total)
    assert model.training and not torch.equal(found.total, decompose(model, IDS, masks()).total)
    # With nothing left between the layers the second one sees no group, as in the model itself.
    model.net.dropout = 1.0
    torch.testing.assert_close(decompose(model, IDS, masks()).total, model(IDS))


def test_a_given_initial_state_is_irrelevant_unless_it_is_itself_decomposed():
    class Decoder(nn.Module):
        def __init__(self, decomposed: bool):
            super().__init__()
            self.encoder, self.decoder = nn.LSTM(3, 4), nn.LSTM(2, 4)
            self.decomposed = decomposed

        def forward(self, x, y):
            h, c = self.encoder(x.transpose(0, 1))[1]
            if not self.decomposed:
                h, c = torch.ones(1, 3, 4), torch.ones(1, 3, 4)
                return self.encoder(x.transpose(0, 1), (h, c))[0][-1]
            return self.decoder(y, (h, c))[0][-1]

    y, everything = torch.randn(6, 3, 2), torch.ones(3, 5, 1, dtype=torch.bool)
    given, decomposed = Decoder(False), Decoder(True)
    found = decompose(given, X, everything, y)
    torch.testing.assert_close(found.total, given(X, y))
    assert found.irrelevant.abs().max() > 1e-3
    found = decompose(decomposed, X, everything, y)
    torch.testing.assert_close(found.total, decomposed(X, y))
    assert found.relevant.abs().min() > 1e-6
    assert not decompose(decomposed, X, ~everything, y).relevant.any()


@pytest.mark.parametrize(
    ("net", "cell"), [(nn.LSTM, nn.LSTMCell), (nn.GRU, nn.GRUCell), (nn.RNN, nn.RNNCell)]
)
def test_a_loop_over_cells_is_the_net(net, cell):
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = cell(3, 4)

        def forward(self, x, lengths):
            state, outputs = None, []
            for t in range(x.shape[1]):
                state = self.cell(x[:, t], state)
                outputs.append(state[0] if isinstance(state, tuple) else state)
            return torch.stack(outputs, 1).flatten(1)

    loop, whole = Loop(), States(net(3, 4, batch_first=True), packed=False)
    values = loop.cell.state_dict()
    whole.net.load_state_dict({f"{name}_l0": value for name, value in values.items()})
    found, expected = (decompose(m, X, masks()[..., None], LENGTHS) for m in (loop, whole))
    torch.testing.assert_close(found.relevant, expected.relevant)
    torch.testing.assert_close(found.total, expected.total)


def test_biases_are_shared_where_parts_are_mixed():
    """Stacked calls: at the second one's input a position is in the group by the parts' sizes."""

    class Stacked(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.LSTM(3, 4, batch_first=True)
            self.second = nn.LSTM(4, 4, batch_first=True)

        def forward(self, x):
            return self.second(self.first(x)[0])[0].flatten(1)

    model = Stacked()
    x, mask = X[:1], torch.zeros(1, 5, dtype=torch.bool)
    mask[0, 1] = True
    ((rel, irrel),) = reference.recurrent(model.first, x, mask, [5])
    share = rel.abs().sum(1) / (rel.abs() + irrel.abs()).sum(1)
    assert share[0] == 0 and 0 < share[4] < 1
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    weights = tuple(getattr(model.second, name) for name in names)
    # C_i·C_g comes in linearly before the cell: at the first two steps the formula is by hand.
    h = reference.lstm_direction(weights, rel[:2], irrel[:2], [False, True])[0][1]
    low = reference.lstm_direction(weights, rel[:2], irrel[:2], [False, False])[0][1]
    found = decompose(model, x, mask[..., None]).relevant.view(5, 4)
    assert not found[0].any()
    assert (((found[1] - low) * (h - found[1])) > 0).all()
    everything = decompose(model, X, torch.ones(3, 5, 1, dtype=torch.bool))
    assert everything.irrelevant.abs().max() < 1e-12


def test_the_published_placement_of_biases():
    """At the first position of the group alone; words are relevant at all of them."""
    net, mask = nn.LSTM(3, 4), torch.zeros(3, 5, dtype=torch.bool)
    mask[:, 1:4] = True
    model = States(net, packed=False)
    found = decompose(model, X, mask[..., None], LENGTHS, rules={"recurrent_bias": "first"})
    weights = (net.weight_ih_l0, net.weight_hh_l0, net.bias_ih_l0, net.bias_hh_l0)
    with_bias = [False, True, False, False, False]
    for n in range(3):
        rel = X[n] * mask[n, :, None]
        expected = reference.lstm_direction(weights, rel, X[n] - rel, with_bias)[0]
        torch.testing.assert_close(found.relevant[n].view(5, 4), expected)


def test_shared_gates_halve_what_one_part_does_to_the_other():
    net, mask = nn.LSTM(3, 4), torch.zeros(3, 5, dtype=torch.bool)
    mask[:, 1], mask[1, 3] = True, True
    model, rules = States(net, packed=False), {"lstm_gates": "shared"}
    found = decompose(model, X, mask[..., None], LENGTHS, rules=rules)
    weights = (net.weight_ih_l0, net.weight_hh_l0, net.bias_ih_l0, net.bias_hh_l0)
    for n in range(3):
        rel = X[n] * mask[n, :, None]
        parts = reference.lstm_direction(weights, rel, X[n] - rel, mask[n].tolist(), shared=True)
        torch.testing.assert_close(found.relevant[n].view(5, 4), parts[0])
        torch.testing.assert_close(found.irrelevant[n].view(5, 4), parts[1])
    every = decompose(model, X, torch.ones(3, 5, 1, dtype=torch.bool), LENGTHS, rules=rules)
    assert every.irrelevant.abs().max() < 1e-12
    none = decompose(model, X, torch.zeros(3, 5, 1, dtype=torch.bool), LENGTHS, rules=rules)
    assert not none.relevant.any()


def test_autocast_computes_the_net_in_the_precision_of_its_weights():
    torch.set_default_dtype(torch.float32)
    model = SentenceNet()
    with torch.autocast("cpu", torch.bfloat16):
        found = decompose(model, IDS, masks())
        found.relevant.float().sum().backward()
    exact = decompose(model, IDS, masks())
    torch.testing.assert_close(found.relevant.float(), exact.relevant, rtol=0.02, atol=0.02)
    torch.testing.assert_close(found.total.float(), exact.total, rtol=0.02, atol=0.02)
    assert model.net.weight_hh_l0.grad.isfinite().all()


def test_a_word_with_a_vector_of_zeros_gets_a_finite_gradient():
    torch.set_default_dtype(torch.float32)
    model = SentenceNet()
    with torch.no_grad():
        model.embedding.weight[IDS[0, 2]] = 0  # after a word of the first group
    (decompose(model, IDS, masks()).relevant.sum() * 1e6).backward()
    assert model.embedding.weight.grad.isfinite().all()


def test_the_model_is_left_as_it_was():
    model = SentenceNet(num_layers=2, dropout=0.5).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flat = [id(weight) for weight in model.net._flat_weights]
    decompose(model, IDS, masks())
    assert model.training and model.net.training and model.net.dropout == 0.5
    assert [id(weight) for weight in model.net._flat_weights] == flat
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
