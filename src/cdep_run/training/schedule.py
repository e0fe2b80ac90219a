"""What follows an optimiser's step: the learning rate's schedule and the weights' average."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import (
    LinearLR,
    LRScheduler,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
)
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cdep_run.config.schemas import Training
from cdep_run.errors import ConfigError
from cdep_run.training.build import build, target


def build_scheduler(
    node: dict[str, Any], optimizer: torch.optim.Optimizer, steps: int, training: Training
) -> LRScheduler | None:
    """The schedule of the learning rate, which moves on after each step; None: the rate stays.

    Args:
        node: `_target_` and arguments of a class in `torch.optim.lr_scheduler`, `durations` among
            them; see `configs/scheduler`.
        steps: of an epoch.
        training: its `epochs`, `warmup` and `warmup_start`.

    Raises:
        ConfigError: the class refuses a value, waits for a metric, or warms up by itself.
    """
    made, first = node["_target_"] and target(node), round(training.warmup * steps)
    if made is ReduceLROnPlateau:
        raise ConfigError(
            "scheduler ReduceLROnPlateau waits for a metric, and schedules move on after each step "
            "without one; choose another, such as scheduler=cosine"
        )
    if first and made is OneCycleLR:
        raise ConfigError(
            "scheduler OneCycleLR warms up by itself: set training.warmup=0 and scheduler.pct_start"
        )
    if not 0 <= first < steps * training.epochs:
        raise ConfigError(
            f"training.warmup is {training.warmup} epochs; accepted: 0 or more, and fewer than "
            f"training.epochs={training.epochs}"
        )
    try:
        main = _main(node, optimizer, steps, steps * training.epochs - first) if made else None
        if not first:
            return main
        rise = LinearLR(optimizer, training.warmup_start, total_iters=first)
        return SequentialLR(optimizer, [rise, main], milestones=[first]) if main else rise
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise ConfigError(f"scheduler {node['_target_']}: {error}") from error


def _main(
    node: dict[str, Any], optimizer: torch.optim.Optimizer, steps: int, rest: int
) -> LRScheduler:
    """The schedule after the warm-up, `rest` steps long, its durations in steps."""
    arguments = {name: value for name, value in node.items() if name != "durations"}
    for name in node.get("durations", ()):
        arguments[name] = _in_steps(node[name], steps, rest)
    return build(arguments, optimizer=optimizer)


def _in_steps(value: Any, steps: int, rest: int) -> Any:
    """A duration in epochs, or a list of them, in steps; None: all that are left."""
    if value is None:
        return rest
    if isinstance(value, list):
        return [round(one * steps) for one in value]
    return round(value * steps)


def build_average(model: nn.Module, training: Training) -> AveragedModel | None:
    """A copy of the model that holds the average of its weights and buffers; None: no averaging.

    Args:
        model: whose weights are averaged over the steps.
        training: its `average`: "ema", the average so far counts `average_decay` in each step;
            "mean", all steps count the same.
    """
    if training.average is None:
        return None
    ema = training.average == "ema"
    average = get_ema_multi_avg_fn(training.average_decay) if ema else None
    return AveragedModel(model, multi_avg_fn=average, use_buffers=True).requires_grad_(False)


def tested_weights(state: dict[str, Any], restore_best: bool) -> dict[str, Tensor]:
    """The weights that a finished run was tested with: of the best epoch, averaged, or the last.

    Args:
        state: of its last checkpoint.
        restore_best: as in its settings.
    """
    if restore_best and state["best"] is not None:
        return state["best"]
    average = state.get("average")
    if average is None or not average["n_averaged"]:
        return state["model"]
    prefix = "module."
    return {k.removeprefix(prefix): v for k, v in average.items() if k.startswith(prefix)}
