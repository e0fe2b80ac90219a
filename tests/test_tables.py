"""Tables from hand-made records with sums that can be done in the head."""

from __future__ import annotations

import sys

import pytest

from cdep_run.runs import load_runs
from cdep_run.tables import main, markdown
from made_records import make_record


def test_seeds_of_one_setting_become_mean_and_deviation(tmp_path):
    for seed, accuracy in enumerate((0.8, 0.9, 1.0)):
        make_record(tmp_path / f"a{seed}.json", accuracy, seed=seed)
    make_record(tmp_path / "b.json", 0.5, strength=100.0)
    make_record(tmp_path / "c.json", 0.25, penalty="none", selection=0.75)
    assert markdown(load_runs(tmp_path), "accuracy").splitlines() == [
        "| data set | penalty | λ | n | val_shifted | test |",
        "| --- | --- | --- | --- | --- | --- |",
        "| decoy | none | 0 | 1 | 75.0 | 25.0 |",
        "| decoy | CDEP, pair | 10 | 3 | 90.0 ± 10.0 | 90.0 ± 10.0 |",
        "| decoy | CDEP, pair | 100 | 1 | 50.0 | 50.0 |",
    ]


def test_runs_that_differ_in_any_setting_never_share_a_row(tmp_path):
    make_record(tmp_path / "a.json", 0.5)
    make_record(tmp_path / "b.json", 0.75, train_size=100)
    rows = markdown(load_runs(tmp_path), "accuracy").splitlines()[2:]
    assert sorted(row.split("|")[-2].strip() for row in rows) == ["50.0", "75.0"]


@pytest.mark.parametrize("metric", ["accuracy", "magic"])
def test_nothing_to_tabulate_is_said(tmp_path, metric, monkeypatch, capsys, caplog):
    if metric == "magic":
        make_record(tmp_path / "a.json", 0.5)
    monkeypatch.setattr(sys, "argv", ["tables", str(tmp_path), "--metric", metric])
    with pytest.raises(SystemExit) as end:
        main()
    said = f"{end.value.code} {caplog.text}"
    assert ("no run has a metric magic" if metric == "magic" else "no finished run below") in said
