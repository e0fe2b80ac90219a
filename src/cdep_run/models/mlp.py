"""A multi-layer perceptron, for tables and other inputs without an order of their own."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import Tensor, nn

from cdep_run.errors import ConfigError

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}


class MLP(nn.Module):
    """Linear layers with an activation and dropout in between; any input is flattened first.

    Args:
        input_shape: of one example.
        num_classes: number of logits.
        hidden: units of each hidden layer; none: a linear model.
        activation: one of `ACTIVATIONS`.
        dropout: share of each hidden layer's units that is dropped in training.

    Raises:
        ConfigError: a layer without units, another activation, a share that is none.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_classes: int,
        hidden: Sequence[int] = (64, 64),
        activation: str = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if any(units < 1 for units in hidden):
            raise ConfigError(f"model.hidden is {list(hidden)}; each layer needs 1 unit or more")
        if activation not in ACTIVATIONS:
            raise ConfigError(
                f"model.activation is {activation!r}; accepted: {', '.join(ACTIVATIONS)}"
            )
        if not 0 <= dropout < 1:
            raise ConfigError(f"model.dropout is {dropout}; accepted: 0 or more, below 1")
        layers: list[nn.Module] = [nn.Flatten()]
        width = prod(input_shape)
        for units in hidden:
            layers += [nn.Linear(width, units), ACTIVATIONS[activation]()]
            layers += [nn.Dropout(dropout)] if dropout else []
            width = units
        self.layers = nn.Sequential(*layers, nn.Linear(width, num_classes))

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits `[N, num_classes]` of inputs `[N, *input_shape]`."""
        return self.layers(inputs)
