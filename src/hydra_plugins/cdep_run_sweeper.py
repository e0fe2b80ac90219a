"""Hydra sweeper: arms with a grid each, every job once, finished ones skipped, resumable."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

log = logging.getLogger(__name__)


class ArmsSweeper(Sweeper):
    """Hands the sweep to `cdep_run.sweeps.sweep`; options: configs/hydra/sweeper/arms.yaml."""

    def __init__(self, **options: Any) -> None:
        self.options: Any = OmegaConf.to_container(
            OmegaConf.create(options), resolve=True, enum_to_str=True
        )

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Called by Hydra before `sweep`."""
        loader = hydra_context.config_loader
        self.compose = lambda overrides: loader.load_sweep_config(config, overrides)
        self.folder = Path(config.hydra.sweep.dir)
        self.parallel = config.hydra.launcher.get("parallel", 1)
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def launch(self, batch: list[list[str]]) -> None:
        """Run jobs until all have ended.

        In this very process they are started one by one, so that one of which Hydra cannot even
        open the log file, as on a full disk, does not end the others.
        """
        alone = isinstance(self.launcher, BasicLauncher)
        for number, jobs in enumerate([[job] for job in batch] if alone else [batch]):
            try:
                self.launcher.launch(jobs, initial_job_idx=number)
            except OSError as error:
                log.error("cannot start %s: %s", " ".join(jobs[0]), error)

    def sweep(self, arguments: list[str]) -> Any:
        """Run the jobs; the process ends with 1 unless all are done, with 130 if interrupted."""
        from cdep_run.errors import CdepError
        from cdep_run.files import alone_in
        from cdep_run.sweeps.sweep import Sweep, sweep_manifest
        from cdep_run.training.signals import handle, raise_interrupt, restore

        before = handle(raise_interrupt)
        try:
            with alone_in(self.folder):
                sweep = Sweep(
                    sweep_manifest(self.folder, arguments, self.parallel),
                    arguments,
                    self.options,
                    self.compose,
                    self.launch,
                )
                done = sweep.run()
        except CdepError as error:
            sys.exit(f"cdep-run: error: {error}")
        except KeyboardInterrupt:
            print(f"interrupted; to go on: cdep-run resume {self.folder}", file=sys.stderr)
            sys.exit(130)
        finally:
            restore(before)
        if not done:
            sys.exit(1)
