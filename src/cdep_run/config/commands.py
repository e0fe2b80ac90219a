"""From a run's settings back to the command that runs it again, and to what to call them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cdep_run.config.compare import deciding_settings
from cdep_run.config.schemas import config_dir, register_schemas

TITLES = {
    "none": "none",
    "cdep": "CDEP",
    "cdep_published": "CDEP as published",
    "rrr": "RRR",
    "rrr_published": "RRR as published",
    "eg": "EG",
    "eg_published": "EG as published",
    "ig": "integrated gradients",
    "gradcam": "Grad-CAM",
    "counterexamples": "counterexamples",
    "consistency": "consistency",
    "actdiff": "ActDiff",
    "rbr": "RBR",
    "ibp": "IBP-Ex",
}
"""The penalties as papers write them, in the order of tables; others bear their own name."""


def overrides(config: dict[str, Any]) -> tuple[dict[str, str], list[str]]:
    """What a command must say to compose these settings again.

    Args:
        config: the resolved settings of a run, as in its record.

    Returns:
        Overrides by name, choices first; `seed` and `penalty.strength` are among them only where
        they are not the default. Settings that no configuration here has are added with `+`, and
        are the second thing returned.
    """
    wanted = deciding_settings(config)
    said = {"dataset": wanted["dataset.name"], "penalty": wanted["penalty.name"]}
    standard = defaults(*(f"{key}={value}" for key, value in said.items()))
    if standard is None:
        return said, []
    for group in ("model", "optimizer"):
        kind, usual = (
            (values.get(f"{group}._target_"), values.get(f"{group}.name"))
            for values in (wanted, standard)
        )
        if kind[0] is None or kind == usual:
            continue
        found = choice(group, *kind) or (kind[0] != usual[0] and choice(group, kind[0]))
        if found:
            said[group] = found
    standard = defaults(*(f"{key}={value}" for key, value in said.items())) or standard
    unknown = [name for name in wanted if name not in standard]
    for name, value in wanted.items():
        if name not in standard:
            said[f"+{name}"] = literal(value)
        elif value != standard[name]:
            said[name] = literal(value)
    return said, unknown


def command(said: Mapping[str, str], **grid: Iterable[str]) -> str:
    """`cdep-run` with these overrides; values of `grid` of which there are several make a sweep."""
    values = dict(said) | {key: ",".join(value) for key, value in grid.items()}
    words = [shlex.quote(f"{key}={value}") for key, value in values.items()]
    several = any("," in ",".join(value) for value in grid.values())
    return " ".join(["cdep-run", *(["-m"] if several else []), *words])


def command_of(
    said: Mapping[str, str], strength: float | None, repeat: Mapping[str, Iterable[Any]]
) -> str:
    """The command that trains these runs; λ is left out where it is None or nothing is penalised.

    Args:
        said: as `overrides` returns it.
        repeat: values of what only repeats a run, such as {"seed": [0, 1]}.
    """
    axes = {key: [literal(value) for value in values] for key, values in repeat.items()}
    if strength is not None and said.get("penalty") != "none":
        axes = {"penalty.strength": [literal(strength)]} | axes
    return command({k: v for k, v in said.items() if k not in axes}, **axes)


def label(said: Mapping[str, str], config: dict[str, Any]) -> str:
    """What to call a setting: the penalty, CDEP's form and rule, and all that was overridden.

    Args:
        said: the first of what `overrides` returns, or a part of it.
        config: the settings themselves.
    """
    penalty = config["penalty"] if said["penalty"] != "none" else {}
    words = [TITLES.get(said["penalty"], said["penalty"])]
    if said["penalty"] == "cdep" or "penalty.form" in said:
        words += [penalty["form"]] if "form" in penalty else []
        words += [penalty["rules"]["relu"]] if "rules" in penalty else []
    named = ("penalty.form", "penalty.rules.relu")
    return ", ".join([*words, *(text for text in special(said) if not text.startswith(named))])


def special(said: Mapping[str, str]) -> list[str]:
    """Overrides as a label shows them: not what has a place of its own, nor what moved in code."""
    placed = ("dataset", "penalty", "penalty.strength", "seed")
    return [f"{k}={v}" for k, v in said.items() if k not in placed and not k.endswith("._target_")]


def shared(settings: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Overrides that several settings have in common, penalties aside: a label need not say them.

    Args:
        settings: each the first of what `overrides` returns; of one alone nothing is shared.
    """
    found = [set(said.items()) for said in settings]
    common = set.intersection(*found) if len(found) > 1 else set()
    kept = {key: value for key, value in sorted(common) if not key.startswith("penalty")}
    return {key: value for key, value in kept.items() if special({key: value})}


def literal(value: Any) -> str:
    """A value as Hydra's command line reads it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    if isinstance(value, list):
        return "[" + ",".join(map(literal, value)) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{literal(v)}" for key, v in value.items()) + "}"
    text = str(value)
    if not isinstance(value, str) or re.fullmatch(r"[\w./:+-]+", text, re.ASCII):
        return text
    # In quotes a backslash is itself, but before a quote it must be doubled, the last one, too.
    quoted = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), text)
    return f"'{quoted}'"


@cache
def defaults(*choices: str) -> dict[str, Any] | None:
    """The deciding settings that choices like "dataset=mnist" compose to; None: not among ours."""
    register_schemas()
    running = GlobalHydra.instance().hydra  # of `cdep-run` itself, where this is a part of a sweep
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            config = compose("train", list(choices))
        plain = OmegaConf.to_container(config, resolve=True, enum_to_str=True)
    except (HydraException, OmegaConfBaseException):
        return None
    finally:
        GlobalHydra.instance().hydra = running
    assert isinstance(plain, dict)
    return deciding_settings({str(key): value for key, value in plain.items()})


@cache
def choice(group: str, target: str, *name: str | None) -> str | None:
    """The name of the file in `configs/<group>/` that builds `target`, by this `name` if given."""
    for file in sorted((config_dir() / group).glob("*.yaml")):
        one = OmegaConf.load(file)
        fits = OmegaConf.select(one, "_target_") == target
        if fits and (not name or OmegaConf.select(one, "name") == name[0]):
            return file.stem
    return None
