"""Figures: heat maps follow the gradient, and a gallery is written."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cdep_run.evidence.explainers import sensitivity
from cdep_run.evidence.plots import gallery
from tiny_data import TinyNet, tiny


def test_sensitivity_of_a_linear_model_follows_its_weights():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0, 2.0, 0.0, 4.0], [0.0, 0.0, 0.0, 0.0]]))
    heat = sensitivity(model, torch.randn(3, 1, 2, 2), torch.tensor([0, 1, 0]))
    torch.testing.assert_close(heat, torch.tensor([[0.25, 0.5], [0.0, 1.0]]).expand(3, 2, 2))


def test_a_gallery_shows_every_model(tmp_path):
    bunch = tiny(seed=0, count=12)
    model = TinyNet(bunch.input_shape, bunch.num_classes, hidden=4).eval()
    gallery({"first": model, "second": model}, bunch, "test", 4, tmp_path / "new" / "figure.svg")
    drawn = (tmp_path / "new" / "figure.svg").read_text()
    assert drawn.startswith("<?xml") and drawn.count("<image") == 4 * (2 + 2)


def test_a_split_without_groups_is_refused(tmp_path):
    bunch = tiny(seed=0, count=12)
    bunch.splits["test"].annotation = None
    with pytest.raises(ValueError, match="no groups"):
        gallery({}, bunch, "test", 1, tmp_path / "figure.png")
