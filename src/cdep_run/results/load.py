"""Load the model of a finished run, together with its data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cdep_run.errors import ConfigError
from cdep_run.results.record import read_result
from cdep_run.training.build import build, build_model

if TYPE_CHECKING:
    from torch import nn

    from cdep_run.datasets.base import Bunch


def load(folder: Path) -> tuple[nn.Module, Bunch]:
    """The model of a finished run as it was tested, in evaluation mode, and its data; on the CPU.

    Raises:
        ConfigError: the run did not finish, or its data have changed since.
        CheckpointError: its last two checkpoints are damaged.
    """
    from cdep_run.training.checkpoint import Checkpoints
    from cdep_run.training.schedule import tested_weights

    result, state = read_result(folder), Checkpoints(folder / "checkpoints").load()
    if result is None or state is None:
        raise ConfigError(f"{folder} holds no finished run")
    bunch = build(result["config"]["dataset"])
    if bunch.fingerprint != result["data"]["fingerprint"]:
        raise ConfigError(f"{folder} was trained on other data than there are now in its place")
    model = build_model(result["config"], bunch)
    best = result["config"]["training"]["restore_best"]
    model.load_state_dict(tested_weights(state, best))
    return model.eval(), bunch
