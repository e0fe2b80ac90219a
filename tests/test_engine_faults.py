"""Faults that others found in the engine, each with the right value: kinds, not only cases."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cdep_run.cd import decompose
from cdep_run.cd.pair import Constant, Pair

X = torch.randn(2, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
HALF = torch.tensor([[True, True, False, False]])


class Call(nn.Module):
    def __init__(self, function, *layers: nn.Module) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


@pytest.mark.parametrize(
    "rules", [{}, {"product": "strict", "relu": "symmetric"}, {"relu": "last"}]
)
def test_a_checkpoint_recomputes_by_the_chosen_rules(rules):
    layers = [nn.Linear(4, 4), nn.Linear(4, 3)]

    def block(model, z):
        y = F.gelu(model.layers[0](z))
        return model.layers[1](y * torch.tanh(y))

    plain = Call(block, *layers).double()
    saving = Call(lambda m, z: checkpoint(lambda t: block(m, t), z, use_reentrant=False), *layers)
    gradients = []
    for model in (plain, saving):
        relevant = decompose(model, X, HALF, rules=rules).relevant
        weights = list(plain.parameters())[:3]  # under "last" the last bias is not relevant
        gradients.append(torch.autograd.grad(relevant.square().sum(), weights))
    for ours, expected in zip(*reversed(gradients), strict=True):
        torch.testing.assert_close(ours, expected)


def test_work_put_off_before_a_checkpoint_is_done_for_it_only_once():
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 3, 3), nn.Conv2d(3, 3, 3), nn.Linear(3 * 64, 2)]

    def forward(model, x, saving):
        first, second, head = model.layers
        y, last = F.relu(first(x)), lambda t: F.relu(second(t)) + t[..., 1:-1, 1:-1]
        y = checkpoint(last, y, use_reentrant=False) if saving else last(y)
        return head(y.flatten(1))

    x, mask = torch.randn(2, 1, 12, 12), torch.zeros(1, 1, 12, 12, dtype=torch.bool)
    mask[..., 1:3, 1:3] = True
    gradients = []
    for saving in (False, True):
        model = Call(lambda m, x, saving=saving: forward(m, x, saving), *layers)
        relevant = decompose(model, x, mask).relevant
        gradients.append(torch.autograd.grad(relevant.square().sum(), list(model.parameters())))
    for ours, expected in zip(*reversed(gradients), strict=True):
        torch.testing.assert_close(ours, expected)


def test_densenet_that_saves_memory_has_the_gradients_of_one_that_does_not():
    gradients = []
    for saving in (False, True):
        torch.manual_seed(0)
        model = torchvision.models.DenseNet(
            4, (2, 2), 8, num_classes=3, memory_efficient=saving
        ).double()
        x, mask = torch.randn(2, 3, 32, 32).double(), torch.zeros(1, 1, 32, 32, dtype=torch.bool)
        mask[..., 4:9, 4:9] = True
        relevant = decompose(model, x, mask).relevant
        gradients.append(torch.autograd.grad(relevant.square().sum(), list(model.parameters())))
    for ours, expected in zip(*reversed(gradients), strict=True):
        torch.testing.assert_close(ours, expected)


NEW_SHAPES = {
    "transpose_": lambda y: (y.view(2, 2, 2).transpose_(1, 2), y)[1],
    "of a view, returned": lambda y: y.view(2, 2, 2).transpose_(1, 2).flatten(1),
    "swapaxes_": lambda y: (y.view(2, 2, 2).swapaxes_(1, 2), y)[1],
    "t_ twice": lambda y: y.clone().t_().t_(),
    "unsqueeze_ and squeeze_": lambda y: y.unsqueeze_(1).squeeze_(1),
    "a write behind it": lambda y: ((v := y.view(2, 2, 2)).transpose_(1, 2), v[:, 0].mul_(3), y)[2],
}


@pytest.mark.parametrize("name", NEW_SHAPES)
def test_a_new_shape_in_place_writes_nothing(name):
    run = lambda x: NEW_SHAPES[name](x * 1.0)  # noqa: E731
    parts = decompose(run, X, HALF)
    torch.testing.assert_close(parts.total, run(X))
    torch.testing.assert_close(parts.relevant, run(X * HALF))


@pytest.mark.parametrize("where", ["prepend", "append"])
def test_constants_beside_differences_are_not_relevant_by_themselves(where):
    run = lambda z: z.diff(dim=1, **{where: torch.ones(2, 1).double()})  # noqa: E731
    parts = decompose(run, X, HALF)
    torch.testing.assert_close(parts.total, run(X))
    assert not decompose(run, X, torch.zeros_like(HALF)).relevant.any()
    both = decompose(lambda z: z.diff(dim=1, **{where: z[:, :1]}), X, HALF).relevant
    torch.testing.assert_close(both, (X * HALF).diff(dim=1, **{where: (X * HALF)[:, :1]}))


def test_what_is_no_number_is_counted_as_in_the_total():
    def run(z):
        holes = z.masked_fill(z > 0.3, math.nan)
        return torch.stack([holes.nanmean(1), holes.nansum(1), holes.nan_to_num(7.0).sum(1)], 1)

    seen = X <= 0.3
    added = (X * HALF * seen).sum(1)
    parts = decompose(run, X, HALF)
    torch.testing.assert_close(parts.total, run(X))
    torch.testing.assert_close(parts.relevant, torch.stack([added / seen.sum(1), added, added], 1))


OVERFLOWS = {
    "exp": lambda t: t.sum(1, keepdim=True).exp(),
    "sinh": lambda t: t.sum(1, keepdim=True).sinh(),
    "cosh": lambda t: t.sum(1, keepdim=True).cosh(),
    "square": lambda t: (t.sum(1, keepdim=True) * 1e18).square(),
}


@pytest.mark.parametrize("name", OVERFLOWS)
def test_large_parts_that_cancel_stay_finite(name):
    x, weight = torch.tensor([[200.0, -199.5]]), torch.ones(2, requires_grad=True)
    parts = decompose(lambda z: OVERFLOWS[name](z * weight), x, torch.tensor([[True, False]]))
    assert parts.relevant.isfinite().all()
    torch.testing.assert_close(parts.total, OVERFLOWS[name](x), rtol=1e-4, atol=0)
    (gradient,) = torch.autograd.grad(parts.relevant.sum(), weight)
    assert gradient.isfinite().all() or name == "square"  # whose gradient is too large by itself


@pytest.mark.parametrize("f", [torch.logit, torch.acos])
def test_functions_that_are_infinite_or_steep_at_0_have_finite_parts(f):
    x = torch.tensor([[0.5, 1e-7, 0.3, 0.999]]) if f is torch.acos else torch.rand(1, 4) / 2 + 0.2
    relevant = decompose(lambda z: f(z + 0), x, torch.ones(1, 4, dtype=torch.bool)).relevant
    assert relevant.isfinite().all() and relevant.abs().max() < 10


def test_constants_of_each_example_meet_windows():
    conv = nn.Conv2d(1, 2, 3)
    x, mask = torch.randn(2, 1, 12, 12), torch.zeros(1, 1, 1, 12, 12, dtype=torch.bool)
    boxes = [[(0, 2, 0, 2), (9, 11, 9, 11)]]
    for top, bottom, left, right in boxes[0]:
        mask[..., top:bottom, left:right] = True
    run = lambda z: (conv(z) + torch.tensor([1.0, 2.0]).view(2, 1, 1, 1)).flatten(1)  # noqa: E731
    with_boxes = decompose(run, x, mask, boxes=boxes).relevant
    torch.testing.assert_close(
        with_boxes, decompose(run, x, mask, boxes=[[(0, 12, 0, 12)]]).relevant
    )


class Remembers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 3)
        self.register_buffer("state", torch.zeros(1))
        self.kept: list = []

    def forward(self, x: Tensor) -> Tensor:
        self.h = self.lin(x)
        self.state, self.kept = self.h.detach().mean(0), [self.h, {"zeros": x.new_zeros(3)}]
        return self.h + self.h.mean()


def test_what_a_forward_keeps_is_ordinary_afterwards(tmp_path):
    model, x = Remembers(), X.float()
    decompose(model, x, HALF)
    held = [model.h, model.state, model.kept[0], model.kept[1]["zeros"]]
    assert not any(isinstance(t, (Pair, Constant)) for t in held)
    torch.testing.assert_close(model.h, model.lin(x))
    torch.save(model.state_dict(), tmp_path / "state.pt")
    assert type(model(x)) is Tensor
