"""Which code settings may name: packages on a list of ours, and plugins that the user names.

A run's folder may come from a stranger, and its settings name what is to be built. They must not be
able to name just anything, such as `os.system`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from typing import Any

from cdep_run.errors import TrustError

OURS = ("cdep_run.datasets", "cdep_run.models", "cdep_run.penalties", "cdep_run.results.loggers")
"""Everything in these may be named."""

CLASSES = ("torch.nn", "torch.optim", "torchvision", "timm", "transformers")
"""Of these modules, optimisers and schedules of the learning rate may be named, no other functions:
some of them load pickles or run code from the network."""

FUNCTIONS = ("torchvision.models", "transformers.optimization")
"""Of these functions may be named, too."""

_plugins: set[str] = set()


def trust(plugins: Iterable[str]) -> None:
    """Let settings name code of these packages or modules from now on, in this process.

    Args:
        plugins: as the user names them on the command line or in configurations of their own; what
            a finished run's record says must never come here.
    """
    _plugins.update(plugins)


class _Trust(argparse.Action):
    """Trusts what follows the option."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        trust(values.split(","))


def add_plugins_option(parser: argparse.ArgumentParser) -> None:
    """Give a command that opens finished runs the option `--plugins`."""
    parser.add_argument(
        "--plugins",
        action=_Trust,
        default=argparse.SUPPRESS,
        metavar="NAME[,NAME]",
        help="packages of your own that the runs' settings may name; see docs/trust.md",
    )


def refuse_untrusted_name(name: str) -> None:
    """Refuse to import what no trusted package holds.

    Raises:
        TrustError: names it, and what to say if it is trusted.
    """
    if not _within(name, (*OURS, *CLASSES, *FUNCTIONS, *_plugins)):
        module = name.rpartition(".")[0] or name
        raise TrustError(
            f"_target_: {name} is in none of the packages that settings may name "
            f"({', '.join((*OURS, *CLASSES))}). If you trust it, say so: plugins=[{module}], or "
            f"--plugins {module} where finished runs are opened"
        )


def refuse_untrusted_object(name: str, made: Any) -> None:
    """Refuse what a trusted module merely imported, and functions that are not meant to be named.

    Raises:
        TrustError: names it.
    """
    home = f"{getattr(made, '__module__', None)}."
    if _within(home, (*OURS, *FUNCTIONS, *_plugins)):
        return
    if not (_within(home, CLASSES) and isinstance(made, type) and issubclass(made, _bases())):
        raise TrustError(
            f"_target_: {name} is neither a module, an optimiser nor a schedule of the learning "
            "rate; other functions and classes of that package may not be named in settings"
        )


def _within(name: str, packages: Iterable[str]) -> bool:
    return any(name.startswith(f"{package}.") for package in packages)


def _bases() -> tuple[type, ...]:
    """Return the classes of torch that may be named; none where torch is not even imported."""
    torch = sys.modules.get("torch")
    if torch is None:
        return ()
    from torch.optim.lr_scheduler import LRScheduler

    return torch.nn.Module, torch.optim.Optimizer, LRScheduler
