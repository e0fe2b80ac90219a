"""The command `cdep-run`: compose, build, fit, evaluate, write."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from cdep_run.allocator import keep_freed_memory
from cdep_run.config import (
    Training,
    check,
    config_dir,
    refuse_changes,
    register_schemas,
    with_first_choices,
)
from cdep_run.errors import CdepError, CheckpointError, ConfigError
from cdep_run.files import alone_in, write_atomic, write_json
from cdep_run.record import (
    CONFIG,
    RESULT,
    EpochLog,
    environment,
    read_result,
    selection_metric,
    summary,
    write_predictions,
    write_status,
)
from cdep_run.signals import Interrupted, StopRequest

if TYPE_CHECKING:
    import torch
    from torch import nn

    from cdep_run.datasets.base import Bunch
    from cdep_run.loop import Trainer

log = logging.getLogger(__name__)


def main() -> None:
    """Entry point of `cdep-run`; with `resume` or `status` and folders, of `cdep_run.again`."""
    if len(sys.argv) > 1 and sys.argv[1] in ("resume", "status"):
        from cdep_run import again

        try:
            if sys.argv[1] == "status":
                sys.exit(again.status(sys.argv[2:]))
            sys.argv[1:] = again.resume(sys.argv[2:])
        except CdepError as error:
            sys.exit(f"cdep-run: error: {error}")
    if {"-m", "--multirun"} & set(sys.argv):
        sys.argv[1:] = with_first_choices(sys.argv[1:])
    register_schemas()
    try:
        hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="train")(job)()
    except KeyboardInterrupt:  # outside of a job; a job answers by itself
        sys.exit(130)


def job(config: DictConfig) -> float | None:
    """One run in its own folder, alone there; status.json tells how it ended.

    In a sweep an error ends this job alone; otherwise it ends the command: one line for what a
    user can mend, a traceback for the rest.

    Returns:
        The selection metric on the selection split, for sweepers that search; None: failed.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    with ExitStack() as stack:
        try:
            stack.enter_context(alone_in(folder, wait=sweep))
        except ConfigError as error:  # status.json is that of the other process
            sys.exit(f"cdep-run: error: {error}")
        result = noted(config, folder, sweep)
    if result is None:
        return None
    for split, scores in result["metrics"].items():
        shown = [f"{name} {value:.4g}" for name, value in scores.items() if value is not None]
        log.info("%-12s %s", split, ", ".join(shown))
    if not sweep:
        print(folder)
    return result["metrics"][result["selection_split"]][selection_metric(result)]


def noted(config: DictConfig, folder: Path, sweep: bool) -> dict[str, Any] | None:
    """`train`, with status.json kept up to date; None where a job of a sweep failed."""
    hydra_config = HydraConfig.get()
    overrides = hydra_config.overrides.task
    write_status(folder, "running", overrides)
    try:
        result = train(plain(config), folder)
    except (Interrupted, KeyboardInterrupt):
        write_status(folder, "interrupted", overrides)
        again = f"repeat the command with hydra.run.dir={folder} resume=true"
        if sweep:
            again = f"cdep-run resume {hydra_config.sweep.dir}"
        log.warning("interrupted; to go on: %s", again)
        sys.exit(130)
    except Exception as error:
        expected = isinstance(error, CdepError)
        message = str(error) if expected else f"{type(error).__name__}: {error}"
        write_status(folder, "failed", overrides, message)
        log.error("cdep-run: error: %s", message, exc_info=True)
        if not sweep and expected:
            sys.exit(1)
        if not sweep:
            raise
        return None
    write_status(folder, "finished", overrides)
    return result


