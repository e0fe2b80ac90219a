"""Sweeps: a job that fails or is killed ends alone, and the table says what became of each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cdep_run.sweep import format_table
from running import TESTS, TINY, command

SWEEP = ("--config-dir", str(TESTS / "configs"), "-m", *TINY, "hydra.sweep.dir=sweep",
         "penalty=none", "penalty.strength=1")  # fmt: skip


def states(folder: Path) -> list[str]:
    return [json.loads((folder / str(n) / "status.json").read_text())["state"] for n in range(3)]


def test_a_failed_job_does_not_take_the_others_down(tmp_path: Path) -> None:
    targets = "cdep_run.penalties.none.NoPenalty,tiny_data.Broken,tiny_data.NotANumber"
    done = command(*SWEEP, f"penalty._target_={targets}", cwd=tmp_path)
    assert done.returncode == 1
    assert states(tmp_path / "sweep") == ["finished", "failed", "failed"]
    assert "1 of 3 jobs finished: sweep" in done.stdout
    table = done.stdout.splitlines()[-4:-1]
    assert table[0].startswith("0    finished  penalty._target_=cdep_run.penalties.none.NoPenalty")
    assert "RuntimeError: a fuse blew" in table[1] and "not finite at step 3" in table[2]
    for n in range(3):
        assert (tmp_path / "sweep" / str(n) / "cdep-run.log").stat().st_size > 0
    assert "Traceback" in (tmp_path / "sweep" / "1" / "cdep-run.log").read_text()


def test_a_sweep_without_failures_ends_with_0_and_can_be_asked_to_go_on(tmp_path: Path) -> None:
    done = command(*SWEEP, "seed=range(2)", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 of 2 jobs finished" in done.stdout
    again = command(*SWEEP, "seed=range(3)", "resume=true", cwd=tmp_path)
    assert again.returncode == 0 and "3 of 3 jobs finished" in again.stdout
    assert "nothing to do" in (tmp_path / "sweep" / "1" / "cdep-run.log").read_text()


def test_a_killed_job_in_its_own_process_does_not_end_the_sweep(tmp_path: Path) -> None:
    pytest.importorskip("submitit", reason="hydra-submitit-launcher is not installed")
    targets = "tiny_data.Killed,tiny_data.Broken,cdep_run.penalties.none.NoPenalty"
    launcher = ("hydra/launcher=submitit_local", "hydra.launcher.parallel=2")
    done = command(*SWEEP, f"penalty._target_={targets}", *launcher, cwd=tmp_path)
    assert done.returncode == 1
    assert states(tmp_path / "sweep") == ["failed", "failed", "finished"], done.stderr
    assert "the process was killed or crashed" in done.stdout
    assert "1 of 3 jobs finished" in done.stdout


def test_the_table_leaves_empty_what_a_row_does_not_have() -> None:
    rows = [{"job": "0", "accuracy": "0.9", "error": ""}, {"job": "10", "error": "no"}]
    assert format_table(rows) == "job  accuracy  error\n0    0.9\n10             no"
