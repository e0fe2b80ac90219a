"""Judges: each against a computation by hand, and none moved by a constant added to all logits."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdep_run.errors import ConfigError
from cdep_run.evidence.explainers import (
    cd_share,
    gradcam,
    gradient,
    inside,
    last_map,
    log_odds,
    painted_over,
    without_last_bias,
)
from tiny_data import TinyConv

LABELS = torch.tensor([0, 1, 1])


def net(classes: int = 2) -> tuple[TinyConv, Tensor]:
    torch.manual_seed(0)
    return TinyConv((3, 16, 16), classes, 6).double().eval(), torch.randn(3, 3, 16, 16).double()


def corner() -> Tensor:
    mask = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    mask[..., :6, :6] = True
    return mask


def raised(model: TinyConv) -> TinyConv:
    """The same model with 50 added to all logits, and a feature added to all of them alike."""
    with torch.no_grad():
        model.head.bias += 50
        model.head.weight[:] += torch.randn(model.head.weight.shape[1])
    return model


def test_no_judge_is_moved_by_what_all_logits_share() -> None:
    def judged(model: TinyConv, images: Tensor) -> list[Tensor]:
        return [
            cd_share(without_last_bias(model, 3), images, corner(), "symmetric"),
            gradcam(model, images, LABELS),
            gradient(model, images, LABELS),
            log_odds(model(images), LABELS),
        ]

    model, images = net(classes=3)
    before = judged(model, images)
    for one, other in zip(before, judged(raised(model), images), strict=True):
        torch.testing.assert_close(one, other)
        assert one.abs().max() > 1e-3


def test_the_share_is_that_of_the_difference_of_the_two_logits() -> None:
    model, images = net()
    linear = nn.Sequential(nn.Flatten(), nn.Linear(3 * 256, 2)).double()
    share = cd_share(without_last_bias(linear, 2), images, corner(), "asymmetric")
    weight = (linear[1].weight[1] - linear[1].weight[0]).view(3, 16, 16)
    rel = (images * weight * corner()[0]).sum((1, 2, 3)).abs()
    irrel = (images * weight * ~corner()[0]).sum((1, 2, 3)).abs()
    torch.testing.assert_close(share, rel / (rel + irrel))
    everything = torch.ones(1, 1, 16, 16, dtype=torch.bool)
    unbiased = without_last_bias(model, 2)
    assert (cd_share(unbiased, images, everything, "asymmetric") > 0.999).all()
    assert (cd_share(unbiased, images, ~everything, "asymmetric") == 0).all()


def test_gradcam_agrees_with_its_formula() -> None:
    model, images = net()
    assert last_map(model, images) is model.conv
    maps = model.conv(images)
    # Of the mean of ReLUs: ∂(z_y − mean z)/∂map = w · [map > 0] / pixels, then its mean.
    weight = model.head.weight - model.head.weight.mean(0)
    slope = weight[LABELS][:, :, None, None] * (maps > 0) / 256
    expected = F.relu((slope.mean((2, 3), keepdim=True) * maps).sum(1))
    torch.testing.assert_close(gradcam(model, images, LABELS), expected.detach())


def test_gradcam_enlarges_the_map_of_a_strided_layer() -> None:
    class Strided(TinyConv):
        def forward(self, inputs: Tensor) -> Tensor:
            return self.head(F.max_pool2d(self.conv(inputs).relu(), 4).mean((2, 3)))

    torch.manual_seed(0)
    model = nn.Sequential(nn.MaxPool2d(2), Strided((3, 8, 8), 2, 4)).eval()
    assert gradcam(model, torch.randn(3, 3, 16, 16), LABELS).shape == (3, 16, 16)


def test_the_gradient_agrees_with_finite_differences() -> None:
    model, images = net()
    found = gradient(model, images, LABELS)
    for n, row, column in ((0, 3, 4), (2, 15, 0)):
        total = 0.0
        for channel in range(3):
            step = torch.zeros_like(images)
            step[n, channel, row, column] = 1e-6
            up, down = (model(images + s)[n, LABELS[n]] - model(images + s)[n].mean()
                        for s in (step, -step))  # fmt: skip
            total += abs((up - down).item()) / 2e-6
        assert float(found[n, row, column]) == pytest.approx(total, rel=1e-4)


def test_mass_inside_the_mask_and_log_odds() -> None:
    heat = torch.ones(2, 4, 4)
    heat[1] = 0
    mask = torch.zeros(2, 4, 4, dtype=torch.bool)
    mask[:, :2, :2] = True
    found = inside(heat, mask)
    assert found[0] == 0.25 and found[1].isnan()
    logits = torch.tensor([[1.0, 3.0, 0.5]])
    p = logits.softmax(1)[0, 1]
    torch.testing.assert_close(log_odds(logits, torch.tensor([1]))[0], (p / (1 - p)).log())


def test_a_sticker_on_a_slope_is_painted_over_with_the_slope() -> None:
    slope = torch.linspace(0, 1, 60).expand(3, 60, 60).clone()
    mask = torch.zeros(60, 60, dtype=torch.bool)
    mask[:12, 20:40] = True  # at the border
    patched = torch.where(mask, torch.tensor([0.0, 0.0, 9.0])[:, None, None], slope)
    painted = painted_over(patched, mask)
    assert (painted - slope)[:, mask].abs().max() < 0.05
    grown = F.max_pool2d(mask[None].float(), 3, 1, 1)[0] > 0
    torch.testing.assert_close(painted[:, ~grown], patched[:, ~grown])
    torch.testing.assert_close(painted_over(4 * patched - 2, mask), 4 * painted - 2)
    noisy = patched + 0.05 * torch.randn(3, 60, 60)
    assert (painted_over(noisy, mask) - slope)[:, mask].abs().max() < 0.15
    with pytest.raises(ValueError, match="covers the whole image"):
        painted_over(patched, torch.ones(60, 60, dtype=torch.bool))


def test_models_that_a_judge_cannot_read_are_named() -> None:
    with pytest.raises(ConfigError, match="ends in a linear layer with 2"):
        without_last_bias(nn.Linear(3, 5), 2)
    with pytest.raises(ConfigError, match="yields maps"):
        gradcam(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), torch.randn(1, 3, 2, 2), LABELS[:1])


def test_a_judge_leaves_the_model_as_it_was() -> None:
    model, images = net()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    cd_share(without_last_bias(model, 2), images, corner(), "asymmetric")
    gradcam(model, images, LABELS)
    gradient(model, images, LABELS)
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._backward_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters()) and not math.isnan(images.sum())
