"""The gradients of deep nets are more than rounding noise, and what says so when they are not."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from torch import Tensor, nn

from cdep_run.cd import condition, decompose
from cdep_run.cd.condition import TRUSTED
from cdep_run.cd.kernels.bias import BiasShare
from cdep_run.penalties.cdep import CDEP, pair
from reference import share_at_most_half

NETS = ["resnet18", "mobilenet_v3_small", "squeezenet1_1", "efficientnet_b0", "shufflenet_v2_x0_5"]


def fresh(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)(num_classes=10).train()
    x, mask = torch.randn(8, 3, 48, 48), torch.zeros(1, 1, 1, 48, 48, dtype=torch.bool)
    mask[..., 4:16, 4:16] = True
    return model, x, mask


@pytest.mark.parametrize("name", NETS)
def test_the_default_has_the_same_gradient_in_float32_and_float64(name):
    model, x, mask = fresh(name)
    rules, gradients = CDEP().rules, []
    for dtype in (torch.float32, torch.float64):
        twin = copy.deepcopy(model).to(dtype)
        torch.manual_seed(0)  # dropout
        parts = decompose(twin, x.to(dtype), mask, rules=rules)
        labels = torch.zeros(8, dtype=torch.long)
        value = pair(parts.relevant[:, None], parts.irrelevant[:, None], labels).mean()
        found = torch.autograd.grad(value, list(twin.parameters()))
        gradients.append(torch.cat([g.flatten().double() for g in found]))
    assert torch.cosine_similarity(*gradients, 0) >= 0.99


def test_condition_tells_noise_from_gradients_and_leaves_the_model_alone():
    model, x, mask = fresh("shufflenet_v2_x0_5")
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    assert condition(model, x, mask) > 0.99
    assert condition(model, x, mask, rules={"norm_constant": "proportional"}) < TRUSTED
    for name, value in model.state_dict().items():
        assert value.equal(before[name])
    assert torch.get_rng_state().equal(random)
    assert all(p.grad is None for p in model.parameters()) and model.training


@pytest.mark.parametrize("with_scale", [False, True])
def test_a_bounded_share_is_the_formula_and_has_its_slopes(with_scale):
    torch.manual_seed(0)
    shapes = [(4, 3, 5), (4, 3, 5), (3, 1), *[(3, 1)] * with_scale]
    rel, rest, bias, *scale = (
        torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in shapes
    )
    s = scale[0] if scale else 1
    ours = BiasShare.apply(rel, rel + rest, bias, *(scale or [None]), True)
    expected, _ = share_at_most_half(rel * s, rest * s, bias)
    torch.testing.assert_close(ours, expected)
    received = ours - rel * s
    half = (rel * s).abs() / 2
    assert ((received.abs() - half).abs() < 1e-12).any() and (received.abs() < half * 0.99).any()
    grades = torch.linspace(-1, 2, ours.numel(), dtype=torch.float64).view_as(ours)
    wanted = torch.autograd.grad((expected * grades).sum(), [rel, rest, bias, *scale])
    found = torch.autograd.grad((ours * grades).sum(), [rel, rest, bias, *scale])
    for actual, formula in zip(found, wanted, strict=True):
        torch.testing.assert_close(actual, formula)


def test_a_scale_of_zero_leaves_the_constant_to_the_rest():
    rel = torch.ones(2, requires_grad=True)
    scale, bias = torch.zeros(2, requires_grad=True), torch.tensor([0.0, 3.0], requires_grad=True)
    ours = BiasShare.apply(rel, 2 * rel, bias, scale, True)
    assert not ours.any()
    for gradient in torch.autograd.grad(ours.sum(), [rel, scale, bias]):
        assert gradient.isfinite().all()
