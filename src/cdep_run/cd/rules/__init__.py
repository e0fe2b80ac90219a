"""The decomposition rules, one file per family; importing the package registers them all."""

from cdep_run.cd.rules import activations, linear, normalisation, pooling, products, shapes

__all__ = ["activations", "linear", "normalisation", "pooling", "products", "shapes"]
