"""Calls of `torch.autograd.Function`s, cheap where nobody will ask for gradients."""

from __future__ import annotations

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
