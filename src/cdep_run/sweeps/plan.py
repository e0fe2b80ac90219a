"""From the arms of a sweep to its jobs, each of them once, and to the finished runs among them."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from cdep_run.config.commands import defaults
from cdep_run.config.compare import deciding_settings
from cdep_run.errors import ConfigError
from cdep_run.files import safe_name
from cdep_run.training.build import plain

log = logging.getLogger(__name__)

STRENGTH, SEED = "penalty.strength", "seed"
PICKED = ("dataset", "penalty")  # on the command line they choose among what arms name
CHOSEN = f"{STRENGTH}=?"  # stands for the λ that is still to be chosen


@dataclass(frozen=True)
class Curve:
    """What differs in λ and seed alone: overrides, and those of the grid and of the seeds."""

    arm: str
    label: str  # the arm and what differs between its curves
    overrides: tuple[str, ...]
    strengths: tuple[str, ...]  # empty: the default λ
    seeds: tuple[str, ...]  # empty: the default seed

    def grid(self, strengths: Iterable[str], seeds: Iterable[str]) -> list[tuple[str, ...]]:
        """The overrides of every λ on every seed."""
        return list(product(*filter(None, (tuple(strengths), tuple(seeds)))))


@dataclass
class Job:
    """One run of a sweep.

    Attributes:
        overrides: of the task, with neither folder nor resume.
        config: resolved.
        settings: see `cdep_run.config.compare.settings`.
        fingerprint: of its data; "" where `problem` tells why there are none.
        record: of the finished run that it would repeat, or None.
    """

    curve: Curve
    overrides: list[str]
    config: dict[str, Any]
    fingerprint: str = ""
    problem: str = ""
    record: Path | None = None
    settings: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.settings = deciding_settings(self.config)

    def folder(self, code: str) -> str:
        """Its folder's name inside the sweep's: other settings, data or code have another one."""
        text = json.dumps([self.settings, self.fingerprint, code], sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        kept = self.settings
        return (
            f"{safe_name(kept['dataset.name'])}-{safe_name(kept['penalty.name'])}_{kept['penalty.strength']:g}"
            f"-seed{kept['seed']:g}-{digest}"
        )


def curves(
    arms: dict[str, dict[str, Any]],
    params: dict[str, Any],
    arguments: list[str],
    parser: OverridesParser,
) -> list[Curve]:
    """The curves of all arms.

    Args:
        arms: overrides of each arm, by the arm's name; none: the sweep is one without a name.
        params: overrides of all arms, which an arm's own and the command line's replace.
        arguments: from the command line; they replace an arm's, but for `PICKED`, which choose.

    Raises:
        ConfigError: the command line leaves no arm over.
    """
    said = {one.get_key_element(): one for one in parser.parse_overrides(arguments)}
    common = parsed(params, parser)
    found = []
    for name, arm in (arms or {"": {}}).items():
        own = parsed(arm, parser)
        picked = {key: picks(own[key], said[key]) for key in PICKED if key in own and key in said}
        lists = {key: values(one) for key, one in (common | own | said).items()} | picked
        strengths, seeds = (tuple(lists.pop(key, ())) for key in (STRENGTH, SEED))
        several = {word for words in lists.values() if len(words) > 1 for word in words}
        for overrides in product(*lists.values()):
            label = " ".join([name or "all", *(word for word in overrides if word in several)])
            found.append(Curve(name, label, overrides, strengths, seeds))
    if not found:
        wanted = " ".join(one.input_line or "" for key, one in said.items() if key in PICKED)
        there = sorted({f"{k}={arm[k]}" for arm in arms.values() for k in PICKED if k in arm})
        raise ConfigError(f"no arm of this sweep has {wanted}; there are {', '.join(there)}")
    return found


def parsed(params: dict[str, Any], parser: OverridesParser) -> dict[str, Override]:
    """Overrides given as names and values, by name."""
    lines = [f"{name}={'null' if value is None else value}" for name, value in params.items()]
    return {one.get_key_element(): one for one in parser.parse_overrides(lines)}


def values(override: Override) -> list[str]:
    """One override for each value that a swept one stands for.

    Raises:
        ConfigError: the values cannot be counted, as in an interval.
    """
    key = override.get_key_element()
    if not override.is_sweep_override():
        return [f"{key}={override.get_value_element_as_str()}"]
    if not override.is_discrete_sweep():
        raise ConfigError(f"{override.input_line}: only lists and ranges can be swept")
    return [f"{key}={value}" for value in override.sweep_string_iterator()]


def picks(own: Override, said: Override) -> list[str]:
    """The arm's values that the command line names, too."""
    return [one for one in values(own) if one in values(said)]


