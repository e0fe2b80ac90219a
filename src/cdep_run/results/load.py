"""Load the model of a finished run: alone, or together with its data."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdep_run.config.trust import trust
from cdep_run.errors import CdepError, CheckpointError, ConfigError, DamagedError
from cdep_run.files import write_atomic
from cdep_run.results.record import MODEL, check_file, read_result
from cdep_run.training.build import build, build_model

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cdep_run.datasets.base import Bunch


@dataclass
class LoadedRun:
    """A finished run without its data.

    Attributes:
        model: as it was tested, in evaluation mode, on the CPU.
        preprocessing: how raw examples become the model's inputs, see `Bunch.preprocessing`; None:
            the data set does not say.
        classes: what each class is called, in the order of the logits; None: by its number.
        groups: what each group that must not matter is called; None: they have no names.
        config: the run's settings.
        result: all that its result.json holds.
        folder: of the run.
    """

    model: nn.Module
    preprocessing: dict[str, Any] | None
    classes: list[str] | None
    groups: list[str] | None
    config: dict[str, Any]
    result: dict[str, Any]
    folder: Path


def load_run(run: str | os.PathLike[str], plugins: Iterable[str] = ()) -> LoadedRun:
    """Load a finished run's model and what is needed to use it; asks for neither data nor network.

    Args:
        run: its folder.
        plugins: packages of your own that its settings may name, see `config.trust`.

    Raises:
        ConfigError: no finished run there, or one of a version that kept no model apart.
        DamagedError: the model is not the one that was tested.
        TrustError: its settings name code of another package.
    """
    trust(plugins)
    folder = Path(run)
    result = finished(folder)
    if "model" not in result:
        raise ConfigError(
            f"{folder} is of a version that kept no {MODEL}; its model cannot be built without its "
            "data: train it again"
        )
    model = build_model(_rebuilt(result), inputs_of(result))
    model.load_state_dict(tested_state(folder, result))
    data = result["data"]
    return LoadedRun(
        model=model.eval(),
        preprocessing=data.get("preprocessing"),
        classes=data.get("classes"),
        groups=data.get("groups"),
        config=result["config"],
        result=result,
        folder=folder,
    )


def load(folder: Path) -> tuple[nn.Module, Bunch]:
    """The model of a finished run as it was tested, in evaluation mode, and its data; on the CPU.

    Raises:
        ConfigError: the run did not finish, or its data are not there or have changed since.
        DamagedError, CheckpointError: the model is not the one that was tested.
        TrustError: its settings name code of a package that the user has not said to trust.
    """
    result = finished(folder)
    try:
        bunch = build(result["config"]["dataset"])
    except CdepError as error:
        raise type(error)(f"{folder} cannot be judged without its data: {error}") from error
    if bunch.fingerprint != result["data"]["fingerprint"]:
        raise ConfigError(f"{folder} was trained on other data than there are now in its place")
    model = build_model(_rebuilt(result), bunch)
    model.load_state_dict(tested_state(folder, result))
    return model.eval(), bunch


def finished(folder: Path) -> dict[str, Any]:
    """Return the result of a finished run.

    Raises:
        ConfigError: it did not finish.
    """
    result = read_result(folder)
    if result is None:
        raise ConfigError(f"{folder} holds no finished run: there is no result.json")
    return result


def save_model(folder: Path, model: nn.Module, bunch: Bunch) -> dict[str, Any]:
    """Write the tested model's weights to model.safetensors.

    A model with state that is no tensor has no such file: its checkpoint holds it.

    Returns:
        What result.json must say so that the model can be built without the data.
    """
    from safetensors.torch import save
    from torch import Tensor

    state = model.state_dict()
    if all(isinstance(value, Tensor) for value in state.values()):
        # Copies: safetensors refuses tensors that share memory.
        alone = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
        write_atomic(folder / MODEL, save(alone))
    vectors = bunch.vectors
    return {
        "rebuild": getattr(model, "rebuild_arguments", {}),
        "input_shape": list(bunch.input_shape),
        "num_classes": bunch.num_classes,
        "vectors": None if vectors is None else list(vectors.shape),
        "vocabulary_size": None if bunch.vocabulary is None else len(bunch.vocabulary),
        "padding": bunch.padding,
    }


def inputs_of(result: dict[str, Any]) -> Bunch:
    """Return a bunch without examples that tells a model of which shape its inputs are."""
    import torch

    from cdep_run.datasets.base import Bunch

    facts, data = result["model"], result["data"]
    size, vectors = facts["vocabulary_size"], facts["vectors"]
    return Bunch(
        name=data["name"],
        splits={},
        num_classes=facts["num_classes"],
        input_shape=tuple(facts["input_shape"]),
        selection_split=result["selection_split"],
        fingerprint=data["fingerprint"],
        vectors=None if vectors is None else torch.zeros(vectors),
        vocabulary=None if size is None else [""] * size,
        padding=facts["padding"],
    )


def _rebuilt(result: dict[str, Any]) -> dict[str, Any]:
    """The settings with those of the model so that nothing is fetched; older runs: as they are."""
    config = result["config"]
    return config | {"model": config["model"] | result.get("model", {}).get("rebuild", {})}


def tested_state(folder: Path, result: dict[str, Any]) -> dict[str, Tensor]:
    """Return the weights that a finished run was tested with.

    Raises:
        DamagedError: model.safetensors is gone or damaged.
        CheckpointError: a run without that file, and its last checkpoint is gone, damaged, or of
            another epoch than the result.
    """
    if MODEL in result.get("files", {}):
        from safetensors import SafetensorError
        from safetensors.torch import load as parse

        path = check_file(folder, result, MODEL)
        try:
            return parse(path.read_bytes())
        except SafetensorError as error:
            raise DamagedError(f"{path} is damaged: {error}") from error
    return _checkpointed(folder, result)


def _checkpointed(folder: Path, result: dict[str, Any]) -> dict[str, Tensor]:
    """The tested weights of a run that kept none apart, from its last checkpoint."""
    from cdep_run.training.checkpoint import Checkpoints
    from cdep_run.training.schedule import tested_weights

    state = Checkpoints(folder / "checkpoints").load()
    if state is None:
        raise CheckpointError(f"{folder} holds a record alone: no checkpoint, so no weights")
    epoch, step = state["progress"]["epoch"], state["progress"]["step"]
    if (epoch, step) != (result["epochs"], 0):
        raise CheckpointError(
            f"{folder}: its newest undamaged checkpoint is of epoch {epoch}, step {step}, but the "
            f"run was tested after epoch {result['epochs']}: the tested weights are gone"
        )
    return tested_weights(state, result["config"]["training"]["restore_best"])
