"""Does it still look at the patch? Trained nets judged by explainers and by changing the image.

    python -m cdep_run.evidence RUN_NONE RUN_CDEP --out FOLDER

A penalty that is graded by its own explainer grades itself: Grad-CAM, the input gradient and what
becomes of the prediction when the patch goes or comes judge it here, beside CD. The folders hold
finished runs on images with masks, at any depth; runs that differ in the fold alone are one
setting, each run is judged on its own test images, and the first setting is what others are
compared with. FOLDER gets evidence.json, evidence.md, evidence.csv (every image) and evidence.png.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from cdep_run.errors import CdepError, ConfigError
from cdep_run.evidence.measure import MEASURES, Found, Options, judge
from cdep_run.evidence.summary import COLUMNS, figure, markdown, summarise
from cdep_run.files import write_atomic, write_json
from cdep_run.results.folds import FoldSetting, fold_settings
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
    with tqdm(desc="evidence", unit=" portions", disable=not sys.stderr.isatty()) as bar:
        for setting in chosen:
            for folder in setting.folders:
                judge(setting.name, folder, options, found, bar)
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
    rows = pd.DataFrame(found.rows, columns=COLUMNS)
    write_atomic(out / "evidence.csv", rows.to_csv(index=False).encode())
    write_atomic(out / "evidence.md", markdown(report).encode())
    figure(found, order, options.examples, out / "evidence.png")
    write_json(out / "evidence.json", report)
    return report


def described(chosen: list[FoldSetting], summary: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The measures of each setting, with how many runs they come from and of which code."""
    return {
        one.name: {
            "runs": len(one.folders), "commits": one.commits, "measures": summary[one.name]
        }
        for one in chosen
    }  # fmt: skip


def main() -> None:
    """Judge finished runs and print the table."""
    standard = Options()
    parser = argparse.ArgumentParser(
        prog="python -m cdep_run.evidence", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("folders", type=Path, nargs="+", help="with finished runs, at any depth")
    parser.add_argument("--out", type=Path, required=True, help="folder for what is found")
    parser.add_argument("--split", default=standard.split, help="images to judge on (test)")
    parser.add_argument("--limit", type=int, help="at most so many images of each kind and run")
    parser.add_argument("--avoid", type=Path, help="masks <id>.png that stickers must not cover")
    parser.add_argument("--seed", type=int, default=standard.seed, help="of stickers and bootstrap")
    parser.add_argument("--resamples", type=int, default=standard.resamples, help="of bootstrap")
    parser.add_argument("--relu", default=standard.relu, choices=VARIANTS["relu"])
    parser.add_argument(
        "--measures", nargs="+", default=standard.measures, choices=MEASURES, metavar="NAME",
        help=f"what is measured: {', '.join(MEASURES)} (all)",
    )  # fmt: skip
    parser.add_argument("--examples", type=int, default=standard.examples, help="in the figure (6)")
    arguments = vars(parser.parse_args())
    folders, out = arguments.pop("folders"), arguments.pop("out")
    try:
        for name, least in {"limit": 1, "resamples": 1, "examples": 0, "seed": 0}.items():
            if arguments[name] is not None and arguments[name] < least:
                raise ConfigError(f"--{name} is {arguments[name]}; accepted: {least} or more")
        arguments["measures"] = tuple(arguments["measures"])
        print(markdown(write(folders, out, Options(**arguments))), end="")
    except (CdepError, OSError) as error:
        sys.exit(f"cdep_run.evidence: error: {error}")
