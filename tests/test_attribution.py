"""Input gradients that are found in boxes only: the same numbers there, also to second order."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from cdep_run.attribution import features, input_gradients
from cdep_run.batch import Batch, Groups
from cdep_run.cd.kernels import convolution
from cdep_run.datasets.annotation import boxes_mask
from cdep_run.penalties.eg import ExpectedGradients
from cdep_run.penalties.rrr import RRR

CORNERS = (((0, 2, 0, 2), (6, 8, 5, 7)), ((0, 1, 6, 7),))


pytestmark = pytest.mark.usefixtures("double")


class UsesInputTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.other = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(2, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return (self.conv(x) * self.other(x)).flatten(2).sum(2) + x.square().mean((2, 3)).sum(1)[
            :, None
        ]


def net(convolution: nn.Module) -> nn.Module:
    return nn.Sequential(
        convolution, nn.Softplus(), nn.ReLU(inplace=True), nn.Flatten(), nn.LazyLinear(4)
    )


MODELS = {
    "plain": lambda: net(nn.Conv2d(2, 3, 3)),
    "stride and padding": lambda: net(nn.Conv2d(2, 3, 3, stride=2, padding=2)),
    "stride beyond the kernel": lambda: net(nn.Conv2d(2, 3, 1, stride=3)),
    "dilation, no bias": lambda: net(nn.Conv2d(2, 3, 2, dilation=2, bias=False)),
    "written in place": lambda: nn.Sequential(nn.Conv2d(2, 3, 3), *list(net(nn.ReLU(True)))),
    "two uses": UsesInputTwice,
    "groups": lambda: net(nn.Conv2d(2, 4, 3, groups=2)),
    "named padding": lambda: net(nn.Conv2d(2, 4, 3, padding="same")),
    "no convolution": lambda: net(nn.Identity()),
}


@pytest.fixture
def batch() -> Batch:
    groups = Groups(boxes_mask(CORNERS, 8, 7), CORNERS)
    return Batch(torch.randn(3, 2, 8, 7), torch.tensor([2, 0, 1]), groups)


def without_boxes(batch: Batch) -> Batch:
    return replace(batch, groups=Groups(batch.groups.mask))


def close(actual, expected) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("penalty", [RRR(), RRR("published"), ExpectedGradients(2)])
def test_penalties_and_their_gradients_are_the_same_with_boxes(name, penalty, batch):
    model = MODELS[name]()
    model(batch.inputs)
    found = []
    for variant in (batch, without_boxes(batch)):
        torch.manual_seed(1)
        logits, value = penalty(model, variant)
        model.zero_grad()
        (value + logits.square().sum()).backward(inputs=list(model.parameters()))
        found.append((logits, value, [p.grad for p in model.parameters()]))
    close(*found)


@pytest.mark.parametrize("name", MODELS)
def test_rrr_in_boxes_equals_finite_differences(name, batch):
    model = MODELS[name]()
    model(batch.inputs)

    def value(*_: Tensor) -> Tensor:
        return RRR()(model, batch)[1]

    assert torch.autograd.gradcheck(value, tuple(model.parameters()), fast_mode=True)


def test_outside_the_boxes_the_first_convolution_is_spared(batch):
    model = MODELS["plain"]()
    model(batch.inputs)
    function, inputs = features(model, batch.inputs, CORNERS)
    _, narrow = input_gradients(function, inputs, Tensor.sum)
    _, whole = input_gradients(model, inputs, Tensor.sum)
    inside = batch.groups.mask.any(1)
    assert (narrow[..., 3:5, 3:4] == 0).all() and (whole[..., 3:5, 3:4] != 0).all()
    close(narrow * inside, whole * inside)


def test_what_made_the_inputs_gets_the_whole_gradient(batch):
    model = MODELS["plain"]()
    model(batch.inputs)
    scale = torch.ones(2, 1, 1, requires_grad=True)
    found = []
    for variant in (batch, without_boxes(batch)):
        made = replace(variant, inputs=variant.inputs * scale)
        logits, value = RRR()(model, made)
        found.append(torch.autograd.grad(logits.square().sum() + value, scale))
    close(*found)


def test_frozen_first_layer_still_gives_a_gradient(batch):
    model = MODELS["plain"]()
    model(batch.inputs)
    model[0].requires_grad_(False)
    close(RRR()(model, batch)[1], RRR()(model, without_boxes(batch))[1])


def test_boxes_that_overlap_give_the_whole_gradient():
    weight = torch.randn(3, 2, 3, 3)
    assert convolution.adjoint((8, 7), ((0, 2, 0, 2), (1, 3, 1, 3)), weight) is None
