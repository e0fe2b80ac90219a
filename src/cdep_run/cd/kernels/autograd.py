"""Calls of `torch.autograd.Function`s, cheap where nobody will ask for gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class _Unsaved:
    """Stands in for the context of a function whose backward pass nobody will ask for."""

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        """Nothing is kept."""

    def set_materialize_grads(self, value: bool) -> None:
        """There will be no gradients."""


def run(function: type[torch.autograd.Function], *args: Any) -> Any:
    """`function.apply(*args)`; without gradients its forward alone.

    The way through autograd takes as long as the work itself where the tensors are small.
    """
    return function.apply(*args) if torch.is_grad_enabled() else function.forward(_Unsaved(), *args)


def in_checkpoint() -> bool:
    """Whether a checkpoint, or the like, decides what becomes of tensors that autograd saves."""
    return torch._C._autograd._top_saved_tensors_default_hooks(False) is not None


@contextmanager
def as_when_deferred() -> Iterator[None]:
    """While it lasts, work is done as it would have been when it was put off.

    Gradients are on, and what autograd saves is not counted to a checkpoint that has begun since:
    when the checkpoint recomputes, the work is done already, and would be missing.
    """
    with torch.enable_grad():
        if not in_checkpoint():
            yield
            return
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):
            yield
