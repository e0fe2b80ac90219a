"""Inputs with a feature group changed, for penalties that compare outputs with and without it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cdep_run.attribution import statistics_at_rest
from cdep_run.batch import Groups


def changed(groups: Groups, inputs: Tensor, change: str) -> tuple[Tensor, ...]:
    """Inputs with one group changed: x − P(x − x′) for each group's projection P.

    Args:
        groups: G groups of the batch.
        inputs: x, `[N, *features]` float.
        change: "exchange": x′ is a random other order of the batch; "remove": x′ = 0.

    Returns:
        G tensors `[N, *features]`.
    """
    difference = inputs
    if change == "exchange":
        difference = inputs - other_examples(inputs)
    return tuple(inputs - part for part in groups.project(difference).unbind(1))


def other_examples(inputs: Tensor) -> Tensor:
    """Return the inputs `[N, *features]` in a random order, the same one on every device."""
    return inputs[torch.randperm(len(inputs)).to(inputs.device, non_blocking=True)]


def outputs_alike(
    model: nn.Module,
    function: Callable[[Tensor], Any],
    inputs: Tensor,
    others: tuple[Tensor, ...],
) -> tuple[Any, list[Any]]:
    """Run `function` on the inputs and on each of the others, dropping the same units in dropout.

    Args:
        model: what `function` runs; its batch-norm statistics move once, by the inputs.

    Returns:
        The output for `inputs`, and a list of those for `others`.
    """
    devices = [inputs.device] if inputs.is_cuda else []
    state, cuda_states = torch.get_rng_state(), [torch.cuda.get_rng_state(d) for d in devices]
    first, rest = function(inputs), []
    for other in others:
        with torch.random.fork_rng(devices), statistics_at_rest(model):
            torch.set_rng_state(state)
            for device, cuda_state in zip(devices, cuda_states, strict=True):
                torch.cuda.set_rng_state(cuda_state, device)
            rest.append(function(other))
    return first, rest
