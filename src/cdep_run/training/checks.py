"""Checks of a run before its first step: do model, penalty and data fit together?"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

from cdep_run.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from cdep_run.datasets.base import Bunch


def check_model(config: dict[str, Any], bunch: Bunch, model: nn.Module) -> None:
    """Refuse a model that cannot read the data, before a step is taken.

    Raises:
        ConfigError: its forward pass fails on a few examples, or does not return logits `[N, C]`.
    """
    import torch

    _check_standardising(config, bunch, model)
    split = bunch.splits["train"]
    count = min(2, len(split))
    inputs = split.batch(torch.arange(count, device=split.labels.device)).inputs
    what = f"model {config['model']['_target_']}, given inputs {list(inputs.shape)} of {bunch.name}"
    training = model.training
    try:
        with torch.no_grad():
            logits = model.eval()(inputs)
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        message = str(error).partition("\n")[0]
        raise ConfigError(f"{what}, fails: {type(error).__name__}: {message}") from error
    finally:
        model.train(training)
    if not isinstance(logits, torch.Tensor) or logits.shape != (count, bunch.num_classes):
        shape = list(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ConfigError(f"{what}, returns {shape}; it must return [{count}, {bunch.num_classes}]")


def _check_standardising(config: dict[str, Any], bunch: Bunch, model: nn.Module) -> None:
    """Refuse images that are standardised before a frozen trunk, which does so by itself."""
    from cdep_run.models.frozen import FrozenTrunk

    how = bunch.preprocessing or {}
    values = [*how.get("mean", []), *how.get("std", [])]
    if how.get("kind") == "images" and isinstance(model, FrozenTrunk) and {*values} != {0.5}:
        raise ConfigError(
            f"model {config['model']['_target_']} standardises images by itself and wants them in "
            "[-1, 1]: leave out dataset.mean and dataset.std, which are 0.5 by default"
        )


def check_data(config: dict[str, Any], bunch: Bunch, penalty: Any) -> None:
    """Refuse settings that do not fit the data, before a step is taken.

    Raises:
        ConfigError: batch larger than the data, a monitor that no split has, a compiled model
            under a penalty, a penalty paid in no step of an epoch, no groups, or a mask of the
            wrong shape.
        DataError: a projection that is no linear map of the inputs, or of nothing or all of them.
    """
    split, wanted = bunch.splits["train"], config["training"]["batch_size"]
    if wanted > len(split):
        raise ConfigError(
            f"training.batch_size is {wanted}, but {bunch.name} has {len(split)} training examples"
        )
    check_monitor(config["training"]["monitor"], bunch)
    if config["penalty"]["strength"] == 0:
        return
    steps, every = math.ceil(len(split) / wanted), config["penalty"].get("every", 1)
    if every > steps:
        raise ConfigError(
            f"penalty.every is {every}, but an epoch of {bunch.name} has {steps} steps, and each "
            "epoch should pay the penalty; choose fewer, or a smaller training.batch_size"
        )
    if not penalty.needs_groups:
        return
    if config["training"]["compile"] is not None:
        raise ConfigError(
            f"training.compile is {config['training']['compile']}, but a compiled model hides its "
            f"layers, and has no second derivatives: penalty {config['penalty']['name']} cannot "
            "look into it; set training.compile=null"
        )
    import torch

    batch = split.batch(torch.zeros(1, dtype=torch.int64, device=split.labels.device))
    if batch.groups is None:
        raise ConfigError(
            f"penalty {config['penalty']['name']} needs to know which features must not matter, "
            f"and {bunch.name} does not say; choose penalty=none or another data set"
        )
    mask, inputs = batch.groups.mask, batch.inputs
    features = tuple(mask.shape[2:])
    fits = len(features) == inputs.dim() - 1 and all(
        size in (1, wanted) for size, wanted in zip(features, inputs.shape[1:], strict=True)
    )
    if mask.dtype != torch.bool or not fits:
        raise ConfigError(
            f"{bunch.name}: the mask of one example is {mask.dtype} {list(mask.shape)}, its inputs "
            f"are {list(inputs.shape)}; a mask is bool [1, groups, *sizes that broadcast to the "
            "inputs]"
        )
    if batch.groups.projection is not None:
        from cdep_run.datasets.projections import refuse_unfit

        width = () if bunch.vectors is None else bunch.vectors.shape[1:]
        shape = inputs.shape[1:] if inputs.is_floating_point() else (*inputs.shape[1:], *width)
        refuse_unfit(batch.groups.projection, shape, everywhere=bool(mask.all()))


EXAMPLES = 8
"""How many examples the condition of a penalty is measured on: batch norm needs several."""


def warn_if_noise(config: dict[str, Any], bunch: Bunch, model: nn.Module, penalty: Any) -> None:
    """Warn before training where rounding errors decide on the gradient of a CD penalty."""
    rules = getattr(penalty, "rules", None)
    if config["penalty"]["strength"] == 0 or rules is None:
        return
    import torch

    from cdep_run.cd.condition import TRUSTED, gradient_condition

    split = bunch.splits["train"]
    count = min(EXAMPLES, len(split))
    batch = split.batch(torch.arange(count, device=split.labels.device))
    cosine = gradient_condition(lambda: penalty(model, batch)[1], model)
    if not cosine >= TRUSTED:
        logging.getLogger(__name__).warning(
            "penalty.rules.relu=%s is ill-conditioned on model %s: a change of its weights by "
            "rounding errors turns the penalty's gradient (cosine %.2f, trusted from %.1f on), and "
            "training follows noise. penalty.rules.relu=last has no such trouble",
            rules["relu"], config["model"]["_target_"], cosine, TRUSTED,
        )  # fmt: skip


def check_monitor(monitor: str, bunch: Bunch) -> None:
    """Refuse to watch a metric that no epoch yields.

    Raises:
        ConfigError: says which splits and metrics there are.
    """
    from cdep_run.datasets.counterfactual import WORST
    from cdep_run.metrics import SCORES, SUBSET_SCORES
    from cdep_run.training.loop import SUMMED

    split, _, metric = monitor.partition("/")
    worst = bunch.worst_of is not None and split == WORST
    watched = bunch.splits[bunch.worst_of[0]] if worst else bunch.splits.get(split)  # type: ignore[index]
    subsets = SUBSET_SCORES if watched is not None and watched.present is not None else ()
    known = SUMMED if split == "train" else (*SCORES, *subsets)
    if watched is None or metric not in known:
        raise ConfigError(
            f"training.monitor is {monitor}; accepted: SPLIT/METRIC, with a split of {bunch.name} "
            f"({', '.join(bunch.splits)}) and one of {', '.join((*SCORES, *subsets))} (of train: "
            f"{', '.join(SUMMED)})"
        )
