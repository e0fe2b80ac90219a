"""Finished runs as a frame: hand-made records, good and bad."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from cdep_run.config.older import up_to_date
from cdep_run.results.runs import load_runs
from made_records import make_record


def problems(frame: Any) -> str:
    return "\n".join(frame.attrs["problems"])


def test_one_row_a_run_with_settings_metrics_and_cell(tmp_path: Path) -> None:
    make_record(tmp_path / "a" / "result.json", 0.75, seed=0)
    make_record(tmp_path / "b" / "seed1.json", 0.5, seed=1)
    make_record(tmp_path / "b" / "seed0.json", 0.25, seed=0, strength=1.0)
    make_record(tmp_path / "c" / "result.json", 0.25, seed=0, penalty="none")
    runs = load_runs(tmp_path / "a", tmp_path / "b", tmp_path / "c").set_index("path")
    assert runs.attrs["problems"] == []
    a = runs.loc[str(tmp_path / "a" / "result.json")]
    assert (a["dataset"], a["penalty"], a["strength"], a["form"]) == ("decoy", "cdep", 10, "pair")
    assert a["test/accuracy"] == 0.75 and a["test/examples"] == 100
    assert a["seconds_per_epoch"] == 2 and a["peak_memory_bytes"] == 10**9 and not a["quick"]
    assert a["config"]["penalty"]["strength"] == 10 and a["history"] is None
    assert runs.groupby("cell").size().tolist().count(2) == 1 and runs["cell"].nunique() == 3
    assert runs["curve"].nunique() == 2


def test_settings_of_older_records_are_read_under_todays_names(tmp_path: Path) -> None:
    old = {"name": "cdep", "strength": 1.0, "form": "classwise", "relu": "last",
           "recurrent_bias": "inside", "detach_vectors": True}  # fmt: skip
    config = {"dataset": {"name": "decoy"}, "penalty": old, "training": {}, "seed": 0}
    make_record(tmp_path / "cdep.json", 0.5, record={"config": config})
    rrr = {"name": "rrr", "strength": 1.0, "form": "code"}
    make_record(tmp_path / "rrr.json", 0.5, record={"config": config | {"penalty": rrr}})
    runs = load_runs(tmp_path).set_index("penalty")
    assert (runs.loc["cdep", "form"], runs.loc["cdep", "relu"]) == ("eq5", "last")
    assert runs.loc["cdep", "settings"]["penalty.rules.embedding"] == "detached"
    assert runs.loc["rrr", "form"] == "published"
    now = runs.loc["cdep", "config"]
    assert up_to_date(now) == now and now["penalty"].keys().isdisjoint(
        old.keys() - {"name", "strength", "form"}
    )


def test_at_strength_0_every_penalty_is_none_and_threads_do_not_count(tmp_path: Path) -> None:
    make_record(tmp_path / "a.json", 0.5, seed=0, strength=0.0, threads=1)
    make_record(tmp_path / "b.json", 0.5, seed=1, penalty="none", strength=3.0, threads=2)
    runs = load_runs(tmp_path)
    assert list(runs["penalty"]) == ["none", "none"] and runs["cell"].nunique() == 1


def test_the_history_comes_with_the_record(tmp_path: Path) -> None:
    rows = [{"epoch": 1, "val/accuracy": 0.5}]
    make_record(tmp_path / "a.json", 0.5, record={"history": rows})
    assert load_runs(tmp_path)["history"][0] == rows


def test_what_is_wrong_is_said_and_the_rest_tabulated(tmp_path: Path) -> None:
    make_record(tmp_path / "good" / "result.json", 0.5)
    make_record(tmp_path / "good2" / "result.json", 0.75)
    make_record(tmp_path / "nan" / "result.json", float("nan"), seed=1)
    for name, text in {
        "cut": '{"config": ',
        "old": '{"config": {}, "metrics": {}}',
        "other": "{}",
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(text)
    (tmp_path / "notes.json").write_text("[]")
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "status.json").write_text('{"state": "interrupted"}')
    runs = load_runs(tmp_path)
    assert runs["test/accuracy"].tolist()[0] == 0.75 and runs["test/accuracy"].isna().sum() == 1
    said = problems(runs)
    assert len(runs) == 2 and len(runs.attrs["problems"]) == 7
    assert "cut/result.json: damaged and left out" in said
    assert "old/result.json: left out, as it is no record of this version (KeyError" in said
    assert "other/result.json: left out, as it holds no config or no metrics" in said
    assert "nan/result.json: test/accuracy is nan, left out of the tables" in said
    assert "good/result.json: left out for" in said and "same settings and seed" in said
    assert "1 runs left out, as they are interrupted, such as" in said


def test_different_data_never_share_a_cell(tmp_path: Path) -> None:
    make_record(tmp_path / "a.json", 0.5, seed=0, fingerprint="a" * 64)
    make_record(tmp_path / "b.json", 0.5, seed=1, fingerprint="b" * 64)
    runs = load_runs(tmp_path)
    assert runs["cell"].nunique() == 2
    assert "different data (fingerprints aaaaaaaa, bbbbbbbb); they are kept apart" in problems(runs)


def test_a_setting_that_an_older_record_lacks_has_its_default(tmp_path: Path) -> None:
    make_record(tmp_path / "new.json", 0.5, seed=0, dataset="decoy_mnist")
    config = json.loads((tmp_path / "new.json").read_text())["config"]
    del config["training"]["patience"]
    config["dataset"]["strengths"] = {"cdep": 10.0}
    make_record(tmp_path / "old.json", 0.5, dataset="decoy_mnist", seed=1,
                record={"config": config | {"seed": 1}})  # fmt: skip
    runs = load_runs(tmp_path)
    assert runs["cell"].nunique() == 1, runs["settings"].tolist()
    assert "1 records of an older version have no training.patience (taken as 2" in problems(runs)


@pytest.mark.parametrize("there", [True, False])
def test_an_empty_folder_says_how_to_fill_it(tmp_path: Path, there: bool) -> None:
    runs = load_runs(tmp_path if there else tmp_path / "no")
    assert len(runs) == 0 and "test/accuracy" not in runs
    assert "no finished run below" in problems(runs) and "cdep-run -m" in problems(runs)


def test_two_thousand_runs_are_read_in_five_seconds(tmp_path: Path) -> None:
    epochs = [{f"{split}/{m}": 0.123456789 for split in "abcd" for m in "efghi"}] * 5
    for n in range(2000):
        make_record(tmp_path / f"{n // 5}" / f"{n % 5}" / "result.json", 0.5, seed=n % 5,
                    strength=1.0 + n // 5, record={"history": epochs})  # fmt: skip
    started = time.perf_counter()
    runs = load_runs(tmp_path)
    assert len(runs) == 2000 and runs["cell"].nunique() == 400
    assert time.perf_counter() - started < 5
