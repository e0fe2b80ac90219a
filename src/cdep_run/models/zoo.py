"""Models of torchvision, timm and Hugging Face transformers by their names there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from cdep_run.errors import ConfigError, hub_error
from cdep_run.models.rebuild import rebuilt_by
from cdep_run.models.weights import pretrained


class Images(nn.Module):
    """`model` for images of another size or with one channel where it wants three.

    Args:
        model: maps `[N, 3, H, W]` to logits.
        size: height and width to which images are interpolated; None: they stay as they are.
    """

    def __init__(self, model: nn.Module, size: int | None) -> None:
        super().__init__()
        self.model, self.size = model, size

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits `[N, num_classes]` of images `[N, 1 or 3, H, W]`."""
        x = inputs.expand(-1, 3, -1, -1) if inputs.shape[1] == 1 else inputs
        if self.size is not None:
            x = F.interpolate(x, (self.size, self.size), mode="bilinear")
        return getattr(output := self.model(x), "logits", output)


def torchvision_model(
    input_shape: tuple[int, ...],
    num_classes: int,
    name: str,
    weights: str | None = None,
    size: int | None = None,
) -> nn.Module:
    """A classifier of `torchvision.models`, with a fresh last layer for our classes.

    Args:
        input_shape: of one image, `(1 or 3, H, W)`.
        name: as in `torchvision.models.list_models()`, or "efficientnet_lite0".
        weights: "DEFAULT" (or another of torchvision's names) to download them, a file with a state
            dict, or None for random ones.
        size: height and width to which images are interpolated.

    Raises:
        ConfigError: there is no model of that name, or weights are absent or do not fit.
    """
    model = pretrained(name, weights)
    replace_head(model, num_classes)
    return rebuilt_by(Images(model, size), weights=None)


def replace_head(model: nn.Module, num_classes: int) -> None:
    """Give every layer that yields the 1000 ImageNet classes `num_classes` fresh outputs."""
    for parent in list(model.modules()):
        for name, layer in parent.named_children():
            if isinstance(layer, nn.Linear) and layer.out_features == 1000:
                fresh: nn.Module = nn.Linear(layer.in_features, num_classes, layer.bias is not None)
            elif isinstance(layer, nn.Conv2d) and layer.out_channels == 1000:
                fresh = nn.Conv2d(layer.in_channels, num_classes, layer.kernel_size)  # type: ignore[arg-type]
            else:
                continue
            setattr(parent, name, fresh)


def timm_model(
    input_shape: tuple[int, ...],
    num_classes: int,
    name: str,
    pretrained: bool = False,
    size: int | None = None,
) -> nn.Module:
    """A classifier of the library timm.

    Args:
        input_shape: of one image, `(1 or 3, H, W)`.
        name: as in `timm.list_models()`.
        pretrained: whether timm downloads its weights.
        size: height and width to which images are interpolated.

    Raises:
        ConfigError: timm is not installed, or has no model of that name.
    """
    try:
        import timm
    except ImportError as error:
        raise ConfigError("model=timm needs timm: pip install 'cdep-run[models]'") from error
    if not timm.is_model(name):
        similar = ", ".join(get_close_matches(name, timm.list_models(), 5)) or "no name like it"
        raise ConfigError(f"model.name is {name!r}; timm has {similar}: see timm.list_models()")
    model = timm.create_model(name, pretrained=pretrained, num_classes=num_classes)
    return rebuilt_by(Images(model, size), pretrained=False)


class Sentences(nn.Module):
    """A transformers model for sequence classification that returns logits and masks padding."""

    def __init__(self, model: nn.Module, padding: int) -> None:
        super().__init__()
        self.model, self.padding = model, padding

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits `[N, num_classes]` of token ids `[N, T]`."""
        return self.model(input_ids=inputs, attention_mask=inputs != self.padding).logits


def hf_model(
    input_shape: tuple[int, ...],
    num_classes: int,
    name: str,
    vocab_size: int | None = None,
    padding: int = 0,
    options: Mapping[str, Any] | None = None,
    architecture: Mapping[str, Any] | None = None,
) -> nn.Module:
    """A sequence classifier of Hugging Face transformers.

    Args:
        input_shape: of one example, `(T,)`; the model takes any length.
        name: a kind of model ("bert", "distilbert", "gpt2"), built with random weights; or a folder
            or a name on the hub, whose weights are loaded, with a fresh last layer for our classes.
        vocab_size: of the data: number of token ids; None, and for loaded weights: the model's own.
        padding: of the data: the id of the padding token.
        options: of the model's configuration, such as `{hidden_size: 64}`.
        architecture: the whole configuration, as a finished run keeps it; nothing else is asked
            then, and the weights are random.

    Raises:
        ConfigError: transformers is not installed, there is no such model, or it has fewer token
            ids than the data.
    """
    try:
        from transformers import AutoConfig, AutoModelForSequenceClassification
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES as KINDS
    except ImportError as error:
        raise ConfigError("model=hf needs transformers: pip install 'cdep-run[models]'") from error
    if architecture is not None:
        return Sentences(
            AutoModelForSequenceClassification.from_config(AutoConfig.for_model(**architecture)),
            padding,
        )
    if "trust_remote_code" in (options or {}):
        raise ConfigError("model.options must not name trust_remote_code: it runs others' code")
    settings = {"num_labels": num_classes, "pad_token_id": padding, **(options or {})}
    if name in KINDS:
        if vocab_size is not None:
            settings = {"vocab_size": vocab_size, **settings}
        try:
            config = AutoConfig.for_model(name, **settings)
            return _sentences(AutoModelForSequenceClassification.from_config(config), padding)
        except ValueError as error:
            message = str(error).splitlines()[0][:300]
            raise ConfigError(f"model.name is {name!r}: {message}") from error
    try:
        model = AutoModelForSequenceClassification.from_pretrained(
            name, ignore_mismatched_sizes=True, **settings
        )
    except (OSError, ValueError) as error:
        raise ConfigError(hub_error("model", name, error)) from error
    known = model.get_input_embeddings().num_embeddings
    if vocab_size is not None and vocab_size > known:
        raise ConfigError(
            f"model {name} knows {known} token ids, but the data have {vocab_size}; their tokens "
            f"are not its own: set dataset.tokenizer={name}"
        )
    return _sentences(model, padding)


def _sentences(model: Any, padding: int) -> Sentences:
    """A transformers model that a finished run builds again by its configuration."""
    architecture = json.loads(model.config.to_json_string(use_diff=False))
    return rebuilt_by(Sentences(model, padding), architecture=architecture)
