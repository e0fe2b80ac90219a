"""Random programs and random nets: what holds for every model, tried on many that nobody chose."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdep_run.cd import decompose
from identities import measure

pytestmark = pytest.mark.usefixtures("double")


# --- Programs of linear ops, views and in-place writes: β is the program run on m ⊙ x -------------


def shifted(y: Tensor) -> Tensor:
    new = y.new_zeros(y.shape)
    new[:, 1:] = y[:, :-1]
    return new


def other_layout(y: Tensor) -> Tensor:
    return torch.where(torch.arange(y.shape[-1]) % 2 == 0, y, y * 3).transpose(1, -1)


NEW: list[Callable[[Tensor], Tensor]] = [
    lambda y: y.transpose(0, -1),
    lambda y: y.transpose(1, -1),
    lambda y: y.contiguous(),
    lambda y: y.reshape(-1, y.shape[-1]),
    lambda y: y.flatten(1),
    lambda y: y[..., ::2],
    lambda y: y[:, 1:],
    lambda y: y[:, [0]],
    lambda y: y[0][None],
    lambda y: y.chunk(2, 1)[0],
    lambda y: y.split(2, -1)[-1],
    lambda y: y.unsqueeze(1).squeeze(1),
    lambda y: y.to(torch.float64),
    lambda y: F.dropout(y, 0.5, training=False),
    lambda y: y.clone(),
    lambda y: y + 0,
    lambda y: sum([y, y]),
    lambda y: torch.mul(input=y, other=-0.5),
    lambda y: y.flip(1),
    lambda y: y.cumsum(1),
    lambda y: F.pad(y, (1, 0)),
    shifted,
    other_layout,
]


def double_in_place(y: Tensor) -> None:
    y *= 2


def set_edge(y: Tensor) -> None:
    y[..., 0] = y[..., -1] * 2


def clear_row(y: Tensor) -> None:
    y[:1].zero_()


def fill_even(y: Tensor) -> None:
    y.masked_fill_(torch.arange(y.shape[-1]) % 2 == 0, 0.0)


WRITES: list[Callable[[Tensor], None]] = [
    double_in_place, set_edge, clear_row, fill_even,
    lambda y: y.div_(4), lambda y: y.view(-1).mul_(3) if y.is_contiguous() else None,
]  # fmt: skip


def add_in_place(y: Tensor, z: Tensor) -> None:
    y += z


def subtract_row(y: Tensor, z: Tensor) -> None:
    y[:1] -= z[:1] * 3


BINARY: list[Callable[[Tensor, Tensor], None]] = [
    add_in_place, subtract_row, lambda y, z: y.copy_(z)  # type: ignore[list-item, return-value]
]  # fmt: skip


def program(seed: int) -> Callable[[Tensor], Tensor]:
    """Twelve random steps over a growing list of tensors, which all become the output."""

    def run(x: Tensor) -> Tensor:
        dice, live = random.Random(seed), [x * 2]
        for _ in range(12):
            kind, y, z = dice.choice("nnwb"), dice.choice(live), dice.choice(live)
            if kind == "n":
                live.append(dice.choice(NEW)(y))
            elif kind == "w":
                dice.choice(WRITES)(y)
            elif (step := dice.choice(BINARY)) and y.shape == z.shape:
                step(y, z.clone())
        return torch.cat([t.reshape(1, -1) for t in live], 1)

    return run


@pytest.mark.parametrize("seed", range(100))
def test_a_linear_program_gives_what_it_makes_of_the_group_alone(seed):
    torch.manual_seed(seed)
    x, mask = torch.randn(2, 3, 4, 4), torch.rand(1, 1, 4, 4) < 0.5
    run = program(seed)
    parts = decompose(run, x, mask)
    torch.testing.assert_close(parts.total, run(x))
    torch.testing.assert_close(parts.relevant, run(x * mask))


# --- Random nets: the identities, finite differences, training mode -------------------------------


class Residual(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class Gated(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(super().forward(x.mean((2, 3), keepdim=True)))


class Joined(nn.Module):
    def __init__(self, left: nn.Module, right: nn.Module):
        super().__init__()
        self.left, self.right, self.mix = left, right, nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(torch.cat([self.left(x), self.right(x)], 1))


class Tokens(nn.Module):
    """A layer over the 36 positions as a sequence."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).mT
        attends = isinstance(self.layer, nn.MultiheadAttention)
        out = self.layer(tokens, tokens, tokens) if attends else self.layer(tokens)
        return (out[0] if isinstance(out, tuple) else out).mT.unflatten(2, x.shape[2:])


class Call(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def weight_normed() -> nn.Module:
    return nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1))


def resampled(x: Tensor) -> Tensor:
    return F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="bilinear")


# No ReLU: where it leaves all units dead the constants behind them are γ's, whatever the mask.
LAYERS: list[Callable[[], nn.Module]] = [
    *(nn.Tanh, nn.GELU, nn.SiLU, nn.Sigmoid, nn.LeakyReLU, nn.Softplus, nn.ELU, nn.Hardswish),
    lambda: nn.PReLU(4),
    lambda: nn.Conv2d(4, 4, 3, padding=1),
    lambda: nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=2),
    lambda: nn.ConvTranspose2d(4, 4, 3, padding=1, bias=False),
    weight_normed,
    lambda: nn.Sequential(nn.Conv2d(4, 8, 1), nn.GLU(1)),
    lambda: nn.BatchNorm2d(4),
    lambda: nn.GroupNorm(2, 4),
    lambda: nn.MaxPool2d(3, 1, 1),
    lambda: nn.AvgPool2d(3, 1, 1),
    lambda: nn.Dropout(0.3),
    lambda: Gated(nn.Conv2d(4, 4, 1)),
    lambda: Tokens(nn.LayerNorm(4)),
    lambda: Tokens(nn.MultiheadAttention(4, 2, batch_first=True)),
    lambda: Tokens(nn.GRU(4, 4, batch_first=True)),
    lambda: Tokens(nn.LSTM(4, 2, batch_first=True, bidirectional=True)),
    lambda: Call(lambda x: x.roll(1, 3) + x.flip(1) * 0.5),
    lambda: Call(lambda x: x.softmax(1) + x),
    lambda: Call(resampled),
]


