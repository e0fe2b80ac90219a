"""From a run's settings back to the command that runs it again."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cdep_run.config import FREE_ON_RESUME, config_dir, flatten, register_schemas

DEFAULTS_ONLY = ("dataset.penalties.", "dataset.strengths.")
"""A data set's advice to penalties: what a penalty made of it stands under `penalty`."""


def deciding(config: dict[str, Any]) -> dict[str, Any]:
    """The settings, by dotted name, that decide what a run finds."""
    return {
        name: value
        for name, value in flatten(config).items()
        if not FREE_ON_RESUME.fullmatch(name) and not name.startswith(DEFAULTS_ONLY)
    }


def overrides(config: dict[str, Any]) -> tuple[dict[str, str], list[str]]:
    """What a command must say to compose these settings again.

    Args:
        config: the resolved settings of a run, as in its record.

    Returns:
        Overrides by name, choices first; `seed` and `penalty.strength` are among them only where
        they are not the default. Second: settings that this version does not know.
    """
    dataset, penalty = config["dataset"]["name"], config["penalty"]["name"]
    said = {"dataset": dataset, "penalty": penalty}
    standard = defaults(tuple(f"{key}={value}" for key, value in said.items()))
    if standard is None:
        return said, []
    for group in ("model", "optimizer"):
        target = config[group]["_target_"]
        if standard.get(f"{group}._target_") != target and (found := choice(group, target)):
            said[group] = found
    standard = defaults(tuple(f"{key}={value}" for key, value in said.items())) or standard
    wanted = deciding(config)
    unknown = [name for name in wanted if name not in standard]
    for name, value in wanted.items():
        if name in standard and value != standard[name]:
            said[name] = literal(value)
    return said, unknown


def command(said: Mapping[str, str], **grid: Iterable[str]) -> str:
    """`cdep-run` with these overrides; values of `grid` of which there are several make a sweep."""
    values = dict(said) | {key: ",".join(value) for key, value in grid.items()}
    words = [shlex.quote(f"{key}={value}") for key, value in values.items()]
    several = any("," in ",".join(value) for value in grid.values())
    return " ".join(["cdep-run", *(["-m"] if several else []), *words])


def literal(value: Any) -> str:
    """A value as Hydra's command line reads it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    if isinstance(value, list):
        return "[" + ",".join(map(literal, value)) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{literal(v)}" for key, v in value.items()) + "}"
    text = str(value)
    plain = re.fullmatch(r"[\w./:+-]+", text) if isinstance(value, str) else True
    return text if plain else "'" + text.replace("'", "\\'") + "'"


@cache
def defaults(said: tuple[str, ...]) -> dict[str, Any] | None:
    """`deciding` settings that these choices compose to; None if they are not among ours."""
    register_schemas()
    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            config = compose("train", list(said))
        plain = OmegaConf.to_container(config, resolve=True, enum_to_str=True)
    except (HydraException, OmegaConfBaseException):
        return None
    assert isinstance(plain, dict)
    return deciding({str(key): value for key, value in plain.items()})


@cache
def choice(group: str, target: str) -> str | None:
    """The name of the file in `configs/<group>/` that builds `target`."""
    for file in sorted((config_dir() / group).glob("*.yaml")):
        if OmegaConf.select(OmegaConf.load(file), "_target_") == target:
            return file.stem
    return None
