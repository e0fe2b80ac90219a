"""Hydra launcher: each job of a sweep in a process of its own, so that a killed one ends alone."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict


class SubmititLocal(Launcher):
    """Hands jobs one by one to hydra-submitit-launcher's local launcher.

    That launcher by itself starts all jobs at once, and forgets the others when one is killed.

    Args:
        parallel: jobs that run at the same time.
        settings: of the launcher that is wrapped.
    """

    def __init__(self, parallel: int, **settings: Any) -> None:
        self.parallel, self.settings = parallel, settings

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Called by Hydra before `launch`."""
        self.context = {"hydra_context": hydra_context, "task_function": task_function}
        self.config, self.loader = config, hydra_context.config_loader

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run all jobs; one that ends without a result is noted in its folder's status.json."""
        try:
            from hydra_plugins.hydra_submitit_launcher.submitit_launcher import LocalLauncher
        except ImportError as error:
            raise SystemExit(
                "cdep-run: error: hydra/launcher=submitit_local needs hydra-submitit-launcher; "
                "pip install 'cdep-run[submitit]'"
            ) from error
        from submitit.local.local import LocalJob

        LocalJob._results_timeout_s = 1  # the wait for a shared file system; here the disk is local

        def run(overrides: Sequence[str], number: int) -> JobReturn:
            launcher = LocalLauncher(**self.settings)
            launcher.setup(config=self.config, **self.context)
            try:
                return launcher.launch([overrides], number)[0]
            except Exception:  # whatever ended the process
                self._note(overrides, number)
                return JobReturn(overrides=overrides, status=JobStatus.COMPLETED)

        with ThreadPoolExecutor(self.parallel) as pool:
            return list(pool.map(run, job_overrides, count(initial_job_idx)))

    def _note(self, overrides: Sequence[str], number: int) -> None:
        """Write the status that the job could not write."""
        from cdep_run.files import read_json
        from cdep_run.record import STATUS, write_status

        config = self.loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.num = number
        folder = Path(config.hydra.sweep.dir, config.hydra.sweep.subdir)
        status = read_json(folder / STATUS)
        if status is None or status["state"] == "running":
            folder.mkdir(parents=True, exist_ok=True)
            printed = f"{config.hydra.sweep.dir}/.submitit"
            message = f"the process was killed or crashed; what it printed is in {printed}"
            write_status(folder, "failed", config.hydra.overrides.task, message)
