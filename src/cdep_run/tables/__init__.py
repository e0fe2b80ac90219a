"""The command `cdep-tables`: finished runs into the papers' tables, or any of a user's own."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from cdep_run.console import prepare_streams
from cdep_run.errors import CdepError
from cdep_run.results.runs import load_runs
from cdep_run.results.verdict import verdicts
from cdep_run.tables.build import Table, build
from cdep_run.tables.formats import markdown, write
from cdep_run.tables.spec import Spec, names, read


def main(words: Sequence[str] | None = None) -> None:
    """Entry point of `cdep-tables`; without a finished run nothing is written, exit code 1."""
    prepare_streams()
    arguments = parse(words)
    handler = logging.StreamHandler()  # stderr, where each problem of a run is named
    handler.setFormatter(logging.Formatter("cdep-tables: %(message)s"))
    logging.getLogger("cdep_run").addHandler(handler)
    try:
        specs = {Path(name).stem: read(name) for name in arguments.table or own_first(names())}
        runs = load_runs(*arguments.folders)
        if not len(runs):  # named above; tables that are there already stay as they are
            sys.exit(1)
        print("\n".join(verdicts(runs)), end="\n\n")
        for name, table in tables(specs, runs):
            if not (arguments.table or table.commands):  # a paper's, of which nothing was run
                continue
            write(table, arguments.out, name)
            print(markdown(table), end="\n\n")
    except CdepError as error:
        sys.exit(f"cdep-tables: error: {error}")
    except OSError as error:
        sys.exit(f"cdep-tables: error: cannot write: {error}")
    print(f"{len(runs)} runs; tables as md, tex, csv and html in {arguments.out}", file=sys.stderr)


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="cdep-tables", description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", help="with finished runs, at any depth")
    parser.add_argument(
        "--table",
        action="append",
        metavar="NAME",
        help=f"which table: {', '.join(names())}, or a YAML file; may be repeated; default: all "
        "of which there are runs",
    )
    parser.add_argument("--out", type=Path, default=Path("tables"), help="folder for the files")
    return parser.parse_args(words)


def own_first(tables: list[str]) -> list[str]:
    """Return the names with "all" first: the table of all runs, whatever they are."""
    return sorted(tables, key=lambda name: name != "all")


def tables(specs: dict[str, Spec], runs: pd.DataFrame) -> Iterator[tuple[str, Table]]:
    """Each table by name; runs on parts of the data stand in tables `<name>_quick` of their own."""
    for name, spec in specs.items():
        for quick in (False, True):
            table = build(spec, runs, quick)
            if table is not None:
                yield name + "_quick" * quick, table