def compose_jobs(
    curve: Curve,
    points: list[tuple[str, ...]],
    compose: Callable[[list[str]], DictConfig],
    parser: OverridesParser,
) -> list[Job]:
    """The jobs of a curve at some λ and seeds, composed once and set to each.

    Raises:
        ConfigError: λ or seed cannot be set to the value.
        hydra.errors.HydraException: the overrides do not compose.
    """
    base = compose(list(curve.overrides))
    with open_dict(base):
        base.pop("hydra", None)
    jobs = []
    for point in points:
        config = base.copy()
        for one in parser.parse_overrides(list(point)):
            try:
                OmegaConf.update(config, one.key_or_group, one.value())
            except OmegaConfBaseException as error:
                reason = str(error).partition("\n")[0]
                raise ConfigError(f"{curve.label}: {one.input_line}: {reason}") from error
        jobs.append(Job(curve, [*curve.overrides, *point], plain(config)))
    return jobs


def data_key(config: dict[str, Any]) -> str:
    """The settings of the data set, without its advice to penalties."""
    kept = {k: v for k, v in config["dataset"].items() if k != "penalties"}
    return json.dumps(kept, sort_keys=True)


def code_key(same_code: str, versions: dict[str, str], git: dict[str, Any] | None) -> str | None:
    """What runs "by the same code" share, from a record's versions and git state; None: nothing."""
    if same_code == "any":
        return "any"
    if same_code == "version":
        return versions.get("cdep-run")
    return git["commit"] if git and not git["changed"] else None


class Finished:
    """Finished runs, to be asked for the one that a job would repeat.

    Args:
        records: files and what they hold.
        same_code, code: see `code_key`, and what it gives for the code that runs now.
    """

    def __init__(
        self, records: Iterable[tuple[Path, dict[str, Any]]], same_code: str, code: str | None
    ) -> None:
        self.runs: dict[tuple[Any, ...], list[tuple[Path, dict[str, Any]]]] = {}
        for path, record in records:
            try:
                made_by = code_key(same_code, record["versions"], record["git"])
                if code is not None and made_by == code:
                    kept = deciding_settings(record["config"])
                    place = self.place(record["data"]["fingerprint"], kept)
                    self.runs.setdefault(place, []).append((path, kept))
            except (KeyError, TypeError, AttributeError):
                log.warning("%s: no record of this version, it does not count as finished", path)

    def find(self, job: Job) -> Path | None:
        """The record of a run with these settings on these data; the last one named."""
        there = self.runs.get(self.place(job.fingerprint, job.settings), ())
        found = [path for path, kept in there if same(kept, job.settings)]
        return found[-1] if found else None

    @staticmethod
    def place(fingerprint: str, kept: dict[str, Any]) -> tuple[Any, ...]:
        """What runs that may be the same share."""
        return fingerprint, kept["penalty.name"], kept["penalty.strength"], kept["seed"]


def same(recorded: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether settings agree; what an older record does not have was the default."""
    if any(recorded.get(name, value) != value for name, value in wanted.items()):
        return False
    if recorded.keys() - wanted.keys():
        return False
    missing = wanted.keys() - recorded.keys()
    return all(wanted[name] == default(wanted, name) for name in missing)


@cache
def _defaults(dataset: str, penalty: str) -> dict[str, Any]:
    return defaults(f"dataset={dataset}", f"penalty={penalty}") or {}


def default(wanted: dict[str, Any], name: str) -> Any:
    """What a setting is if nobody sets it, with this data set and penalty."""
    return _defaults(wanted["dataset.name"], wanted["penalty.name"]).get(name)
