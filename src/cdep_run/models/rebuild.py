"""How a finished run builds its model again: without data, network or pretrained weights."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


def rebuilt_by(model: M, **arguments: Any) -> M:
    """Note on a model the arguments that replace those of its settings when it is built again.

    A finished run keeps all weights, so pretrained ones need not be fetched a second time.

    Args:
        arguments: as JSON holds them.
    """
    model.rebuild_arguments = arguments  # type: ignore[assignment]
    return model
