"""Pooled folds: against hand-made predictions, and by the command on runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from cdep_run.errors import ConfigError
from cdep_run.metrics import DETECTION
from cdep_run.results.folds import FoldSetting, compare, fold_settings, main, markdown, pooled
from running import run


def made(folder: Path, scores: list[float], first: int = 0, threshold: float = 0.5) -> Path:
    """A run's folder: examples `first`, …, of classes 0, 1, 0, 1, … with these log-odds."""
    folder.mkdir(parents=True)
    rows = [f"test,{first + i},{i % 2},{score}" for i, score in enumerate(scores)]
    rows += [f"val,{i},{i % 2},0.0" for i in range(4)]
    (folder / "predictions.csv").write_text("split,id,label,log_odds\n" + "\n".join(rows))
    record = {"config": {"penalty": {"name": "none"}}, "threshold": {"value": threshold}}
    (folder / "result.json").write_text(json.dumps(record))
    return folder


def test_each_fold_brings_its_threshold_and_scores_are_ranked_together(tmp_path: Path) -> None:
    folders = [
        made(tmp_path / "0", [-1.0, 3.0], threshold=0.4),
        made(tmp_path / "1", [-5.0, -2.0], first=2, threshold=0.1),
    ]
    found = compare([FoldSetting("none", folders, [])], 10, 0)["settings"]["none"]["splits"]["test"]
    values = {name: cell["value"] for name, cell in found["metrics"].items()}
    assert values["auc"] == 3 / 4  # -2 of class 1 lies below -1 of class 0
    assert values["sensitivity"] == values["specificity"] == 1  # p(-1) < 0.4, p(-2) > 0.1
    assert found["examples"] == [2, 2]


def test_a_paired_difference_is_surer_than_its_parts(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(np.arange(200) % 2, 1)
    worse = scores + rng.normal(0, 0.2, 200)
    first, second = (
        FoldSetting(name, [made(tmp_path / name, list(values))], [])
        for name, values in (("none", scores), ("cdep", worse))
    )
    report = compare([first, second], 60, 0)
    own = report["settings"]["cdep"]["splits"]["test"]
    before = report["settings"]["none"]["splits"]["test"]["metrics"]["auc"]["value"]
    change, auc = own["difference"]["auc"], own["metrics"]["auc"]
    assert change["value"] == pytest.approx(auc["value"] - before)
    assert change["interval"][0] <= change["value"] <= change["interval"][1]
    assert 3 * np.diff(change["interval"]) < np.diff(auc["interval"])
    text = markdown(report)
    assert f"{change['value']:.3f} [" in text and text.count("| cdep | test |") == 2


def test_the_same_setting_differs_by_nothing(tmp_path: Path) -> None:
    both = [
        FoldSetting(n, [made(tmp_path / n, [0.1, 0.2, 0.3, 0.1])], []) for n in ("none", "cdep")
    ]
    report = compare(both, 20, 0)
    found = report["settings"]["cdep"]["splits"]["test"]["difference"]
    assert all(cell == {"value": 0, "interval": [0, 0]} for cell in found.values())
    assert tuple(found) == DETECTION


def test_runs_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    one = made(tmp_path / "0", [1.0, 2.0])
    with pytest.raises(ConfigError, match="2 examples of test are predicted more than once"):
        pooled(FoldSetting("none", [one, made(tmp_path / "1", [1.0, 2.0])], []))
    other = made(tmp_path / "2", [1.0, 2.0, 0.0, 1.0], first=7)
    longer = made(tmp_path / "3", [1.0, 2.0, 0.0, 1.0])
    with pytest.raises(ConfigError, match="not tested on the same examples"):
        compare([FoldSetting("a", [longer], []), FoldSetting("b", [other], [])], 5, 0)
    (one / "predictions.csv").unlink()
    with pytest.raises(ConfigError, match=r"no predictions\.csv"):
        pooled(FoldSetting("none", [one], []))


def test_runs_of_all_folds_become_one_setting_by_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for penalty in ("none", "cdep"):
        for fold in (0, 1):
            said = ("dataset=tiny_spots", f"penalty={penalty}", f"dataset.fold={fold}")
            run(tmp_path / f"{penalty}{fold}", *said, "training.resamples=0", "training.epochs=1")
    found = fold_settings([tmp_path])
    assert (found[0].name, len(found[0].folders)) == ("none", 2)
    assert "CDEP, centred, symmetric" in found[1].name and len(found) == 2
    printed = command(monkeypatch, capsys, tmp_path, "--out", tmp_path / "out", "--resamples", 20)
    assert "| minus none |" in printed == (tmp_path / "out" / "pooled.md").read_text()
    report = json.loads((tmp_path / "out" / "pooled.json").read_text())
    assert report["settings"]["none"]["splits"]["test"]["examples"] == [24, 24]


def test_bad_input_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="error: no finished run below"):
        command(monkeypatch, capsys, tmp_path)
    with pytest.raises(SystemExit, match="error: --resamples is 0; accepted: 1 or more"):
        command(monkeypatch, capsys, tmp_path, "--resamples", 0)


def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> str:
    """What the command prints."""
    monkeypatch.setattr(sys, "argv", ["pool", *map(str, arguments)])
    main()
    return capsys.readouterr().out
