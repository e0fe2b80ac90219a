"""Other people's models: a quick choice of those in docs/coverage.md, and training them by name."""

from __future__ import annotations

import warnings

import pytest
import torch
import torchvision
from torch import Tensor, nn

from cdep_run.batch import Batch, Groups
from cdep_run.errors import ConfigError
from cdep_run.models.zoo import hf_model, timm_model, torchvision_model
from cdep_run.penalties.cdep import CDEP
from identities import measure, without_zeros
from running import run

TORCHVISION = {
    "alexnet": 64,
    "convnext_tiny": 64,
    "densenet121": 64,
    "efficientnet_b0": 64,
    "efficientnet_v2_s": 64,
    "googlenet": 64,
    "inception_v3": 96,
    "mnasnet0_5": 64,
    "mobilenet_v2": 64,
    "mobilenet_v3_small": 64,
    "regnet_x_400mf": 64,
    "regnet_y_400mf": 64,
    "resnet18": 64,
    "resnext50_32x4d": 64,
    "shufflenet_v2_x0_5": 64,
    "squeezenet1_1": 64,
    "swin_t": 224,
    "vit_b_32": 224,
}
TIMM = {
    "test_vit": 160,
    "test_convnext": 96,
    "test_nfnet": 96,
    "test_coatnet": 160,
    "resnest14d": 64,
    "skresnet18": 64,
    "xcit_nano_12_p8_224": 224,
    "gmlp_ti16_224": 224,
    "coat_tiny": 224,
    "mobilevit_xxs": 128,
    "efficientformer_l1": 224,
    "levit_128s": 224,
    "pvt_v2_b0": 64,
}


def image_errors(model: nn.Module, size: int) -> list[str]:
    torch.manual_seed(1)
    x, mask = torch.randn(1, 3, size, size), torch.zeros(1, 1, size, size, dtype=torch.bool)
    mask[..., : size // 3, : size // 3] = True
    return measure(without_zeros(model).eval(), x, mask).failures()


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_models_are_decomposed(name):
    torch.manual_seed(0)
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model = torchvision.models.get_model(name, weights=None, num_classes=10, **options)
    assert not image_errors(model, TORCHVISION[name])


@pytest.mark.parametrize("name", TIMM)
def test_timm_models_are_decomposed(name):
    timm = pytest.importorskip("timm", reason="needs timm: pip install 'cdep-run[models]'")
    torch.manual_seed(0)
    assert not image_errors(timm.create_model(name, num_classes=10), TIMM[name])


SMALL = {
    "bert": {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64},
    "distilbert": {"dim": 32, "n_layers": 2, "hidden_dim": 64},
    "gpt2": {"n_embd": 32, "n_layer": 2},
}
HEADS = {"bert": "num_attention_heads", "distilbert": "n_heads", "gpt2": "n_head"}


def text_model(kind: str) -> nn.Module:
    pytest.importorskip("transformers", reason="needs transformers: pip install 'cdep-run[models]'")
    torch.manual_seed(0)
    options = SMALL[kind] | {HEADS[kind]: 4, "vocab_size": 50}
    return hf_model((9,), 3, kind, options=options)


def sentences() -> tuple[Tensor, Tensor]:
    ids = torch.randint(1, 50, (4, 9), generator=torch.Generator().manual_seed(1))
    ids[1, 6:] = 0
    mask = torch.zeros(1, 1, 9, dtype=torch.bool)
    mask[..., 2:4] = True
    return ids, mask


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", SMALL)
def test_text_models_are_decomposed(kind, attention):
    model = text_model(kind).eval()
    model.model.set_attn_implementation(attention)
    assert not measure(without_zeros(model), *sentences()).failures()


@pytest.mark.parametrize("kind", SMALL)
def test_text_models_take_a_step_under_cdep(kind):
    model, (ids, mask) = text_model(kind).train(), sentences()
    logits, value = CDEP()(model, Batch(ids, torch.tensor([0, 1, 2, 0]), Groups(mask)))
    (nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 0])) + value).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("penalty", ["none", "cdep", "rrr", "eg"])
@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_models_chosen_by_name_are_trained_under_every_penalty(tmp_path, library, penalty):
    if library == "timm":
        pytest.importorskip("timm", reason="needs timm: pip install 'cdep-run[models]'")
    name = {"torchvision": "shufflenet_v2_x0_5", "timm": "resnet10t"}[library]
    result = run(
        tmp_path,
        f"model={library}",
        f"model.name={name}",
        "model.size=32",
        f"penalty={penalty}",
        "dataset.count=20",
        "training.epochs=1",
    )
    assert 0 <= result["metrics"]["test"]["accuracy"] <= 1


def test_unknown_names_are_refused_with_what_there_is():
    with pytest.raises(ConfigError, match=r"resnet19.*resnet18"):
        torchvision_model((3, 32, 32), 2, "resnet19")
    pytest.importorskip("timm", reason="needs timm")
    with pytest.raises(ConfigError, match=r"resnet10.*resnet10t"):
        timm_model((3, 32, 32), 2, "resnet10")


@pytest.mark.parametrize("name", ["alexnet", "squeezenet1_0", "densenet121", "vit_b_32"])
def test_the_head_has_as_many_outputs_as_there_are_classes(name):
    with warnings.catch_warnings(), torch.device("meta"):
        model = torchvision_model((1, 28, 28), 7, name, size=224)
        assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 7)
