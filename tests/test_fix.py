"""`cdep-run fix`: from a table to a chosen model, its evidence and a report, by one command."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from cdep_run.errors import ConfigError
from cdep_run.sweeps.fix import write_sweep
from running import command, inside


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Rows whose class shows in `age` and, nearly always, in `origin`."""
    draw = random.Random(0)
    lines = ["age,origin,label"]
    for number in range(120):
        label = number % 2
        origin = "ab"[label] if draw.random() < 0.9 else draw.choice("ab")
        lines.append(f"{draw.gauss(40 + 8 * label, 6):.1f},{origin},{label}")
    file = tmp_path / "people.csv"
    file.write_text("\n".join(lines) + "\n")
    return file


def words(table: Path) -> list[str]:
    return ["dataset=table", f"dataset.table={table}", "dataset.must_not_matter=[origin]",
            "training.epochs=2", "threads=1", "device=cpu"]  # fmt: skip


def test_one_command_goes_from_a_table_to_verdict_model_and_pages(table: Path) -> None:
    folder = table.parent
    again = ["fix", *words(table), "--out", "out", "--penalties", "rrr"]
    done = command(*again, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "[5/5] report" in done.stdout and " of predictions under none" in done.stdout
    model = next(line for line in done.stdout.splitlines() if line.startswith("model:"))
    assert (folder / model.split()[-1] / "result.json").is_file()
    report = json.loads((folder / "out/evidence/evidence.json").read_text())
    assert len(report["settings"]) == 2 and report["verdict"] in done.stdout
    for page in ("check.html", "evidence/evidence.html", "report.html"):
        assert (folder / "out" / page).is_file()
    runs = sorted((folder / "out/runs").glob("*/result.json"))
    times = [run.stat().st_mtime for run in runs]
    assert len(runs) == 4  # no penalty, and three λ
    assert command(*again, cwd=folder).returncode == 0
    assert times == [run.stat().st_mtime for run in runs]  # nothing is trained twice


def test_faults_of_the_data_stop_it_before_any_training(table: Path) -> None:
    table.write_text(table.read_text() + "x,a,\n")
    done = inside("fix", *words(table), "--out", "out", cwd=table.parent)
    assert done.returncode == 1 and "the data have faults" in done.stderr
    assert not (table.parent / "out/runs").exists()


def test_a_penalty_without_a_known_strength_is_refused(table: Path) -> None:
    with pytest.raises(ConfigError, match="--penalties magic: the data set has λ for"):
        write_sweep(words(table), ["magic"], table.parent)