def train(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train as `config` says, in `folder`, and return what was written to result.json.

    Raises:
        CdepError: a setting, the data or a checkpoint will not do, or the loss is not finite.
        Interrupted: stopped on request, after a checkpoint.
    """
    check(config)
    if (result := read_result(folder)) is not None:
        if not config["resume"]:
            raise ConfigError(f"{folder} holds a finished run; choose another hydra.run.dir")
        refuse_changes(result["config"], config)
        log.info("%s holds a finished run: nothing to do", folder)
        return result

    import torch  # not before: it takes seconds, and all of the above is quick

    from cdep_run.checkpoint import Checkpoints
    from cdep_run.loop import Trainer, reseed

    checkpoints = Checkpoints(folder / "checkpoints")
    state = checkpoints.load()
    if state is not None:
        if not config["resume"]:
            raise ConfigError(
                f"{folder} holds an unfinished run; add resume=true, or choose another "
                "hydra.run.dir"
            )
        refuse_changes(state["config"], config)
    device = prepare(config["device"], config["threads"])
    bunch = build(config["dataset"]).to(device)
    if state is not None and state["fingerprint"] != bunch.fingerprint:
        raise CheckpointError(f"{folder} was trained on other data: their fingerprints differ")
    penalty = build(config["penalty"])
    check_data(config, bunch, penalty)
    write_atomic(folder / CONFIG, OmegaConf.to_yaml(config).encode())
    reseed(config["seed"])
    model = build_model(config, bunch).to(device)
    check_model(config, bunch, model)
    bunch = ready(config, bunch, model, penalty)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    bf16 = config["precision"] == "bf16"
    identity = {"config": config, "fingerprint": bunch.fingerprint}
    with StopRequest() as stop, EpochLog(folder, config["training"]["tensorboard"]) as epochs:
        trainer = Trainer(
            model=model,
            optimizer=build_optimizer(config["optimizer"], weights),
            penalty=penalty,
            strength=config["penalty"]["strength"],
            bunch=bunch,
            training=Training(**config["training"]),
            seed=config["seed"],
            autocast=lambda: torch.autocast(device.type, torch.bfloat16, enabled=bf16),
            save=lambda new: checkpoints.save(new | identity),
            report=epochs.write,
            stop=lambda: stop.received,
            class_weights=bunch.class_weights,
        )
        if state is not None:
            trainer.load_state(state)
            log.info("going on at epoch %d, step %d", *trainer.position())
        log.info("training on %s, %d examples", device, len(bunch.splits["train"]))
        trainer.fit()
    result = summary(config, bunch, trainer.progress) | environment(device)
    if bunch.positive is not None:
        add_detection(result, trainer, folder)
    write_json(folder / RESULT, result)
    return result


def add_detection(result: dict[str, Any], trainer: Trainer, folder: Path) -> None:
    """Write what the trained model says of each example; add `metrics.judge` to the result."""
    from cdep_run.metrics import judge

    predictions = trainer.predictions()
    write_predictions(folder, predictions)
    chosen_on, resamples = result["selection_split"], result["config"]["training"]["resamples"]
    found = judge(predictions, chosen_on, resamples, result["seed"])
    for split, values in found.pop("metrics").items():
        result["metrics"][split] |= values
    result |= found


def load(folder: Path) -> tuple[nn.Module, Bunch]:
    """The model of a finished run as it was tested, in evaluation mode, and its data; on the CPU.

    Raises:
        ConfigError: the run did not finish, or its data have changed since.
        CheckpointError: its last two checkpoints are damaged.
    """
    from cdep_run.checkpoint import Checkpoints

    result, state = read_result(folder), Checkpoints(folder / "checkpoints").load()
    if result is None or state is None:
        raise ConfigError(f"{folder} holds no finished run")
    bunch = build(result["config"]["dataset"])
    if bunch.fingerprint != result["data"]["fingerprint"]:
        raise ConfigError(f"{folder} was trained on other data than there are now in its place")
    model = build_model(result["config"], bunch)
    best = result["config"]["training"]["restore_best"]
    model.load_state_dict(state["best" if best else "model"])
    return model.eval(), bunch


def plain(config: DictConfig) -> dict[str, Any]:
    """The configuration as dicts, lists, strings and numbers, with everything filled in."""
    return OmegaConf.to_container(  # type: ignore[return-value]
        config, resolve=True, throw_on_missing=True, enum_to_str=True
    )


def build(node: dict[str, Any], **extra: Any) -> Any:
    """Call what `_target_` names with the node's other values as keyword arguments.

    Raises:
        ConfigError: it cannot be imported, or has no such arguments.
    """
    not_arguments = ("_target_", "name", "strength", "penalties")
    arguments = {key: value for key, value in node.items() if key not in not_arguments} | extra
    made = target(node)
    with suppress(ValueError):  # of a function in C the arguments are not known
        try:
            signature(made).bind(**arguments)
        except TypeError as error:
            raise ConfigError(f"{node['_target_']} cannot be called so: {error}") from error
    return made(**arguments)


def build_optimizer(node: dict[str, Any], weights: Sequence[torch.Tensor]) -> torch.optim.Optimizer:
    """The optimiser of `weights`.

    Raises:
        ConfigError: it refuses a value, such as a negative weight decay.
    """
    try:
        return build(node, params=weights)
    except ValueError as error:
        raise ConfigError(f"optimizer {node['_target_']}: {error}") from error


def target(node: dict[str, Any]) -> Any:
    """What `_target_` names."""
    module, _, name = node["_target_"].rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"_target_: {node['_target_']} cannot be imported ({error}); a module of your own must "
            "be installed or lie on PYTHONPATH"
        ) from error


def build_model(config: dict[str, Any], bunch: Bunch) -> nn.Module:
    """The model for the data's inputs and classes; its initial weights draw from torch's seed."""
    shape, classes = bunch.input_shape, bunch.num_classes
    name = {"name": config["model"]["name"]} if "name" in config["model"] else {}
    vectors: dict[str, Any] = {}
    if "vectors" in signature(target(config["model"])).parameters:
        if bunch.vectors is None:
            wanted = config["model"]["_target_"]
            raise ConfigError(f"model {wanted} is for text; {bunch.name} has no word vectors")
        vectors = {"vectors": bunch.vectors}
    return build(config["model"], input_shape=shape, num_classes=classes, **name, **vectors)


def check_model(config: dict[str, Any], bunch: Bunch, model: nn.Module) -> None:
    """Refuse a model that cannot read the data, before a step is taken.

    Raises:
        ConfigError: its forward pass fails on a few examples, or does not return logits `[N, C]`.
    """
    import torch

    split = bunch.splits["train"]
    count = min(2, len(split))
    inputs = split.batch(torch.arange(count, device=split.labels.device)).inputs
    what = f"model {config['model']['_target_']}, given inputs {list(inputs.shape)} of {bunch.name}"
    training = model.training
    try:
        with torch.no_grad():
            logits = model.eval()(inputs)
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        message = str(error).partition("\n")[0]
        raise ConfigError(f"{what}, fails: {type(error).__name__}: {message}") from error
    finally:
        model.train(training)
    if not isinstance(logits, torch.Tensor) or logits.shape != (count, bunch.num_classes):
        shape = list(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ConfigError(f"{what}, returns {shape}; it must return [{count}, {bunch.num_classes}]")


def ready(config: dict[str, Any], bunch: Bunch, model: nn.Module, penalty: Any) -> Bunch:
    """The data as the loop takes it: features where a frozen trunk's are kept, else as it is.

    Raises:
        CdepError: inputs that cannot be read, a full disk.
    """
    from cdep_run.models.frozen import FrozenTrunk
    from cdep_run.penalties.base import works_on_features

    off = config["penalty"]["strength"] == 0
    if (
        bunch.cache_dir is not None
        and isinstance(model, FrozenTrunk)
        and model.frozen
        and (off or works_on_features(penalty))
    ):
        from cdep_run.features import from_cache

        rules = None if off else getattr(penalty, "rules", None)
        images = not off and rules is None and penalty.needs_groups
        return from_cache(bunch, model, rules, config["precision"], images)
    for split in bunch.splits.values():
        split.check()
    return bunch


def prepare(device: str, threads: int | None) -> torch.device:
    """Choose the device, the best there is for `auto`, and make it repeat itself."""
    import torch

    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if device == "auto":
        device = next(kind for kind, there in available.items() if there)
    if not available[device.partition(":")[0]]:
        raise ConfigError(f"device is {device}, but torch {torch.__version__} finds none here")
    if threads is not None:
        torch.set_num_threads(threads)
    if device == "cpu":
        keep_freed_memory()
    if device.startswith("cuda"):
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return torch.device(device)


def check_data(config: dict[str, Any], bunch: Bunch, penalty: Any) -> None:
    """Refuse settings that do not fit the data, before a step is taken.

    Raises:
        ConfigError: batch larger than the data, no groups, or a mask of the wrong shape.
    """
    split, wanted = bunch.splits["train"], config["training"]["batch_size"]
    if wanted > len(split):
        raise ConfigError(
            f"training.batch_size is {wanted}, but {bunch.name} has {len(split)} training examples"
        )
    if config["penalty"]["strength"] == 0 or not penalty.needs_groups:
        return
    import torch

    batch = split.batch(torch.zeros(1, dtype=torch.int64, device=split.labels.device))
    if batch.groups is None:
        raise ConfigError(
            f"penalty {config['penalty']['name']} needs to know which features must not matter, "
            f"and {bunch.name} does not say; choose penalty=none or another data set"
        )
    mask, inputs = batch.groups.mask, batch.inputs
    features = tuple(mask.shape[2:])
    fits = len(features) == inputs.dim() - 1 and all(
        size in (1, wanted) for size, wanted in zip(features, inputs.shape[1:], strict=True)
    )
    if mask.dtype != torch.bool or not fits:
        raise ConfigError(
            f"{bunch.name}: the mask of one example is {mask.dtype} {list(mask.shape)}, its inputs "
            f"are {list(inputs.shape)}; a mask is bool [1, groups, *sizes that broadcast to the "
            "inputs]"
        )
