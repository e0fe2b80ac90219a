"""Which settings decide a result, and which may change when a run is resumed."""

from __future__ import annotations

import re
from typing import Any

from cdep_run.config.older import up_to_date
from cdep_run.errors import ConfigError

FREE_ON_RESUME = re.compile(
    r"resume|plugins|data_dir|device|threads|loggers(\..*)?|dataset\.(data_dir|cache_dir|download)"
    r"|training\.(evaluation_batch_size|check_every|checkpoint_seconds|tensorboard|resamples)"
)
"""Settings that may change when a run goes on: they do not change what is trained."""


def refuse_changes(old: dict[str, Any], new: dict[str, Any]) -> None:
    """Going on with a run under other settings would give a run that no configuration describes.

    Raises:
        ConfigError: names each differing key with its old and its new value.
    """
    before, after = flatten(up_to_date(old)), flatten(new)
    differing = [
        f"{key}: {before.get(key)} → {after.get(key)}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not FREE_ON_RESUME.fullmatch(key)
    ]
    if differing:
        raise ConfigError(
            f"resume=true, but the run was started with other settings ({'; '.join(differing)}); "
            "repeat them, or choose another hydra.run.dir"
        )


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one dict with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        inner = isinstance(value, dict)
        flat |= flatten(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return flat


def deciding_settings(config: dict[str, Any]) -> dict[str, Any]:
    """The settings by dotted name that decide what a run finds, its seed among them.

    Left out are those that may change on resume and a data set's advice to penalties, which shows
    in the penalty itself. At λ = 0 no penalty is asked: such a run is one of penalty `none`.
    """
    advice = ("dataset.penalties.", "dataset.strengths.")
    off = config["penalty"]["name"] == "none" or config["penalty"]["strength"] == 0
    kept = {
        name: float(value) if isinstance(value, int) and not isinstance(value, bool) else value
        for name, value in flatten(config).items()
        if not FREE_ON_RESUME.fullmatch(name)
        and not name.startswith(advice)
        and not (off and name.startswith("penalty."))
    }
    return kept | {"penalty.name": "none", "penalty.strength": 0.0} if off else kept
