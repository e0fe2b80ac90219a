"""`cdep-run resume DIR` goes on with a sweep, `cdep-run status DIR` shows how sweeps stand."""

from __future__ import annotations

import os
from pathlib import Path

from cdep_run.config.commands import literal
from cdep_run.errors import ConfigError
from cdep_run.sweeps.manifest import DONE, MANIFEST, Manifest, jobs_table


def resume(arguments: list[str]) -> list[str]:
    """The arguments of the command that started a sweep; moves to the folder it was given in.

    Args:
        arguments: the sweep's folder, and overrides to add, such as another launcher.

    Raises:
        ConfigError: no sweep there, or the folder of the command is gone.
    """
    if not arguments:
        raise ConfigError("say which sweep: cdep-run resume outputs/sweeps/table3")
    manifest = load(Path(arguments[0]))
    folder = manifest.folder.resolve()
    try:
        os.chdir(manifest.cwd)
    except OSError as error:
        command = " ".join(manifest.command)
        raise ConfigError(
            f"{folder} was started in {manifest.cwd}, which is not there ({error.strerror}); "
            f"repeat the command here: cdep-run {command} hydra.sweep.dir={literal(str(folder))}"
        ) from error
    shown = os.path.relpath(folder) if folder.is_relative_to(manifest.cwd) else str(folder)
    added = [f"hydra.sweep.dir={literal(shown)}", *arguments[1:]]
    replaced = {word.partition("=")[0] for word in added}
    return [w for w in manifest.command if w.partition("=")[0] not in replaced] + added


def status(arguments: list[str]) -> int:
    """Print how a sweep stands, job by job, or a line for each of the sweeps below a folder.

    Returns:
        The exit code: 0 where all jobs are done.
    """
    where = Path(arguments[0] if arguments else "outputs/sweeps")
    if (where / MANIFEST).exists():
        manifests = [load(where)]
        print(jobs_table(manifests[0]))
    else:
        manifests = [load(file.parent) for file in sorted(where.glob(f"*/{MANIFEST}"))]
    if not manifests:
        raise ConfigError(f"no sweep in {where}")
    for manifest in manifests:
        print(f"{manifest.progress()}: {manifest.folder}")
    return int(any(job.state not in DONE for manifest in manifests for job in manifest.jobs))


def load(folder: Path) -> Manifest:
    """The manifest of a sweep.

    Raises:
        ConfigError: none there, or damaged.
    """
    manifest = Manifest.load(folder)
    if manifest is None:
        raise ConfigError(f"{folder} holds no sweep: there is no {MANIFEST}")
    return manifest
