"""Compose a configuration and train on tiny data, in this process or as the command."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from cdep_run.config.schemas import config_dir, register_schemas
from cdep_run.train import main, train
from cdep_run.training.build import plain

TESTS = Path(__file__).parent
TINY = ("dataset=tiny", "threads=1", "device=cpu")


def composed(*overrides: str) -> DictConfig:
    """What Hydra makes of the overrides, with the tests' own configurations beside ours."""
    register_schemas()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return compose("train", [*overrides, f"hydra.searchpath=[file://{TESTS / 'configs'}]"])


def run(folder: Path, *overrides: str) -> dict[str, Any]:
    """Train on tiny data in `folder`; returns the result."""
    folder.mkdir(exist_ok=True)
    return train(plain(composed(*TINY, *overrides)), folder)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The model's weights in the last checkpoint."""
    return torch.load(folder / "checkpoints" / "last.pt", weights_only=True)["model"]


def inside(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """As `command`, but in this process, which saves seconds; the log is in stderr, too."""
    out, err, argv, here = io.StringIO(), io.StringIO(), sys.argv, Path.cwd()
    os.chdir(cwd)
    sys.argv = ["cdep-run", *arguments]
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
        err.write("" if isinstance(end.code, int) else f"{end.code}\n")
    finally:
        os.chdir(here)
        sys.argv, root.handlers, root.level = argv, handlers, level
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command `cdep-run`, with the tests' modules importable, as a user's own would be."""
    path = os.pathsep.join([str(TESTS.parent / "src"), str(TESTS)])
    return subprocess.run(
        [sys.executable, "-c", "from cdep_run.train import main; main()", *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
