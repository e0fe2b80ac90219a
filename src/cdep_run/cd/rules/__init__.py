"""The decomposition rules, one file per family; importing the package registers them all."""

from cdep_run.cd.rules import (
    activations,
    attention,
    linear,
    normalisation,
    pooling,
    products,
    recurrent,
    selection,
    shapes,
    token_ids,
)

__all__ = [
    "activations",
    "attention",
    "linear",
    "normalisation",
    "pooling",
    "products",
    "recurrent",
    "selection",
    "shapes",
    "token_ids",
]
