"""`cdep-run fix dataset=…`: the whole path, from data to a model that ignores the feature.

Check the data, train without a penalty and under penalties over a small grid of λ, choose by the
worse of `val` and of `val` with the feature exchanged, judge the chosen net beside the unpenalised
one, and write report and page. The same command goes on where it stopped: nothing is trained twice.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cdep_run.errors import CdepError, ConfigError
from cdep_run.files import write_atomic

PENALTIES = ("cdep", "rrr")
"""What is tried beside no penalty, unless `--penalties` says otherwise."""

GRID = (0.1, 1.0, 10.0)
"""λ of the grid, in multiples of the data set's default."""

COUNTERFACTUAL = "training.counterfactual_val="
"""λ is chosen by the worse of `val` and of `val` with the feature exchanged, unless told."""

STEPS = ("check the data", "train", "choose λ", "judge", "report")


def main(words: Sequence[str]) -> int:
    """Walk the path as the command line says; returns the exit code.

    Raises:
        CdepError: the settings do not compose, the data have faults, or no run finished.
    """
    parser = argparse.ArgumentParser(
        prog="cdep-run fix", description="From data to a model that ignores a feature, and proof."
    )
    parser.add_argument("overrides", nargs="+", help="settings as for training: dataset=images …")
    parser.add_argument("--out", type=Path, default=Path("outputs/fix"), help="folder for it all")
    parser.add_argument(
        "--penalties", nargs="+", default=list(PENALTIES), help=f"({' '.join(PENALTIES)})"
    )
    parser.add_argument("--limit", type=int, default=100, help="examples judged a run (100)")
    given = parser.parse_args(words)
    out = given.out
    step(1, f"page: {out / 'check.html'}")
    from cdep_run.check import main as check

    if check([*given.overrides, "--out", str(out / "check.html")]):
        raise ConfigError("the data have faults, listed above; correct them and repeat the command")
    step(2, f"runs: {out / 'runs'}")
    sweep = write_sweep(given.overrides, given.penalties, out)
    start = [sys.executable, "-c", "from cdep_run.train import main; main()"]
    code = subprocess.run([*start, *sweep]).returncode
    if code == 130:
        return code
    step(3, "")
    none, best = chosen_runs(out / "runs")
    print(f"chosen: {best['label']}, {best['metric']} {best['score']:.3f} on {best['split']}")
    step(4, f"page: {out / 'evidence' / 'evidence.html'}")
    report = judge([none, Path(best["folder"])], out / "evidence", given.limit)
    step(5, f"page: {out / 'report.html'}")
    from cdep_run.report import main as write_report

    write_report([str(out / "runs"), "--out", str(out / "report.html")])
    print(f"\n{report['verdict']}")
    print(f"model:    {best['folder']}\nevidence: {out / 'evidence' / 'evidence.html'}")
    print(f"use it:   cdep-run predict {best['folder']} FILE …")
    return code


def step(number: int, place: str) -> None:
    """Print which of the steps begins."""
    print(f"\n[{number}/{len(STEPS)}] {STEPS[number - 1]}  {place}".rstrip(), flush=True)


def write_sweep(overrides: Sequence[str], penalties: Sequence[str], folder: Path) -> list[str]:
    """Write the sweep's file, no penalty and each penalty over a grid of λ; return its command.

    Args:
        overrides: of the command line.
        penalties: by name.
        folder: gets `configs/sweep/fix.yaml`; the runs go to `runs`.

    Raises:
        ConfigError: a penalty of which the data set knows no λ.
    """
    import yaml

    from cdep_run.check import settings

    advice = settings(list(overrides))["penalties"]
    arms: dict[str, dict[str, str]] = {"none": {"penalty": "none"}}
    for penalty in penalties:
        usual = (advice.get(penalty) or {}).get("strength")
        if not usual:
            known = ", ".join(advice)
            raise ConfigError(f"--penalties {penalty}: the data set has λ for {known} only")
        grid = ",".join(f"{usual * factor:g}" for factor in GRID)
        arms[penalty] = {"penalty": penalty, "penalty.strength": grid}
    sweep = {"hydra": {"mode": "MULTIRUN", "sweeper": {"choose_strength": True, "arms": arms}}}
    text = f"# @package _global_\n# Written by cdep-run fix.\n{yaml.safe_dump(sweep)}"
    file = folder / "configs" / "sweep" / "fix.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, text.encode())
    place = f"hydra.sweep.dir={folder / 'runs'}"
    told = any(word.startswith(COUNTERFACTUAL) for word in overrides)
    choice = [] if told else [f"{COUNTERFACTUAL}exchange"]
    start = ["--config-dir", str(folder / "configs"), "-m", "+sweep=fix"]
    return [*start, *choice, *overrides, place]


def chosen_runs(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Return the folder of the unpenalised run, and the penalised run that selection prefers.

    Of equal scores the smallest λ wins.

    Raises:
        ConfigError: one of the two did not finish.
    """
    from cdep_run.results.runs import load_runs
    from cdep_run.results.selection import scores

    runs = load_runs(folder)
    if not len(runs):
        raise ConfigError(f"no run finished; cdep-run status {folder} shows why")
    runs = runs.assign(score=scores(runs))
    none = runs[runs["penalty"] == "none"]
    others = runs[(runs["penalty"] != "none") & runs["score"].notna()]
    if not len(none) or not len(others):
        missing = "without a penalty" if not len(none) else "under a penalty"
        raise ConfigError(f"no run {missing} finished; cdep-run status {folder} shows why")
    best = others.sort_values(["score", "strength"], ascending=[False, True]).iloc[0]
    return Path(none.iloc[0]["path"]).parent, {
        "folder": Path(best["path"]).parent,
        "label": f"{best['penalty']}, λ = {best['strength']:g}",
        "metric": best["selection_metric"],
        "split": best["selection_split"],
        "score": best["score"],
    }


def judge(folders: Sequence[Path], out: Path, limit: int) -> dict[str, Any]:
    """Write the evidence of some runs to `out`, and return its report."""
    from cdep_run.evidence import write
    from cdep_run.evidence.measure import Options

    try:
        return write(list(folders), out, Options(limit=limit))
    except CdepError as error:
        raise type(error)(f"the runs are trained, but cannot be judged: {error}") from error
