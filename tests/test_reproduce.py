"""The sweeps of the papers' tables plan what they say, and `make reproduce-tables` goes through."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cdep_run.config.schemas import config_dir
from cdep_run.sweeps import reproduce
from cdep_run.sweeps.manifest import Entry, Manifest
from running import TESTS, inside

SWEEPS = sorted(file.stem for file in (config_dir() / "sweep").glob("*.yaml"))


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_opens_with_its_command_and_plans_as_many_runs_as_it_says(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []
    known = SimpleNamespace(fingerprint="f" * 64)
    monkeypatch.setattr("cdep_run.sweeps.sweep.build", lambda node: seen.append(node) or known)
    text = (config_dir() / "sweep" / f"{name}.yaml").read_text()
    opens = r"cdep-run -m \+sweep=(\w+)\n# .*?Run time: (\d+) runs\b.*\n# Expected"
    said = re.search(opens, text, re.DOTALL)
    assert said is not None and said[1] == name
    done = inside("-m", f"+sweep={name}", "hydra.sweeper.plan_only=true", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "outputs/sweeps" / name / "sweep.json").read_text())
    assert len(manifest["jobs"]) == int(said[2])
    assert seen and all(job["state"] == "pending" for job in manifest["jobs"])


def test_every_table_of_the_papers_has_its_sweep() -> None:
    assert set(reproduce.SWEEPS) | {"quick"} == set(SWEEPS)
    assert reproduce.SWEEPS[-1:] == reproduce.ALONE


def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> int | str | None:
    """The exit code of `python -m cdep_run.sweeps.reproduce`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["reproduce", *words])
    with pytest.raises(SystemExit) as end:
        reproduce.main()
    return end.value.code


def called(command: list[str], **output: Any) -> SimpleNamespace:
    """As `subprocess.run` and `Popen`, but in this process, which saves seconds."""
    module = command[2].split()[1]
    before = sys.argv
    sys.argv = [module, *command[3:]]
    try:
        importlib.import_module(module).main()
        code: Any = 0
    except SystemExit as end:
        code = end.code or 0
    finally:
        sys.argv = before
    return SimpleNamespace(returncode=code, poll=lambda: code, wait=lambda: code)


def test_what_has_no_data_is_left_out_and_the_rest_ends_in_tables_and_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reproduce, "SWEEPS", ("absent",))
    monkeypatch.setattr(reproduce, "subprocess", SimpleNamespace(run=called, Popen=called))
    own = f"hydra.searchpath=[file://{TESTS / 'configs'}]"
    code = run(tmp_path, monkeypatch, own, "threads=1", "absent:training.epochs=1")
    said = capfd.readouterr()
    assert code == 0, said
    assert "left out of absent: 3 runs on mnist: " in said.out and "nowhere" in said.out
    assert "absent: 2 of 2 jobs done" in said.out
    folder = next((tmp_path / "outputs/sweeps").glob("absent-training.epochs=1-*"))
    jobs = json.loads((folder / "sweep.json").read_text())["jobs"]
    assert [job["state"] for job in jobs].count("completed") == 2
    assert "tiny" in (tmp_path / "outputs/tables/all.md").read_text()
    assert (tmp_path / "outputs/report.html").stat().st_size > 1000


def test_an_override_may_be_for_one_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["data_dir=x", "table4:dataset.vectors=glove.6B.50d", "hydra.searchpath=[file://a]"]
    assert reproduce.chosen(words, "table4") == [words[0], "dataset.vectors=glove.6B.50d", words[2]]
    assert reproduce.chosen(words, "table3") == [words[0], words[2]]
    assert run(tmp_path, monkeypatch, "tabel4:seed=0") == 2
    assert "tabel4:seed=0: no sweep tabel4; there are table1, table2" in capsys.readouterr().err


@pytest.mark.parametrize("older", [False, True])
def test_a_sweep_that_does_not_compose_ends_it_with_the_reason(
    older: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reproduce, "SWEEPS", ("runtime",))
    monkeypatch.setattr(reproduce, "subprocess", SimpleNamespace(run=called))
    if older:  # a failure that an earlier session noted is no reason to leave the sweep out
        folder = tmp_path / reproduce.Part("runtime", ["no.such.key=1"], 1).folder
        folder.mkdir(parents=True)
        job = Entry("none", "decoy_mnist", "none", ["seed=0"], state="failed", error="no network")
        Manifest(folder, [], str(tmp_path), [], jobs=[job]).write()
    code = run(tmp_path, monkeypatch, "runtime:no.such.key=1")
    assert isinstance(code, str) and code.startswith("reproduce-tables: error: runtime cannot be ")
