"""Does it still use the feature? Trained nets judged by explainers and by changing the examples.

    cdep-run evidence RUN_NONE RUN_CDEP --out FOLDER

A penalty that is graded by its own explainer grades itself: other explainers, and what becomes of
the prediction when the feature goes, comes or is exchanged, judge it here, beside CD. The folders
hold finished runs on images, texts or a table, at any depth; runs that differ in seed or fold alone
are one setting, each run is judged on its own test examples, and the first setting is what others
are compared with. FOLDER gets evidence.json, evidence.md, evidence.html, evidence.csv (every
example) and, of images, evidence.png.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from cdep_run.batch import Groups
from cdep_run.config.trust import add_plugins_option
from cdep_run.datasets.base import Bunch
from cdep_run.errors import CdepError, ConfigError
from cdep_run.evidence.measure import MEASURES, Found, Options
from cdep_run.evidence.page import page, verdict
from cdep_run.evidence.summary import COLUMNS, figure, markdown, summarise
from cdep_run.files import write_atomic, write_json
from cdep_run.results.folds import FoldSetting, fold_settings
from cdep_run.results.load import load
from cdep_run.results.record import read_result
from cdep_run.variants import VARIANTS


def write(folders: list[Path], out: Path, options: Options) -> dict[str, Any]:
    """Judge the runs below `folders`, and write what came of it to `out`.

    Returns:
        What evidence.json holds.

    Raises:
        CdepError: no finished run, or one whose images cannot be judged.
    """
    chosen = fold_settings(folders)
    out.mkdir(parents=True, exist_ok=True)
    order, found = [setting.name for setting in chosen], Found()
    with tqdm(desc="evidence", unit=" runs", disable=not sys.stderr.isatty()) as bar:
        for setting in chosen:
            for folder in setting.folders:
                judge(setting.name, folder, options, found)
                bar.update()
    report = {
        "split": options.split,
        "limit": options.limit,
        "avoid": options.avoid is not None,
        "seed": options.seed,
        "resamples": options.resamples,
        "relu": options.relu,
        "measures": list(options.measures),
        "settings": described(chosen, summarise(found, order, options)),
        "left_out": found.left_out,
    }
    report["verdict"] = verdict(report)
    rows = pd.DataFrame(found.rows, columns=COLUMNS)
    write_atomic(out / "evidence.csv", rows.to_csv(index=False).encode())
    write_atomic(out / "evidence.md", markdown(report).encode())
    figure(found, order, options.examples, out / "evidence.png")
    write_json(out / "evidence.json", report)
    write_atomic(out / "evidence.html", page(report, out).encode())
    return report


def judge(setting: str, folder: Path, options: Options, found: Found) -> None:
    """Judge one finished run by what its kind of data allows.

    Raises:
        CdepError: the run cannot be loaded, or its data name nothing that must not matter.
    """
    # Here, so that `python -m` can run the modules of this package by themselves.
    from cdep_run.evidence.images import judge_images
    from cdep_run.evidence.projected import judge_projected
    from cdep_run.evidence.rows import judge_rows
    from cdep_run.evidence.texts import judge_texts

    model, bunch = load(folder)
    if options.split not in bunch.splits:
        raise ConfigError(f"--split is {options.split}; {bunch.name} has {', '.join(bunch.splits)}")
    groups = bunch.splits[options.split].batch(torch.arange(1)).groups
    judges = {"text": judge_texts, "table": judge_rows, "projected": judge_projected}
    kind = kind_of(bunch, groups)
    if kind != "text" and groups is None:
        raise ConfigError(f"{folder}: {bunch.name} names nothing that must not matter")
    judges.get(kind, judge_images)(setting, model, bunch, options, found)


def kind_of(bunch: Bunch, groups: Groups | None) -> str:
    """Return what kind of evidence suits the data: "text", "table", "projected" or "images".

    Raises:
        ConfigError: none of them.
    """
    if bunch.vocabulary is not None:
        return "text"
    if (bunch.preprocessing or {}).get("kind") == "table":
        return "table"
    if groups is not None and groups.projection is not None:
        return "projected"
    if bunch.display is not None and len(bunch.input_shape) == 3:
        return "images"
    raise ConfigError(f"{bunch.name}: its examples are no images, no texts and no table")


def described(chosen: list[FoldSetting], summary: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The measures of each setting, its scores, how many runs they come from and of which code."""
    return {
        one.name: {
            "runs": len(one.folders),
            "commits": one.commits,
            "scores": mean_scores(one.folders),
            "measures": summary[one.name],
        }
        for one in chosen
    }


def mean_scores(folders: Sequence[Path]) -> dict[str, dict[str, float]]:
    """Return the metrics in the runs' records, by split: means over those that have them."""
    sums: dict[str, dict[str, list[float]]] = {}
    for folder in folders:
        for split, scores in ((read_result(folder) or {}).get("metrics") or {}).items():
            for name, value in scores.items():
                if value is not None:
                    sums.setdefault(split, {}).setdefault(name, []).append(value)
    return {
        split: {name: sum(values) / len(values) for name, values in scores.items()}
        for split, scores in sums.items()
    }


def main(words: Sequence[str] | None = None) -> None:
    """Judge finished runs, and print the verdict and the table."""
    standard = Options()
    parser = argparse.ArgumentParser(
        prog="cdep-run evidence", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("folders", type=Path, nargs="+", help="with finished runs, at any depth")
    parser.add_argument("--out", type=Path, required=True, help="folder for what is found")
    parser.add_argument("--split", default=standard.split, help="examples to judge on (test)")
    parser.add_argument("--limit", type=int, help="at most so many examples of each kind and run")
    parser.add_argument("--avoid", type=Path, help="masks <id>.png that stickers must not cover")
    parser.add_argument("--seed", type=int, default=standard.seed, help="of stickers and bootstrap")
    parser.add_argument("--resamples", type=int, default=standard.resamples, help="of bootstrap")
    parser.add_argument("--relu", default=standard.relu, choices=VARIANTS["relu"])
    parser.add_argument(
        "--measures", nargs="+", default=standard.measures, choices=MEASURES, metavar="NAME",
        help=f"what is measured: {', '.join(MEASURES)} (all)",
    )  # fmt: skip
    parser.add_argument("--examples", type=int, default=standard.examples, help="in the figure (6)")
    add_plugins_option(parser)
    arguments = vars(parser.parse_args(words))
    folders, out = arguments.pop("folders"), arguments.pop("out")
    try:
        for name, least in {"limit": 1, "resamples": 1, "examples": 0, "seed": 0}.items():
            if arguments[name] is not None and arguments[name] < least:
                raise ConfigError(f"--{name} is {arguments[name]}; accepted: {least} or more")
        arguments["measures"] = tuple(arguments["measures"])
        report = write(folders, out, Options(**arguments))
        print(f"{report['verdict']}\n\n{markdown(report)}\npage: {out / 'evidence.html'}")
    except (CdepError, OSError) as error:
        sys.exit(f"cdep-run evidence: error: {error}")
