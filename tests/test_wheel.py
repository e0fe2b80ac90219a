"""The wheel: the command works from it alone, with the configurations inside."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from running import TESTS


def test_the_command_works_from_the_wheel_in_any_folder(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="hatchling is not installed")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=TESTS.parent, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = "import cdep_run; print(cdep_run.__file__); from cdep_run.train import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "--info", "searchpath"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path / "site"))
    assert f"file://{tmp_path / 'site' / 'cdep_run' / 'configs'}" in done.stdout
    assert (tmp_path / "site" / "hydra_plugins" / "cdep_run_launcher.py").exists()
