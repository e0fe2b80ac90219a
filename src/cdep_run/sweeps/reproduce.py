"""`make reproduce-tables`: the sweeps of all tables, then the tables and the report.

python -m cdep_run.sweeps.reproduce --parallel 2 data_dir=data table4:dataset.vectors=glove.6B.50d

Whatever is finished is skipped, whatever was interrupted goes on: give the same command again. What
the machine has no data for is left out, and said.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from cdep_run.config.overrides import sweep_folder
from cdep_run.errors import CdepError, ConfigError
from cdep_run.sweeps.manifest import DONE, MANIFEST, Entry, Manifest, progress
from cdep_run.tables.spec import names

SWEEPS = (
    "table1", "table2", "table2_chroma", "table3", "table4", "figure_s5", "lazy", "runtime",
)  # fmt: skip
ALONE = ("runtime",)  # measures time: one job at a time; comes last, as what is read last counts
QUICK_TABLES = ("table2", "table3", "table4")
PUBLISHED = Path("outputs/published")
LOOK_SECONDS = 1.0  # between two looks at the manifest


@dataclass
class Part:
    """One sweep among those to be done.

    Attributes:
        overrides: of the task.
        jobs: as `look` found them, without those that are left out.
        absent: the overrides of the jobs that are left out.
    """

    name: str
    overrides: list[str]
    parallel: int
    jobs: list[Entry] = field(default_factory=list)
    absent: set[str] = field(default_factory=set)

    @property
    def arguments(self) -> list[str]:
        """Which sweep, and its overrides."""
        return [f"+sweep={self.name}", *self.overrides]

    @property
    def folder(self) -> Path:
        """Where it is, as `configs/train.yaml` has it."""
        task = [word for word in self.arguments if not word.startswith("hydra")]
        return Path("outputs/sweeps") / sweep_folder(task, "")

    def command(self, *options: str) -> list[str]:
        """The command line that trains it."""
        if self.parallel > 1:
            several = f"hydra.launcher.parallel={self.parallel}"
            options = (*options, "hydra/launcher=processes", several)
        return own("train", "-m", *self.arguments, *options)

    def look(self) -> None:
        """Read how its jobs stand; none where it was never planned."""
        manifest = Manifest.load(self.folder)
        jobs = manifest.jobs if manifest else []
        self.jobs = [job for job in jobs if " ".join(job.overrides) not in self.absent]

    def planned(self) -> int | None:
        """When its manifest was written, in ns; None where there is none."""
        file = self.folder / MANIFEST
        return file.stat().st_mtime_ns if file.exists() else None

    def todo(self) -> list[Entry]:
        """The jobs that are not done."""
        return [job for job in self.jobs if job.state not in DONE]


def main() -> None:
    """Plan all sweeps, say what is left out, train the rest, write tables and report."""
    arguments = parse()
    parts = [
        Part(name, chosen(arguments.overrides, name), 1 if name in ALONE else arguments.parallel)
        for name in (["quick"] if arguments.quick else SWEEPS)
    ]
    out = Path("outputs/quick" if arguments.quick else "outputs")
    out.mkdir(parents=True, exist_ok=True)
    try:
        with open(out / "reproduce.log", "ab") as log:
            print(f"planning; what the sweeps print is in {log.name}", flush=True)
            for part in parts:
                plan(part, log)
            for part in parts:
                train(part, parts, log)
        failed = [job for part in parts for job in part.todo()]
        for job in failed:
            print(f"{job.state}: {' '.join(job.overrides)}: {job.error or ''}", flush=True)
        written = write_out(parts, out, arguments.quick)
    except CdepError as error:
        sys.exit(f"reproduce-tables: error: {error}")
    except KeyboardInterrupt:
        sys.exit("\ninterrupted; the same command goes on")
    sys.exit(0 if written and not failed else 1)


def parse() -> argparse.Namespace:
    """The command line."""
    first, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        prog="python -m cdep_run.sweeps.reproduce", description=first, epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="configs/sweep/quick.yaml alone")
    parser.add_argument("--parallel", type=int, default=1, help="jobs at a time (default: 1)")
    parser.add_argument(
        "overrides", nargs="*", metavar="OVERRIDE", help="of all sweeps, or SWEEP:OVERRIDE of one"
    )
    arguments = parser.parse_args()
    for word in arguments.overrides:
        sweep, colon, _ = word.partition("=")[0].partition(":")
        if colon and sweep not in (*SWEEPS, "quick"):
            parser.error(f"{word}: no sweep {sweep}; there are {', '.join(SWEEPS)}, quick")
    return arguments


def chosen(overrides: list[str], sweep: str) -> list[str]:
    """Those of the overrides that are for a sweep."""
    parted = [(word, *word.partition("=")[0].partition(":")[:2]) for word in overrides]
    return [
        word.partition(":")[2] if colon else word
        for word, name, colon in parted
        if not colon or name == sweep
    ]


def own(module: str, *arguments: str) -> list[str]:
    """The command of one of this package's programs."""
    return [sys.executable, "-c", f"from cdep_run.{module} import main; main()", *arguments]


