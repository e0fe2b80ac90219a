"""Parts that are kept in windows, and elementwise ops that wait in them: the same numbers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdep_run.cd import decompose
from cdep_run.datasets.annotation import boxes_mask
from cdep_run.variants import VARIANTS

CORNERS = (((0, 3, 0, 3), (13, 16, 0, 3), (13, 16, 11, 14)), ((6, 7, 7, 8),))
WHOLE = (((0, 16, 0, 14),), ((0, 16, 0, 14),))  # too much for windows


pytestmark = pytest.mark.usefixtures("double")


class Read(nn.Module):
    """conv – `between` – head; `between` is given the first layer's output."""

    def __init__(self, between) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.second, self.between = nn.Conv2d(4, 4, 3), between
        self.head = nn.LazyLinear(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.between(self, self.first(x)).flatten(1))


def twice(net, x):
    x = F.relu(x)
    return F.max_pool2d(x, 2) * F.avg_pool2d(x, 2)


def residual(net, x):
    x = F.relu(x)
    return F.max_pool2d(F.relu(net.second(x)) + x[..., 1:-1, 1:-1], 2)


def without_gradient(net, x):
    """What is computed without gradients has none, however late its parts are."""
    with torch.no_grad():
        x = F.relu(x)
    return F.max_pool2d(net.second(x), 2)


def pooled_without_gradient(net, x):
    x = F.relu(x)
    with torch.no_grad():
        constant = F.max_pool2d(x, 2)
    return constant * F.max_pool2d(x, 2)


def viewed_without_gradient(net, x):
    with torch.no_grad():
        size = x.flatten(1).abs().mean(1) + 1
    return F.max_pool2d(x, 2) / size[:, None, None, None]


def written_after_it_was_read(net, x):
    """Ops that wait read what was there when they were called."""
    x = x * 2
    late = torch.tanh(x)
    x[:, 1:].mul_(3)
    return F.max_pool2d(late, 2) + F.max_pool2d(late, 16, 2, 8)[..., :8, :7] + F.max_pool2d(x, 2)


def written_where_the_window_is_all(net, x):
    x = F.max_pool2d(x, 5, 1, 2) * 2
    late = torch.tanh(x)
    x[:, 1:].mul_(3)
    return late + x


BETWEEN = {
    "relu, pool": lambda net, x: F.max_pool2d(F.relu(x), 2),
    "two layers": lambda net, x: F.max_pool2d(F.relu(net.second(F.max_pool2d(F.relu(x), 2))), 2),
    "pool, relu": lambda net, x: F.relu(F.max_pool2d(x, 2)),
    "pool, pool": lambda net, x: F.max_pool2d(F.max_pool2d(torch.tanh(x), 2), 2),
    "norm": lambda net, x: F.max_pool2d(F.relu(net.norm(x)), 2),
    "sigmoid, then a number": lambda net, x: F.max_pool2d(torch.sigmoid(x) * 3, 2),
    "overlapping pool": lambda net, x: F.max_pool2d(F.relu(x), 3, 1, 1),
    "strided pool": lambda net, x: net.second(F.max_pool2d(F.relu(x), 3, 2, 1)),
    "ceil": lambda net, x: F.max_pool2d(F.relu(x), 3, 3, ceil_mode=True),
    "twice": twice,
    "residual": residual,
    "without gradient": without_gradient,
    "pooled without gradient": pooled_without_gradient,
    "viewed without gradient": viewed_without_gradient,
    "written after it was read": written_after_it_was_read,
    "written where the window is all": written_where_the_window_is_all,
}


@pytest.mark.parametrize("relu", VARIANTS["relu"])
@pytest.mark.parametrize("name", BETWEEN)
def test_windows_change_neither_values_nor_gradients(name, relu):
    model, x = Read(BETWEEN[name]), torch.randn(3, 2, 16, 14)
    model.eval()(x)
    mask, found = boxes_mask(CORNERS, 16, 14), []
    for boxes in (CORNERS, WHOLE):
        parts = decompose(model, x, mask, boxes=boxes, rules={"relu": relu})
        score = parts.relevant.square().sum() + parts.irrelevant.sin().sum()
        gradients = torch.autograd.grad(score, list(model.parameters()), allow_unused=True)
        found.append((parts.relevant, parts.irrelevant, [g for g in gradients if g is not None]))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(parts.total, model(x))
    with torch.no_grad():
        quiet = decompose(model, x, mask, boxes=CORNERS, rules={"relu": relu})
    torch.testing.assert_close(quiet.relevant, found[0][0])


@pytest.mark.parametrize("relu", ["asymmetric", "symmetric"])
@pytest.mark.parametrize("boxes", [CORNERS, WHOLE])
def test_gradients_equal_finite_differences(boxes, relu):
    model, x = Read(BETWEEN["two layers"]), torch.randn(2, 2, 16, 14)
    model(x)
    mask = boxes_mask(CORNERS, 16, 14)

    def value(*_: Tensor) -> Tensor:
        return decompose(model, x, mask, boxes=boxes, rules={"relu": relu}).relevant

    wanted = tuple(p for name, p in model.named_parameters() if "norm" not in name)
    assert torch.autograd.gradcheck(value, wanted, fast_mode=True)


@pytest.mark.parametrize("boxes", [CORNERS, WHOLE])
def test_gradients_reach_what_made_the_input(boxes):
    model, mask = Read(BETWEEN["two layers"]), boxes_mask(CORNERS, 16, 14)
    x = torch.randn(2, 2, 16, 14, requires_grad=True)
    model(x)

    def value(x: Tensor) -> Tensor:
        return decompose(model, x, mask, boxes=boxes, rules={"relu": "symmetric"}).relevant

    assert torch.autograd.gradcheck(value, x, fast_mode=True)


def test_windows_in_another_memory_format_are_the_same():
    layers = nn.Conv2d(2, 2, 2, padding=1), nn.Conv2d(2, 2, 5, padding=2)
    model = nn.Sequential(*layers, nn.Flatten())
    x, boxes = torch.randn(2, 2, 16, 14), (((0, 2, 0, 3),),)
    mask = boxes_mask(boxes, 16, 14)
    wanted = decompose(model, x, mask, boxes=boxes).relevant
    got = decompose(model.to(memory_format=torch.channels_last), x, mask, boxes=boxes).relevant
    torch.testing.assert_close(got, wanted)


def test_no_examples_have_no_parts():
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.MaxPool2d(2), nn.Flatten())
    mask = boxes_mask(CORNERS, 16, 14)
    found = decompose(model, torch.randn(0, 2, 16, 14), mask, boxes=CORNERS)
    assert found.relevant.shape == (0, 2, 4 * 7 * 6)
