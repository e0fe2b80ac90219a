"""The decomposition rules, one file per family; importing the package registers them all."""

from cdep_run.cd.rules import (
    activations,
    attention,
    ids,
    linear,
    normalisation,
    pooling,
    products,
    recurrent,
    selection,
    shapes,
)

__all__ = [
    "activations",
    "attention",
    "ids",
    "linear",
    "normalisation",
    "pooling",
    "products",
    "recurrent",
    "selection",
    "shapes",
]
