"""cdep-run: train classifiers under explanation penalties."""

__version__ = "0.1.0"