def net(seed: int) -> nn.Module:
    dice = random.Random(seed)

    def layer(depth: int) -> nn.Module:
        kind = dice.random() if depth < 2 else 1
        if kind < 0.15:
            return Residual(layer(depth + 1), layer(depth + 1))
        if kind < 0.25:
            return Joined(layer(depth + 1), layer(depth + 1))
        return dice.choice(LAYERS)()

    body = [layer(0) for _ in range(dice.randint(2, 6))]
    head = dice.choice([[nn.Flatten(), nn.Linear(144, 3)], [nn.AdaptiveAvgPool2d(1), nn.Flatten()]])
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), *body, *head)


@pytest.mark.parametrize("seed", range(25))
def test_a_random_net_keeps_the_identities_and_has_the_right_gradients(seed):
    torch.manual_seed(seed)
    model = net(seed).eval()
    x, mask = torch.randn(2, 3, 6, 6), torch.rand(2, 2, 1, 6, 6) < 0.4
    mask[:, 0], mask[:, 0, :, :2, :2] = False, True
    errors = measure(model, x, mask)
    assert not errors.failures(1e-8), errors
    parts = decompose(model, x, mask)
    torch.testing.assert_close(decompose(model, x[:1], mask[:1]).relevant, parts.relevant[:1])

    weights = [p for p in model.parameters() if p.requires_grad]
    directions = [torch.randn_like(p) for p in weights]
    grades = torch.linspace(-1, 2, parts.relevant.numel()).view_as(parts.relevant)

    def value(step: float) -> Tensor:
        moved = {
            name: p + step * d
            for (name, p), d in zip(model.named_parameters(), directions, strict=True)
        }
        return (
            decompose(lambda p: torch.func.functional_call(model, moved, (p,)), x, mask).relevant
            * grades
        ).sum()

    step = torch.zeros((), requires_grad=True)
    (analytic,) = torch.autograd.grad(value(step), step)
    with torch.no_grad():
        numeric = (value(1e-7) - value(-1e-7)) / 2e-7
    torch.testing.assert_close(analytic, numeric, rtol=1e-4, atol=1e-4)

    model.train()
    torch.manual_seed(seed)
    expected = model(x)
    torch.manual_seed(seed)
    torch.testing.assert_close(decompose(model, x, mask).total, expected)


# --- Boxes: what lies outside them is zero, and nothing else changes ------------------------------


def convolutions(dice: random.Random) -> nn.Module:
    """A few convolutions and poolings of any geometry, with activations between them."""
    layers: list[nn.Module] = []
    for _ in range(dice.randint(1, 3)):
        if dice.random() < 0.7:
            kernel = (dice.choice([1, 2, 3, 5]), dice.choice([1, 2, 3]))
            layers.append(
                nn.Conv2d(
                    4, 4, kernel, dice.choice([1, 1, 2, (2, 1)]),
                    padding=dice.choice([0, 1, 2, (0, 1), "valid"]),
                    dilation=dice.choice([1, 1, 2]), groups=dice.choice([1, 1, 2]),
                    bias=dice.random() < 0.8,
                )
            )  # fmt: skip
        else:
            size = dice.choice([2, 3])
            layers.append(nn.MaxPool2d(size, dice.choice([1, 2]), dice.choice([0, 1])))
        layers.append(dice.choice([nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.Identity])())
    return nn.Sequential(*layers, nn.Flatten())


def random_boxes(dice: random.Random, side: int) -> tuple[tuple[int, int, int, int], ...]:
    corners = [(dice.randrange(side - 4), dice.randrange(side - 4)) for _ in range(2)]
    return tuple(
        (t, t + dice.randint(1, 4), left, left + dice.randint(1, 4)) for t, left in corners
    )


@pytest.mark.parametrize("seed", range(60))
def test_boxes_change_neither_parts_nor_gradients(seed):
    torch.manual_seed(seed)
    dice, side = random.Random(seed), 24
    model, x = convolutions(dice), torch.randn(2, 4, side, side)
    if dice.random() < 0.3:
        model, x = (t.to(memory_format=torch.channels_last) for t in (model, x))
    boxes = [random_boxes(dice, side)[:number] for number in (1, 2)]
    mask = torch.zeros(2, 2, 1, side, side, dtype=torch.bool)
    for group, places in enumerate(boxes):
        for top, bottom, left, right in places:
            shape = mask[:, group, :, top:bottom, left:right].shape
            mask[:, group, :, top:bottom, left:right] = torch.rand(shape) < 0.8
    everywhere = [((0, side, 0, side),)] * 2  # no window pays
    weights, results = list(model.parameters()), []
    for given in (boxes, everywhere):
        relevant = decompose(model, x, mask, boxes=given).relevant
        grades = torch.linspace(-1, 2, relevant.numel()).view_as(relevant)
        grads = torch.autograd.grad((relevant * grades).sum(), weights) if weights else ()
        results.append((relevant, *grads))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected)
