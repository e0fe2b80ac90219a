"""`cdep-run resume DIR` goes on with a sweep, `cdep-run status DIR` shows how sweeps stand."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

from cdep_run.config.commands import literal
from cdep_run.errors import CdepError, ConfigError
from cdep_run.sweeps.manifest import DONE, MANIFEST, Manifest, jobs_table

GROUPS = "dataset|model|optimizer|penalty|scheduler|sweep"
HARMLESS = re.compile(
    rf"-m|--multirun"
    rf"|[+]{{0,2}}({GROUPS})=[\w\-, ()]*"
    rf"|[+~]{{0,2}}({GROUPS}|training)\.[\w.]+(=.*)?"
    rf"|[+]{{0,2}}(seed|device|precision|threads|data_dir|resume)=.*"
    rf"|hydra/launcher=\w+|hydra\.launcher\.(?!_)\w+=.*"
    rf"|hydra\.sweeper\.(reuse|same_code|plan_only|choose_strength)=.*"
    rf"|hydra\.sweep\.dir=.*",
    re.DOTALL,
)
"""Words of a command that choose among what is installed. All others, such as a folder with further
configurations, may name code to run, and a sweep's folder may come from a stranger."""


def resume(arguments: list[str]) -> list[str]:
    """Plan a sweep again from its settings; returns the words of the command that goes on with it.

    Words of the first command that could run code which the folder brings along count only if they
    are said again. If the sweep lies below the folder in which it was started, as is usual, paths
    are relative to that folder, else to the current one.

    Args:
        arguments: the sweep's folder, and words to add, such as another launcher.

    Raises:
        ConfigError: no sweep there, or words that must be said again.
    """
    if not arguments:
        raise ConfigError("say which sweep: cdep-run resume outputs/sweeps/table3")
    manifest = load(Path(arguments[0]))
    folder, added = manifest.folder.resolve(), arguments[1:]
    words = _joined(manifest.command)
    said = {_name(word) for word in _joined(added)}
    kept = [word for word in words if HARMLESS.fullmatch(word) and _name(word) not in said]
    missing = [w for w in words if not HARMLESS.fullmatch(w) and _name(w) not in said]
    if missing:
        raise ConfigError(
            f"{folder} was started with {shlex.join(missing)}, which can run code. If you trust "
            f"it, say it again: cdep-run resume {shlex.join([arguments[0], *missing])}"
        )
    start = Path(manifest.cwd)
    if folder.is_relative_to(start) and start.is_dir():
        added = [_absolute(word) for word in _joined(added)]
        os.chdir(start)
    elif start != Path.cwd():
        print(
            f"cdep-run: started in {start}; relative paths are now taken from {Path.cwd()}",
            file=sys.stderr,
        )
    shown = os.path.relpath(folder) if folder.is_relative_to(Path.cwd()) else str(folder)
    place = f"hydra.sweep.dir={literal(shown)}"
    going_on = [*(word for word in kept if _name(word) != _name(place)), *added, place]
    return sorted(going_on, key=lambda word: not word.startswith("-"))  # flags come first


def _joined(words: Iterable[str]) -> list[str]:
    """Words of a command with the value of `--config-dir` and the like behind an equals sign."""
    joined: list[str] = []
    waiting = False
    for word in words:
        if waiting:
            joined[-1] += f"={word}"
        else:
            joined.append(LONG.get(word, word))
        waiting = not waiting and word in (*LONG, *LONG.values())
    return joined


LONG = {"-cd": "--config-dir", "-cn": "--config-name", "-cp": "--config-path"}
"""Flags that take a value, in short and long."""


def _name(word: str) -> str:
    return word.partition("=")[0].lstrip("+")


def _absolute(word: str) -> str:
    """A word as it is meant here, for a command that runs elsewhere."""
    name, equals, value = word.partition("=")
    return f"{name}={Path(value).resolve()}" if name == "--config-dir" and equals else word


def status(arguments: list[str]) -> int:
    """Print how a sweep stands, job by job, or a line for each of the sweeps below a folder.

    Returns:
        The exit code: 0 where all jobs are done.
    """
    where = Path(arguments[0] if arguments else "outputs/sweeps")
    damaged: list[str] = []
    if (where / MANIFEST).exists():
        manifests = [load(where)]
        print(jobs_table(manifests[0]))
    else:
        manifests = []
        for file in sorted(where.glob(f"*/{MANIFEST}")):
            try:
                manifests.append(load(file.parent))
            except CdepError as error:
                damaged.append(str(error))
    if not manifests and not damaged:
        raise ConfigError(f"no sweep in {where}")
    for manifest in manifests:
        print(f"{manifest.progress()}: {manifest.folder}")
    for problem in damaged:
        print(f"cdep-run: {problem}", file=sys.stderr)
    undone = any(job.state not in DONE for manifest in manifests for job in manifest.jobs)
    return int(undone or bool(damaged))


def load(folder: Path) -> Manifest:
    """The manifest of a sweep.

    Raises:
        ConfigError: none there, or damaged.
    """
    manifest = Manifest.load(folder)
    if manifest is None:
        raise ConfigError(f"{folder} holds no sweep: there is no {MANIFEST}")
    return manifest
