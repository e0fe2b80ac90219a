"""Hydra launcher: each job of a sweep in a process of its own, so that a killed one ends alone."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

GRACE_SECONDS = 30.0  # for a job that is asked to stop to write its checkpoint


class SubmititLocal(Launcher):
    """Hands jobs one by one to submitit.

    hydra-submitit-launcher, whose name in the configuration this takes, starts all jobs at once and
    forgets the others when one is killed.

    Args:
        parallel: jobs that run at the same time; where `threads` is not set they share the cores.
        submitit_folder: what the processes print.
        parameters: of submitit's local executor.
    """

    def __init__(self, parallel: int, submitit_folder: str, **parameters: Any) -> None:
        self.parallel, self.folder, self.parameters = parallel, submitit_folder, parameters
        self.running: set[Any] = set()
        self.stopped = False

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Called by Hydra before `launch`."""
        self.context, self.task, self.config = hydra_context, task_function, config
        self.loader = hydra_context.config_loader

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run all jobs; one that ends without a result is noted in its folder's status.json."""
        try:
            import submitit
        except ImportError as error:
            raise SystemExit(
                "cdep-run: error: hydra/launcher=submitit_local needs submitit; "
                "pip install 'cdep-run[submitit]'"
            ) from error
        from submitit.local.local import LocalJob

        LocalJob._results_timeout_s = 1  # the wait for a shared file system; here the disk is local
        executor = submitit.AutoExecutor(self.folder, cluster="local")
        executor.update_parameters(**self.parameters)

        def run(overrides: Sequence[str], number: int) -> JobReturn:
            if self.stopped:
                return ended(overrides)
            overrides = [*overrides, *self._share(overrides)]
            hydra = (self.context, self.task, self.config, Singleton.get_state())
            job = executor.submit(run_in_child, *hydra, overrides, number)
            self.running.add(job)
            try:
                return job.result()
            except Exception:  # whatever ended the process
                self._note(overrides, number)
                return ended(overrides)
            finally:
                self.running.discard(job)

        with ThreadPoolExecutor(self.parallel) as pool:
            try:
                return list(pool.map(run, job_overrides, count(initial_job_idx)))
            except KeyboardInterrupt:
                self._stop()
                raise

    def _share(self, overrides: Sequence[str]) -> list[str]:
        """The threads of each of several jobs, unless the user set them."""
        said = any(override.startswith("threads=") for override in overrides)
        if self.parallel == 1 or said or self.config.threads is not None:
            return []
        affinity = getattr(os, "sched_getaffinity", None)
        cores = len(affinity(0)) if affinity else os.cpu_count() or 1
        return [f"threads={max(1, cores // self.parallel)}"]

    def _stop(self) -> None:
        """Ask the jobs under way to stop after a checkpoint; end those that do not."""
        self.stopped = True
        for job in self.running:
            with suppress(ProcessLookupError):
                os.kill(int(job.job_id), signal.SIGTERM)
        late = threading.Timer(GRACE_SECONDS, lambda: [job.cancel(False) for job in self.running])
        late.daemon = True
        late.start()

    def _note(self, overrides: Sequence[str], number: int) -> None:
        """Write the status that the job could not write; one that was stopped is no failure."""
        from cdep_run.files import read_json
        from cdep_run.results.record import STATUS, write_status

        config = self.loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.num = number
        folder = Path(config.hydra.sweep.dir, config.hydra.sweep.subdir)
        status = read_json(folder / STATUS)
        if not self.stopped and (status is None or status["state"] in ("running", "pending")):
            folder.mkdir(parents=True, exist_ok=True)
            printed = f"{config.hydra.sweep.dir}/.submitit"
            message = f"the process was killed or crashed; what it printed is in {printed}"
            write_status(folder, "failed", config.hydra.overrides.task, message)


def run_in_child(
    context: HydraContext,
    task: TaskFunction,
    config: DictConfig,
    state: Any,
    overrides: list[str],
    number: int,
) -> JobReturn:
    """The job itself, in its own process; `state` is that of Hydra's singletons."""
    from cdep_run.config.schemas import register_schemas

    Singleton.set_state(state)
    register_schemas()  # again: setting the state lets all plugins store their configurations
    setup_globals()
    job = context.config_loader.load_sweep_config(config, overrides)
    with open_dict(job):
        job.hydra.job.id = job.hydra.job.num = number
    return run_job(
        hydra_context=context,
        task_function=task,
        config=job,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )


def ended(overrides: Sequence[str]) -> JobReturn:
    """What Hydra is told of a job without a result."""
    return JobReturn(overrides=overrides, status=JobStatus.COMPLETED)
