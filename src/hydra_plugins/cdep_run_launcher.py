"""Hydra launcher: each job of a sweep in a process of its own, so that a killed one ends alone."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

GRACE_SECONDS = 30.0  # for a job that is asked to stop to write its checkpoint
OURS_ALONE = ("hydra/launcher", "hydra.launcher", "hydra/sweeper", "hydra.sweeper", "hydra.sweep",
              "hydra.run", "hydra.mode")  # fmt: skip
"""Overrides of the sweep that its jobs, each a run of its own, do not take over."""


class Processes(Launcher):
    """Runs the command `cdep-run` for each job, some at the same time.

    Args:
        parallel: jobs that run at the same time; where `threads` is not set they share the cores.
        gpus_per_job: GPUs that each job sees, others than those of the jobs beside it as far as
            there are enough; 0: all.
        timeout_min: minutes after which a job is asked to stop.
    """

    def __init__(self, parallel: int, gpus_per_job: int, timeout_min: float) -> None:
        self.parallel, self.gpus, self.seconds = parallel, gpus_per_job, 60 * timeout_min
        self.running: set[subprocess.Popen[bytes]] = set()
        self.stopped = False
        self.places: queue.SimpleQueue[int] = queue.SimpleQueue()
        for place in range(parallel):
            self.places.put(place)

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Called by Hydra before `launch`."""
        self.config, self.loader = config, hydra_context.config_loader

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run all jobs; one that ends without a result is noted in its folder's status.json."""
        with ThreadPoolExecutor(self.parallel) as pool:
            try:
                return list(pool.map(self.run, job_overrides, count(initial_job_idx)))
            except KeyboardInterrupt:
                self.stopped = True
                for process in list(self.running):
                    process.terminate()
                raise

    def run(self, overrides: Sequence[str], number: int) -> JobReturn:
        """One job from its start to its end."""
        if not self.stopped:
            config = self.loader.load_sweep_config(self.config, list(overrides))
            with open_dict(config):
                config.hydra.job.num = number
            folder = Path(config.hydra.sweep.dir, config.hydra.sweep.subdir)
            place = self.places.get()
            try:
                self.wait_for(self.start(overrides, folder, place))
            finally:
                self.places.put(place)
            self.note(folder, config)
        return JobReturn(overrides=overrides, status=JobStatus.COMPLETED)

    def start(self, overrides: Sequence[str], folder: Path, place: int) -> subprocess.Popen[bytes]:
        """Start a job; what it prints goes to a file in `.jobs` in the sweep's folder."""
        from cdep_run.config.commands import literal

        sources = self.config.hydra.runtime.config_sources
        flags = [f"--config-dir={s.path}" for s in sources if s.provider == "command-line"]
        outer = [
            word
            for word in self.config.hydra.overrides.hydra
            if not word.lstrip("+~").startswith(OURS_ALONE)
        ]
        words = [*flags, *outer, *overrides, *self.threads(overrides)]
        words += [f"hydra.run.dir={literal(str(folder))}", "hydra.mode=RUN"]
        output = printed_by(folder)
        output.parent.mkdir(parents=True, exist_ok=True)
        with open(output, "ab") as file:
            process = subprocess.Popen(
                [sys.executable, "-c", "from cdep_run.train import main; main()", *words],
                env=self.environment(place),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,  # Ctrl-C is for the sweep, which stops its jobs
            )
        self.running.add(process)
        return process

    def wait_for(self, process: subprocess.Popen[bytes]) -> None:
        """Wait for a job's end; one that takes too long or is to stop has some time to save."""
        try:
            waited = 0.0
            while not self.stopped and waited < self.seconds:
                try:
                    process.wait(step := min(1.0, self.seconds))
                    return
                except subprocess.TimeoutExpired:
                    waited += step
            process.terminate()
            process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        finally:
            self.running.discard(process)

    def threads(self, overrides: Sequence[str]) -> list[str]:
        """The threads of each of several jobs, unless the user set them."""
        said = any(override.startswith("threads=") for override in overrides)
        if self.parallel == 1 or said or self.config.threads is not None:
            return []
        affinity = getattr(os, "sched_getaffinity", None)
        cores = len(affinity(0)) if affinity else os.cpu_count() or 1
        return [f"threads={max(1, cores // self.parallel)}"]

    def environment(self, place: int) -> dict[str, str]:
        """The environment of a job: what this process can import, and the GPUs of its place."""
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        environment = os.environ | {"PYTHONPATH": paths}
        gpus = visible_gpus() if self.gpus else []
        if gpus:
            mine = [gpus[(place * self.gpus + k) % len(gpus)] for k in range(self.gpus)]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(dict.fromkeys(mine))
        return environment

    def note(self, folder: Path, config: DictConfig) -> None:
        """Write the status that a job could not write; one that was stopped is no failure."""
        from cdep_run.errors import CdepError
        from cdep_run.files import read_record
        from cdep_run.results.record import STATUS, write_status

        try:
            status = read_record(folder / STATUS)
        except CdepError:
            status = None
        if not self.stopped and (status is None or status["state"] in ("running", "pending")):
            folder.mkdir(parents=True, exist_ok=True)
            printed = printed_by(folder)
            message = f"the process was killed or crashed; what it printed is in {printed}"
            write_status(folder, "failed", config.hydra.overrides.task, message)


def printed_by(folder: Path) -> Path:
    """Return the file with what the job in `folder` printed."""
    return folder.parent / ".jobs" / f"{folder.name}.txt"


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named: Any = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]