def plan(part: Part, log: IO[bytes]) -> None:
    """Plan a sweep, and say what of it cannot be trained here and why.

    Raises:
        CdepError: it cannot be planned at all.
    """
    start, before = log.seek(0, 2), part.planned()
    code = subprocess.run(
        part.command("hydra.sweeper.plan_only=true"), stdout=log, stderr=log
    ).returncode
    part.look()
    reasons: dict[str, list[Entry]] = defaultdict(list)
    for job in part.jobs:
        if job.state == "failed":
            reasons[job.error or ""].append(job)
    if code and (not reasons or part.planned() == before):  # what the manifest says is old
        said = Path(log.name).read_bytes()[start:].decode(errors="replace").strip().splitlines()
        errors = [line for line in said if "rror: " in line] or said[:1]
        reason = errors[-1] if errors else f"exit code {code}"
        raise ConfigError(f"{part.name} cannot be planned: {reason} (all of it: {log.name})")
    for reason, jobs in reasons.items():
        data = ", ".join(dict.fromkeys(job.dataset for job in jobs))
        print(f"left out of {part.name}: {len(jobs)} runs on {data}: {reason}", flush=True)
        part.absent |= {" ".join(job.overrides) for job in jobs}
    part.look()


def train(part: Part, parts: list[Part], log: IO[bytes]) -> None:
    """Train one sweep, and tell how all of them stand whenever that changes."""
    if not part.todo():
        return
    process, shown = subprocess.Popen(part.command(), stdout=log, stderr=log), ""
    try:
        while shown == "" or process.poll() is None:
            shown = tell(part, parts, shown)
            time.sleep(LOOK_SECONDS)
    finally:
        process.wait()
    tell(part, parts, shown)


def tell(part: Part, parts: list[Part], shown: str) -> str:
    """Print how all jobs stand, in place on a terminal, else if a job ended; what was printed."""
    part.look()
    line = f"{part.name}: {progress([job for p in parts for job in p.jobs], part.parallel)}"
    if sys.stdout.isatty():
        print(f"\r{line:<100.100}", end="", flush=True)
    elif line.partition("(")[0] != shown.partition("(")[0]:
        print(line, flush=True)
    return line


def write_out(parts: list[Part], out: Path, quick: bool) -> bool:
    """Tables and report of the finished runs; whether both are there."""
    folders = [str(part.folder) for part in parts if len(part.todo()) < len(part.jobs)]
    if not quick and PUBLISHED.exists():
        folders.insert(0, str(PUBLISHED))
    if not folders:
        print("no run is finished: no tables, no report")
        return False
    tables = QUICK_TABLES if quick else [part.name for part in parts if part.name in names()]
    wanted = [word for name in tables for word in ("--table", name)]
    figures = ("--figures", str(out / "figures"))
    commands = [
        own("tables", *folders, *wanted, "--out", str(out / "tables")),
        own("report", *folders, "--out", str(out / "report.html"), *figures),
    ]
    return all([subprocess.run(command).returncode == 0 for command in commands])


if __name__ == "__main__":
    main()
