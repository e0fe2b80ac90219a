"""In-place ops without gradients: nothing is overwritten that is still read."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdep_run.cd import decompose

USES = {
    "relu": lambda y: F.relu(y, inplace=True),
    "the same tensor": lambda y: y + F.relu(y, inplace=True),
    "a sum before": lambda y: (y + 0.5, F.relu(y, inplace=True))[0] * y,
    "a view before": lambda y: (y[:, :2], F.relu(y, inplace=True))[0] + y[:, 2:],
    "a view of a view": lambda y: (y.flatten(2), F.silu(y[:, 1:3], inplace=True))[0].square(),
    "a detached one": lambda y: (y.detach(), F.hardtanh(y, 0, 1, inplace=True))[0] + 2 * y,
    "a copy before": lambda y: (y.clone(), F.relu6(y, inplace=True))[0] * y,
    "joined before": lambda y: (torch.cat([y, y], 1), F.relu(y, inplace=True))[0][:, :4] - y,
    "twice": lambda y: F.relu(F.hardswish(y, inplace=True), inplace=True),
    "asked for by name": lambda y: torch.relu_(y) + y.relu_(),
    "leaky": lambda y: F.leaky_relu(y, 0.2, True),
    "a sum": lambda y: F.silu(y + y.flip(1), inplace=True) * y,
    "a sum that is kept": lambda y: (s := y + 2 * y, F.elu(s, inplace=True))[0] + y,
    "a view of a sum": lambda y: (
        (
            v := (s := y + y.flip(1))[:, :1],
            F.silu(s, inplace=True),
        )[1]
        * v
    ),
    "a broadcast sum": lambda y: F.silu(y + y.mean((2, 3), keepdim=True), inplace=True),
    "a pool before": lambda y: (F.max_pool2d(y, 3, 1, 1), F.silu(y, inplace=True))[0] * y,
    "padded before": lambda y: F.silu(y, inplace=True) * F.pad(y, (1, 0, 0, 1))[..., :-1, :-1],
    "a window that is all, padded by nothing": lambda y: (
        (
            F.pad(p := F.max_pool2d(y, 11, 1, 5) - 3, (0, 0, 0, 0)),
            p.mean(),
            F.relu(p, inplace=True),
        )[0]
        * y
    ),
    "a view of what is written": lambda y: (y[:, 1:], y.mul_(2))[0],
    "a view that is written": lambda y: (y.flatten(1)[:, 9:].mul_(3), y)[1],
    "a sum of choices": lambda y: F.silu(
        (w := torch.where(y[:, :, :1] > 0, y[:, :, :1], torch.ones(4, 10, 10))) + w, inplace=True
    ),
    "padded first": lambda y: F.pad(y, (1, 0, 0, 1))[..., :-1, :-1] * F.silu(y, inplace=True),
}
MASKS = {
    "scattered": torch.rand(1, 2, 1, 12, 12, generator=torch.Generator().manual_seed(0)) > 0.4,
    "a corner": F.pad(torch.ones(1, 1, 1, 3, 3, dtype=torch.bool), (0, 9, 0, 9)),
}


class Net(nn.Module):
    def __init__(self, use) -> None:
        super().__init__()
        self.conv, self.norm, self.use = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), use
        self.head = nn.LazyLinear(3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(x, inplace=True) * 2
        y = self.use(self.norm(self.conv(y)))
        return self.head(y.flatten(1))


@pytest.mark.parametrize("relu", ["asymmetric", "symmetric", "last"])
@pytest.mark.parametrize("name", USES)
@pytest.mark.parametrize("place", MASKS)
@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
def test_without_gradients_the_parts_are_the_same(name, relu, place, without):
    torch.manual_seed(0)
    model, x = Net(USES[name]), torch.randn(2, 2, 12, 12)
    model(x.clone())
    model.eval()
    mask, before = MASKS[place], x.clone()
    wanted = decompose(model, x, mask, rules={"relu": relu})
    with without():
        got = decompose(model, x, mask, rules={"relu": relu})
    assert x.equal(before)
    torch.testing.assert_close(got.relevant, wanted.relevant)
    torch.testing.assert_close(got.irrelevant, wanted.irrelevant)
    torch.testing.assert_close(got.total, model(x.clone()))
