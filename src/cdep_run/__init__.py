"""cdep-run: train classifiers under explanation penalties."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

    from cdep_run.results.load import LoadedRun

__version__ = "0.2.0"


def load(run: str | os.PathLike[str], plugins: Iterable[str] = ()) -> LoadedRun:
    """Load a finished run's model, preprocessing and class names, without its data.

    Args:
        run: its folder.
        plugins: packages of your own that its settings may name in `_target_`.

    Raises:
        CdepError: no finished run there, a damaged one, or one that names code of other packages.
    """
    from cdep_run.results.load import load_run  # late: it brings torch

    return load_run(run, plugins)
