"""Build objects from the configuration: data set, model, penalty, optimiser."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from contextlib import suppress
from inspect import signature
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from cdep_run.config.trust import refuse_untrusted_name, refuse_untrusted_object, trust
from cdep_run.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from cdep_run.datasets.base import Bunch


def plain(config: DictConfig) -> dict[str, Any]:
    """Return a configuration that the user composed as dicts, lists, strings and numbers.

    Settings may name code of the packages in its `plugins` from now on, see `config.trust`.
    """
    filled: Any = OmegaConf.to_container(
        config, resolve=True, throw_on_missing=True, enum_to_str=True
    )
    trust(filled.get("plugins", ()))
    return filled


def build(node: dict[str, Any], **extra: Any) -> Any:
    """Call what `_target_` names with the node's other values as keyword arguments.

    Raises:
        ConfigError: it cannot be imported, or has no such arguments.
    """
    not_arguments = ("_target_", "name", "strength", "every", "penalties")
    arguments = {key: value for key, value in node.items() if key not in not_arguments} | extra
    made = target(node)
    with suppress(ValueError):  # of a function in C the arguments are not known
        try:
            signature(made).bind(**arguments)
        except TypeError as error:
            raise ConfigError(f"{node['_target_']} cannot be called so: {error}") from error
    return made(**arguments)


def build_optimizer(node: dict[str, Any], weights: Sequence[torch.Tensor]) -> torch.optim.Optimizer:
    """The optimiser of `weights`.

    Raises:
        ConfigError: it refuses a value, such as a negative weight decay.
    """
    try:
        return build(node, params=weights)
    except ValueError as error:
        raise ConfigError(f"optimizer {node['_target_']}: {error}") from error


def target(node: dict[str, Any]) -> Any:
    """Import what `_target_` names.

    Raises:
        TrustError: it is in none of the packages that settings may name, see `config.trust`.
        ConfigError: it cannot be imported.
    """
    name = node["_target_"]
    refuse_untrusted_name(name)
    module, _, attribute = name.rpartition(".")
    try:
        made = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"_target_: {name} cannot be imported ({error}); a module of your own must "
            "be installed or lie on PYTHONPATH"
        ) from error
    refuse_untrusted_object(name, made)
    return made


def build_model(config: dict[str, Any], bunch: Bunch) -> nn.Module:
    """The model for the data's inputs and classes; its initial weights draw from torch's seed."""
    shape, classes = bunch.input_shape, bunch.num_classes
    name = {"name": config["model"]["name"]} if "name" in config["model"] else {}
    text = facts_of_text(config["model"], bunch)
    return build(config["model"], input_shape=shape, num_classes=classes, **name, **text)


def place(model: nn.Module, device: torch.device, channels_last: bool) -> nn.Module:
    """Return the model on `device`, with convolution weights in the layout that is asked for."""
    import torch

    model = model.to(device)
    return model.to(memory_format=torch.channels_last) if channels_last else model


def facts_of_text(node: dict[str, Any], bunch: Bunch) -> dict[str, Any]:
    """What a model for text asks for by the names of its arguments, where the settings do not say.

    Raises:
        ConfigError: the model wants word vectors, or words, and the data have none.
    """
    parameters = signature(target(node)).parameters
    words = None if bunch.vocabulary is None else len(bunch.vocabulary)
    if (
        "vectors" in parameters
        and bunch.vectors is None
        and (words is None or "vocab_size" not in parameters)
    ):
        raise ConfigError(
            f"model {node['_target_']} is for text; {bunch.name} has no word vectors (in a data "
            "set of text, dataset.vectors names a file of them)"
        )
    facts = {"vectors": bunch.vectors, "vocab_size": words, "padding": bunch.padding}
    of_text = bunch.vocabulary is not None or bunch.vectors is not None
    asked = facts.keys() & parameters.keys() - node.keys()
    return {name: facts[name] for name in sorted(asked)} if of_text else {}


def with_cached_features(
    config: dict[str, Any], bunch: Bunch, model: nn.Module, penalty: Any
) -> Bunch:
    """The data as the loop takes it: features where a frozen trunk's are kept, else as it is.

    Raises:
        CdepError: inputs that cannot be read, a full disk.
    """
    from cdep_run.models.frozen import FrozenTrunk
    from cdep_run.penalties.base import works_on_features

    off = config["penalty"]["strength"] == 0
    if (
        bunch.cache_dir is not None
        and isinstance(model, FrozenTrunk)
        and model.frozen
        and (off or works_on_features(penalty))
    ):
        from cdep_run.features.cache import from_cache

        rules = None if off else getattr(penalty, "rules", None)
        images = not off and rules is None and penalty.needs_groups
        return from_cache(bunch, model, rules, config["precision"], images)
    for split in bunch.splits.values():
        split.check()
    return bunch
