"""Where a run's numbers go after each epoch: a table, TensorBoard, MLflow, Weights & Biases."""

from __future__ import annotations

import csv
import hashlib
import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cdep_run.config.compare import flatten
from cdep_run.errors import ConfigError
from cdep_run.files import write_atomic
from cdep_run.results.record import METRICS

if TYPE_CHECKING:
    from cdep_run.training.loop import Row

log = logging.getLogger(__name__)


class Logger(Protocol):
    """What `loggers` in the configuration builds, with the run's `folder` and `config`."""

    def write(self, history: list[Row]) -> None:
        """Take the rows of all epochs so far; the last one is new."""

    def close(self) -> None:
        """Finish, also after an error."""


class CsvLog:
    """`metrics.csv`, one row an epoch."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self.folder = folder

    def write(self, history: list[Row]) -> None:
        """Write all rows anew."""
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, history[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)
        write_atomic(self.folder / METRICS, table.getvalue().encode())

    def close(self) -> None:
        """Nothing is open."""


class TensorBoardLog:
    """Events in the run's folder `tensorboard/`."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self.folder = folder
        self._writer: Any = None

    def write(self, history: list[Row]) -> None:
        """Write the last row; events of a run that was interrupted later than it are dropped."""
        row = history[-1]
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter  # late: the import takes a second

            self._writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=row["epoch"])
        for name, value in _numbers(row).items():
            self._writer.add_scalar(name, value, row["epoch"])
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()


class MlflowLog:
    """A run of MLflow; a run of ours that is resumed goes on with the same one.

    Args:
        folder: of the run; a tag of the run of MLflow.
        config: its settings; they become parameters.
        tracking_uri: where MLflow keeps runs: a folder, a data base or a server; None: the
            environment's MLFLOW_TRACKING_URI, or MLflow's own choice.
        experiment: name of the experiment.

    Raises:
        ConfigError: MLflow is not installed, or cannot write there.
    """

    def __init__(
        self, folder: Path, config: dict[str, Any], tracking_uri: str | None, experiment: str
    ) -> None:
        try:
            from mlflow import MlflowClient
        except ImportError as error:
            raise ConfigError("loggers=mlflow needs pip install 'cdep-run[mlflow]'") from error
        try:
            self.client = MlflowClient(tracking_uri)
            self.run = self._run(experiment, str(folder.resolve()), config)
        except Exception as error:  # of MLflow, its data base or the network
            reason = str(error).strip().splitlines()[0]
            raise ConfigError(f"loggers.mlflow.tracking_uri={tracking_uri}: {reason}") from error

    def _run(self, experiment: str, folder: str, config: dict[str, Any]) -> str:
        """The id of the run of this folder; a new one gets the settings as parameters."""
        known = self.client.get_experiment_by_name(experiment)
        place = known.experiment_id if known else self.client.create_experiment(experiment)
        quoted = folder.replace("'", "\\'")
        found = self.client.search_runs([place], f"tags.\"cdep_run.folder\" = '{quoted}'")
        if found:
            return found[0].info.run_id
        run = self.client.create_run(place, tags={"cdep_run.folder": folder}).info.run_id
        for name, value in flatten(config).items():
            self.client.log_param(run, name, str(value)[:500])
        return run

    def write(self, history: list[Row]) -> None:
        """Write the last row."""
        row = history[-1]
        for name, value in _numbers(row).items():
            self.client.log_metric(self.run, name, value, step=int(row["epoch"] or 0))

    def close(self) -> None:
        """Mark the run as ended."""
        self.client.set_terminated(self.run)


class WandbLog:
    """A run of Weights & Biases; a run of ours that is resumed goes on with the same one.

    Args:
        folder: of the run; holds what is kept offline.
        config: its settings.
        project: name of the project.
        mode: "offline" writes files alone, for `wandb sync`; "online" sends them; "disabled".

    Raises:
        ConfigError: wandb is not installed, or does not start.
    """

    def __init__(self, folder: Path, config: dict[str, Any], project: str, mode: str) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ConfigError("loggers=wandb needs pip install 'cdep-run[wandb]'") from error
        name = str(folder.resolve())
        try:
            self.run = wandb.init(
                project=project,
                mode=mode,  # type: ignore[arg-type]
                dir=name,
                name=folder.name,
                id=hashlib.sha256(name.encode()).hexdigest()[:16],
                resume="allow" if mode == "online" else None,
                config=config,
            )
        except Exception as error:  # of wandb or the network
            reason = str(error).strip().splitlines()[0]
            raise ConfigError(f"loggers.wandb, mode {mode}: {reason}") from error

    def write(self, history: list[Row]) -> None:
        """Write the last row."""
        self.run.log(_numbers(history[-1]), step=int(history[-1]["epoch"] or 0))

    def close(self) -> None:
        """Finish the run."""
        self.run.finish()


def _numbers(row: Row) -> dict[str, float]:
    """What was measured; a metric that a split cannot have is left out."""
    return {name: value for name, value in row.items() if value is not None}


class EpochLog:
    """Hands each epoch's numbers to the loggers, and says them in one line of the log."""

    def __init__(self, loggers: Sequence[Logger]) -> None:
        self.loggers = loggers

    def __enter__(self) -> EpochLog:
        return self

    def __exit__(self, *exception: object) -> None:
        for logger in self.loggers:
            logger.close()

    def write(self, history: list[Row]) -> None:
        """Take the rows of all epochs so far; the last one is new."""
        for logger in self.loggers:
            logger.write(history)
        row = history[-1]
        accuracies = [
            f"{key.partition('/')[0]} {value:.4f}"
            for key, value in row.items()
            if key.endswith("/accuracy") and value is not None
        ]
        log.info(
            "epoch %d: loss %.4f, penalty %.4g, mean logit %.3g; accuracy: %s; %.1f s",
            *(row[key] for key in ("epoch", "train/loss", "train/penalty", "train/mean_logit")),
            ", ".join(accuracies),
            row["seconds"],
        )
