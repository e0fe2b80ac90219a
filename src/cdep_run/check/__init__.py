"""`cdep-run check`: read a data set once, train nothing, and say all that is wrong with it."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdep_run.config.schemas import config_dir, register_schemas
from cdep_run.errors import CdepError, ConfigError
from cdep_run.files import write_atomic

if TYPE_CHECKING:
    from cdep_run.check.findings import CheckReport

INSPECTORS = {
    "cdep_run.datasets.images.images": "cdep_run.check.images",
    "cdep_run.datasets.table.table": "cdep_run.check.table",
    "cdep_run.datasets.text.text": "cdep_run.check.text",
}
"""By the data set's `_target_`, the module whose `inspect(settings)` looks at it unbuilt.

Another kind of data adds itself here; all others are built and looked at as they are."""


def main(arguments: list[str]) -> int:
    """`cdep-run check dataset=… [--out FILE]`; returns 1 if training would refuse the data.

    Raises:
        CdepError: the settings do not compose.
    """
    parser = argparse.ArgumentParser(prog="cdep-run check", description=__doc__)
    parser.add_argument("overrides", nargs="+", help="settings as for training: dataset=images …")
    parser.add_argument("--out", type=Path, default=Path("check.html"), help="the page to write")
    parser.add_argument("--config-dir", type=Path, help="folder of further configurations")
    given = parser.parse_args(arguments)
    report = check(settings(given.overrides, given.config_dir))
    from cdep_run.check.page import as_html, as_text

    print(as_text(report))
    given.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(given.out, as_html(report).encode())
    print(f"page: {given.out}")
    return 1 if report.of("fault") else 0


def settings(overrides: list[str], folder: Path | None = None) -> dict[str, Any]:
    """The data set's settings that these overrides compose.

    Raises:
        ConfigError: they do not.
    """
    from hydra import compose, initialize_config_dir

    from cdep_run.config.composition import COMPOSITION_ERRORS, explain
    from cdep_run.training.build import plain

    register_schemas()
    search = [] if folder is None else [f"hydra.searchpath=[file://{folder.resolve()}]"]
    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            return plain(compose("train", [*overrides, *search]))["dataset"]
    except COMPOSITION_ERRORS as error:
        raise ConfigError(explain(error, overrides)) from error


def check(node: dict[str, Any]) -> CheckReport:
    """Look at the data set with these settings; what it refuses as a whole is one fault."""
    from cdep_run.check.findings import CheckReport

    name = INSPECTORS.get(node["_target_"], "cdep_run.check.any_data")
    try:
        return importlib.import_module(name).inspect(node)
    except CdepError as error:
        report = CheckReport(node["name"])
        report.add("fault", "data set", node["name"], str(error))
        return report
