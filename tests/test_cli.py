"""The command: help, messages, exit codes, and going on after Ctrl-C, SIGTERM and SIGKILL."""

from __future__ import annotations

import json
import resource
import subprocess
from pathlib import Path

import pytest
import yaml

import cdep_run
from running import TESTS, TINY, command, inside, run, weights

OWN = ("--config-dir", str(TESTS / "configs"))
HERE = "hydra.run.dir=run"


def test_help_is_quick_and_names_the_choices(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = command("--help", cwd=tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert done.returncode == 0 and seconds < 2  # of processor time; 0.6 on an idle machine
    penalties = "penalty: actdiff, cdep, cdep_published, "
    for words in ("decoy_mnist", penalties, "resume=true", "--config-dir"):
        assert words in done.stdout


def test_cfg_shows_the_configuration_and_nothing_else(tmp_path: Path) -> None:
    done = command("dataset=color_mnist", "penalty=rrr", "--cfg", "job", cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == ""
    config = yaml.safe_load(done.stdout)
    assert config["dataset"]["name"] == "color_mnist" and "hydra" not in config
    assert list(tmp_path.iterdir()) == []


def test_completion_knows_the_groups(tmp_path: Path) -> None:
    assert "complete" in command("-sc", "install=bash", cwd=tmp_path).stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["penalty.strength=-1"], "penalty.strength is -1.0; accepted: 0 or more"),
        (["hydra.run.dir=/dev/null/x"], "cannot write to hydra.run.dir=/dev/null/x"),
        (["-m", "hydra.sweep.dir=/dev/null/x"], "cannot write to hydra.sweep.dir=/dev/null/x"),
        (
            ["model=torchvision", "model.name=densenet121"],
            "inputs [2, 1, 28, 28] of decoy_digits, fails: RuntimeError: Given input size",
        ),
        (
            ["~dataset.penalties.cdep"],
            "Interpolation key 'dataset.penalties.cdep.strength' not found",
        ),
    ],
)
def test_what_a_user_can_mend_is_one_line_and_a_non_zero_exit(
    tmp_path: Path, arguments: list[str], words: str
) -> None:
    done = command(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("cdep-run: error: ") and words in done.stderr
    assert done.stderr.count("\n") == 1 and done.stdout == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lambda=3"], "there is no setting lambda; did you mean penalty.strength?"),
        (["+lambda=3"], "there is no setting lambda; did you mean penalty.strength?"),
        (["+sweeep=table3"], "there is no setting sweeep; did you mean +sweep?"),
        (["-m", "+sweeep=table3"], "there is no setting sweeep; did you mean +sweep?"),
        (["batch_size=3"], "there is no setting batch_size; did you mean training.batch_size?"),
        (["penalty.strngth=3"], "did you mean penalty.strength?"),
        (["penalty=cdpe"], "penalty=cdpe: there is no such choice; did you mean penalty=cdep?"),
        (["penalty.strength=abc"], "value 'abc' of type 'str' could not be converted to Float"),
        (["penalty.form=xx"], "penalty.form=xx: invalid value 'xx', expected one of [pair, "),
        (["evidnce", "x"], "there is no command evidnce; did you mean evidence? There are check, "),
        (["check", "dataset=imges"], "dataset=imges: there is no such choice; did you mean"),
        (["fix", "dataset=imges"], "dataset=imges: there is no such choice; did you mean"),
        (["penalty.strength"], "cannot read 'penalty.strength'; write name=value"),
        (["seed=1,2"], "seed=1,2 names several values: add -m to run them all"),
        (["dataset.penalties.cdep.strength=x"], "Value 'x' of type 'str' could not be converted"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line_before_anything_is_written(
    tmp_path: Path, words: list[str], message: str
) -> None:
    verb = not words[0].startswith("-") and "=" not in words[0] and "." not in words[0]
    place = ["hydra.sweep.dir=out"] if "-m" in words else [] if verb else ["hydra.run.dir=out"]
    done = inside(*words, *place, cwd=tmp_path)
    assert done.returncode == 1 and message in done.stderr, done.stderr
    assert done.stderr.strip().count("\n") <= 1 and "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("result.json"))


def test_version_is_that_of_the_product(tmp_path: Path) -> None:
    assert inside("--version", cwd=tmp_path).stdout == f"cdep-run {cdep_run.__version__}\n"


def test_an_unforeseen_error_keeps_its_traceback_and_status(tmp_path: Path) -> None:
    broken = ("penalty=none", "penalty._target_=tiny_data.Broken", "penalty.strength=1")
    done = command(*OWN, *TINY, *broken, HERE, cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "a fuse blew" in done.stderr
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["state"] == "failed" and status["error"] == "RuntimeError: a fuse blew"


def stopped(folder: Path, penalty: str) -> subprocess.CompletedProcess[str]:
    """A run that a signal ends at its 10th step, in the second epoch of 7 steps."""
    return command(*OWN, *TINY, *ends_at_step_10(penalty), HERE, cwd=folder)


def ends_at_step_10(penalty: str) -> tuple[str, ...]:
    return ("penalty=none", f"penalty._target_=tiny_data.{penalty}", "penalty.strength=1",
            "training.epochs=2", "training.checkpoint_seconds=0")  # fmt: skip


def assert_as_if_undisturbed(folder: Path) -> None:
    undisturbed = ("penalty=none", "training.epochs=2")
    run(folder / "whole", *undisturbed)
    whole, resumed = weights(folder / "whole"), weights(folder / "run")
    assert all(whole[name].equal(resumed[name]) for name in whole)


def test_after_ctrl_c_the_same_command_with_resume_goes_on(tmp_path: Path) -> None:
    done = stopped(tmp_path, "Signal")
    assert done.returncode == 130
    assert f"hydra.run.dir={tmp_path / 'run'} resume=true" in done.stderr
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["state"] == "interrupted" and not (tmp_path / "run" / "result.json").exists()
    again = command(*OWN, *TINY, *ends_at_step_10("Signal"), HERE, "resume=true", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "going on at epoch 2, step 3" in again.stderr
    assert again.stdout == f"{tmp_path / 'run'}\n"
    assert_as_if_undisturbed(tmp_path)


def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    assert stopped(tmp_path, "Killed").returncode == -9
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "running"
    run(tmp_path / "run", *ends_at_step_10("Killed"), "resume=true")
    assert_as_if_undisturbed(tmp_path)
