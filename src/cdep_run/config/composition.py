"""Errors of the command line in one line each: what is wrong, where, and the nearest right name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cdep_run.config.compare import flatten
from cdep_run.config.schemas import Config, config_dir
from cdep_run.errors import ConfigError

OTHER_NAMES = {
    "lambda": "penalty.strength",
    "lam": "penalty.strength",
    "lambd": "penalty.strength",
    "learning_rate": "optimizer.lr",
    "experiment": "sweep",
    "gpu": "device",
}
"""What people call a setting elsewhere, and its name here."""

COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException)
"""What Hydra raises for a command line that makes no configuration."""


def refuse_unknown(config: Mapping[str, Any]) -> None:
    """Refuse top-level keys that no part of the program reads, such as `+lambda=3` adds.

    Raises:
        ConfigError: names the key and the nearest known one.
    """
    known = {field.name for field in fields(Config)}
    for key in config:
        if key not in known and key != "hydra":
            raise ConfigError(f"there is no setting {key}{_suggestion(key, _names(config))}")


def explain(error: Exception, words: Iterable[str]) -> str:
    """Return one line for an error of composition.

    Args:
        error: one of `COMPOSITION_ERRORS`.
        words: the command line.
    """
    text = str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [repr(error)]
    if isinstance(error, MissingConfigException) and error.options is not None:
        return _no_choice(str(error.missing_cfg_file), error.options)
    if isinstance(error, OverrideParseException):
        return (
            f"cannot read {error.override!r}; write name=value, and put quotes around values with "
            "special characters: 'name=\"a, b\"'"
        )
    if unknown := re.match(r"Could not override '([^']+)'", text):
        key = unknown[1]
        return f"there is no setting {key}{_suggestion(key, _names(_composed(words)))}"
    if merged := re.match(r"Error merging override (.+)", text):
        reason = str(error.__cause__ or error).splitlines()[0]
        return f"{merged[1]}: {reason[:1].lower()}{reason[1:]}"
    if several := re.match(r"Ambiguous value for argument '(.+)'", text):
        return f"{several[1]} names several values: add -m to run them all, or put quotes around it"
    return lines[0]


def _no_choice(file: str, options: Iterable[str]) -> str:
    """Say that a group has no such file, and which files it has."""
    group, _, name = file.rpartition("/")
    known = sorted(options)
    near = difflib.get_close_matches(name, known, 1)
    meant = f"; did you mean {group}={near[0]}?" if near else ""
    return f"{group}={name}: there is no such choice{meant} (choices: {', '.join(known)})"


def _composed(words: Iterable[str]) -> dict[str, Any]:
    """Return the configuration that the choices of the command line make, without its settings."""
    chosen = [w for w in words if re.fullmatch(r"(dataset|penalty|model|optimizer)=[\w./-]+", w)]
    running = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            config = compose("train", chosen)
        plain = OmegaConf.to_container(config)
    except COMPOSITION_ERRORS:
        return {}
    finally:
        GlobalHydra.instance().hydra = running
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _names(config: Mapping[str, Any]) -> list[str]:
    """Return the settings of a configuration by dotted name, groups and sweeps among them."""
    groups = [
        path.name for path in config_dir().iterdir() if path.is_dir() and path.name != "hydra"
    ]
    settings = OmegaConf.to_container(config) if OmegaConf.is_config(config) else dict(config)
    assert isinstance(settings, dict)
    flat = flatten({str(key): value for key, value in settings.items() if key != "hydra"})
    known = {field.name for field in fields(Config)}
    return sorted({*groups, *(name for name in flat if name.split(".")[0] in known)})


def _suggestion(key: str, names: list[str]) -> str:
    """Return "; did you mean …?" for the known name nearest to `key`, or nothing."""
    last = key.rpartition(".")[2]
    same = [name for name in names if name.rpartition(".")[2] == last]
    near = difflib.get_close_matches(key, names, 1, 0.6)
    parts = {name.rpartition(".")[2]: name for name in names}
    part = difflib.get_close_matches(last, parts, 1, 0.75)
    if last in OTHER_NAMES:
        best = OTHER_NAMES[last]
    elif same:
        best = min(same, key=len)
    elif near:
        best = near[0]
    elif part:
        best = parts[part[0]]
    else:
        return "; cdep-run --cfg job shows all settings"
    return f"; did you mean {'+' if best in ('sweep', 'table') else ''}{best}?"
