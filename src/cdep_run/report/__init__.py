"""The command `cdep-report`: finished runs as one self-contained page, and figures for papers."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from cdep_run.config.trust import add_plugins_option
from cdep_run.console import prepare_streams
from cdep_run.report.collect import collect
from cdep_run.report.examples import add_examples
from cdep_run.report.figures import write_figures
from cdep_run.report.page import write_page


def main(words: Sequence[str] | None = None) -> None:
    """Entry point of `cdep-report`; without a finished run nothing is written, exit code 1."""
    prepare_streams()
    parser = argparse.ArgumentParser(prog="cdep-report", description=__doc__)
    parser.add_argument(
        "folders", type=Path, nargs="+", help="folders with finished runs, at any depth"
    )
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="the page to write")
    parser.add_argument("--figures", type=Path, help="folder for the figures as SVG and PDF")
    parser.add_argument("--examples", type=int, default=6, help="images of each data set")
    add_plugins_option(parser)
    arguments = parser.parse_args(words)
    logging.getLogger("cdep_run").addHandler(logging.NullHandler())  # problems are printed below
    report = collect(arguments.folders)
    report.command = shlex.join(["cdep-report", *sys.argv[1:]])
    for problem in report.problems:
        print(f"cdep-report: {problem}", file=sys.stderr)
    if not report.runs:  # named above; a report that is there already stays as it is
        sys.exit(1)
    if arguments.examples > 0:
        known = len(report.problems)
        add_examples(report, arguments.examples)
        for problem in report.problems[known:]:
            print(f"cdep-report: {problem}", file=sys.stderr)
    try:
        write_page(report, arguments.out)
        size = arguments.out.stat().st_size / 1e6
        print(f"{arguments.out}: {len(report.runs)} runs, {size:.2f} MB")
        if arguments.figures:
            for file in write_figures(report, arguments.figures):
                print(file)
    except OSError as error:
        sys.exit(f"cdep-report: error: cannot write: {error}")
