"""The command `cdep-run`: compose, build, fit, evaluate, write."""

from __future__ import annotations

import difflib
import importlib
import logging
import math
import os
import re
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

import cdep_run
from cdep_run.config.compare import refuse_changes
from cdep_run.config.composition import COMPOSITION_ERRORS, explain
from cdep_run.config.help import asks_for_help, help_page
from cdep_run.config.overrides import with_first_choices
from cdep_run.config.schemas import Training, check, config_dir, register_schemas
from cdep_run.console import prepare_streams, working_folder_gone
from cdep_run.errors import CdepError, CheckpointError, ConfigError, in_a_line
from cdep_run.files import alone_in, remove_leftovers, write_atomic
from cdep_run.results.loggers import EpochLog
from cdep_run.results.record import (
    CONFIG,
    environment,
    read_result,
    selection_metric,
    summary,
    write_predictions,
    write_result,
    write_status,
)
from cdep_run.sweeps.manifest import MANIFEST
from cdep_run.training.build import (
    build,
    build_model,
    build_optimizer,
    place,
    plain,
    with_cached_features,
)
from cdep_run.training.checks import check_data, check_model, warn_if_noise
from cdep_run.training.device import prepare
from cdep_run.training.signals import Interrupted, OrderlyEnd, StopRequest

if TYPE_CHECKING:
    from torch import nn

    from cdep_run.datasets.base import Bunch
    from cdep_run.training.checkpoint import Checkpoints
    from cdep_run.training.loop import Trainer

log = logging.getLogger(__name__)


VERBS = {
    "check": "cdep_run.check:main",
    "evidence": "cdep_run.evidence:main",
    "export": "cdep_run.deploy.export:main",
    "fix": "cdep_run.sweeps.fix:main",
    "predict": "cdep_run.deploy.predict:main",
    "report": "cdep_run.report:main",
    "resume": "cdep_run.sweeps.resume:resume",
    "status": "cdep_run.sweeps.resume:status",
    "tables": "cdep_run.tables:main",
}
"""What `cdep-run` does beside training, each a function of the words after the verb.

It returns the exit code, or None for 0; `resume` returns the words of a training command.
"""


def main() -> None:
    """Entry point of `cdep-run`: a verb of `VERBS`, or else the training of a run or a sweep."""
    prepare_streams()
    if gone := working_folder_gone():
        sys.exit(f"cdep-run: error: {gone}")
    try:
        words = verb(sys.argv[1:])
    except CdepError as error:
        sys.exit(f"cdep-run: error: {error}")
    sys.argv[1:] = with_first_choices(words) if {"-m", "--multirun"} & set(words) else words
    register_schemas()
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra hands errors on instead of printing
    try:
        hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="train")(job)()
    except KeyboardInterrupt:  # outside of a job; a job answers by itself
        sys.exit(130)
    except COMPOSITION_ERRORS as error:
        sys.exit(f"cdep-run: error: {explain(error, words)}")


def verb(words: list[str]) -> list[str]:
    """Do what the first word says if it is a verb; else return the words of a training command.

    Raises:
        CdepError: what the verb refuses.
    """
    if "--version" in words:
        print(f"cdep-run {cdep_run.__version__}")
        sys.exit(0)
    if not words or words[0] not in VERBS:
        if asks_for_help(words):
            print(help_page(words))
            sys.exit(0)
        if words and re.fullmatch("[a-z]+", words[0]):
            near = difflib.get_close_matches(words[0], VERBS, 1)
            meant = f"; did you mean {near[0]}?" if near else "."
            raise ConfigError(
                f"there is no command {words[0]}{meant} There are {', '.join(VERBS)}; settings are "
                "written as name=value"
            )
        return words
    module, _, name = VERBS[words[0]].partition(":")
    answer = getattr(importlib.import_module(module), name)(words[1:])
    if isinstance(answer, list):
        return answer
    sys.exit(answer)


def job(config: DictConfig) -> float | None:
    """One run in its own folder, alone there; status.json tells how it ended.

    A run in the folder of a sweep is one of its jobs, also in a process of its own.

    In a sweep an error ends this job alone; otherwise it ends the command: one line for what a
    user can mend, a traceback for the rest.

    Returns:
        The selection metric on the selection split, for sweepers that search; None: failed.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    sweep = HydraConfig.get().mode == RunMode.MULTIRUN or (folder.parent / MANIFEST).exists()
    with ExitStack() as stack:
        try:
            stack.enter_context(alone_in(folder, wait=sweep))
        except ConfigError as error:  # status.json is that of the other process
            sys.exit(f"cdep-run: error: {error}")
        remove_leftovers(folder, folder / "checkpoints")
        result = run_with_status(config, folder, sweep)
    if result is None:
        return None
    for split, scores in result["metrics"].items():
        shown = [f"{name} {value:.4g}" for name, value in scores.items() if value is not None]
        log.info("%-12s %s", split, ", ".join(shown))
    if not sweep:
        print(folder)
    return result["metrics"][result["selection_split"]][selection_metric(result)]


def run_with_status(config: DictConfig, folder: Path, sweep: bool) -> dict[str, Any] | None:
    """`train`, with status.json kept up to date; None where a job of a sweep failed."""
    hydra_config = HydraConfig.get()
    overrides = hydra_config.overrides.task
    end = OrderlyEnd()
    try:
        with end:
            write_status(folder, "running", overrides)
            result = train(plain(config), folder)
    except (Interrupted, KeyboardInterrupt):
        note_status(folder, "interrupted", overrides)
        again = f"repeat the command with hydra.run.dir={folder} resume=true"
        if sweep:
            again = f"cdep-run resume {hydra_config.sweep.dir}"
        log.warning("interrupted; to go on: %s", again)
        end.hand_on()
        sys.exit(130)
    except Exception as error:
        line = in_a_line(error)
        message = f"{type(error).__name__}: {error}" if line is None else line
        note_status(folder, "failed", overrides, message)
        log.error("cdep-run: error: %s", message, exc_info=True)
        if not sweep and line is not None:
            sys.exit(1)
        if not sweep:
            raise
        return None
    note_status(folder, "finished", overrides)
    return result


def note_status(
    folder: Path, state: str, overrides: Iterable[str], error: str | None = None
) -> None:
    """Write the status if the disk lets us; how the run ended matters more."""
    try:
        write_status(folder, state, overrides, error)
    except OSError as problem:
        log.error("%s", problem)


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

    # Not before: torch takes seconds, and all of the above is quick.
    from cdep_run.datasets.counterfactual import with_counterfactual
    from cdep_run.deploy.card import NAME as CARD
    from cdep_run.deploy.card import model_card
    from cdep_run.results.load import save_model
    from cdep_run.training.checkpoint import Checkpoints
    from cdep_run.training.loop import reseed

    checkpoints = Checkpoints(folder / "checkpoints")
    state = unfinished(checkpoints, config, folder)
    device = prepare(config["device"], config["threads"])
    bunch = build(config["dataset"]).to(device)
    bunch = with_counterfactual(bunch, config["training"]["counterfactual_val"])
    if state is not None and state["fingerprint"] != bunch.fingerprint:
        raise CheckpointError(f"{folder} was trained on other data: their fingerprints differ")
    penalty = build(config["penalty"])
    check_data(config, bunch, penalty)
    write_atomic(folder / CONFIG, OmegaConf.to_yaml(config).encode())
    reseed(config["seed"])
    channels_last = config["training"]["channels_last"]
    model = place(build_model(config, bunch), device, channels_last)
    check_model(config, bunch, model)
    bunch = with_cached_features(config, bunch, model, penalty)
    if state is None:
        warn_if_noise(config, bunch, model, penalty)
    loggers = [
        build(node, folder=folder, config=config) for node in config["loggers"].values() if node
    ]
    with StopRequest() as stop, EpochLog(loggers) as epochs:
        trainer = make_trainer(config, model, penalty, bunch, checkpoints, epochs, stop)
        if state is not None:
            go_on(trainer, state)
        log.info("training on %s, %d examples", device, len(bunch.splits["train"]))
        trainer.fit()
    result = summary(config, bunch, trainer.progress) | environment(device)
    if bunch.positive is not None:
        add_detection(result, trainer, folder)
    result["model"] = save_model(folder, model, bunch)
    write_atomic(folder / CARD, model_card(result).encode())
    return write_result(folder, result)


def unfinished(
    checkpoints: Checkpoints, config: dict[str, Any], folder: Path
) -> dict[str, Any] | None:
    """Return the last state of an interrupted run in `folder`, or None where there is none.

    Raises:
        ConfigError: there is one, but `resume` is not set or other settings are.
    """
    state = checkpoints.load()
    if state is None:
        return None
    if not config["resume"]:
        raise ConfigError(
            f"{folder} holds an unfinished run; add resume=true, or choose another hydra.run.dir"
        )
    refuse_changes(state["config"], config)
    return state


def make_trainer(
    config: dict[str, Any],
    model: nn.Module,
    penalty: Any,
    bunch: Bunch,
    checkpoints: Checkpoints,
    epochs: EpochLog,
    stop: StopRequest,
) -> Trainer:
    """Return the loop around model, penalty and data, with what the settings say of training."""
    import torch

    from cdep_run.training.balance import class_weights
    from cdep_run.training.loop import Trainer
    from cdep_run.training.schedule import build_average, build_scheduler

    training = Training(**config["training"])
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = build_optimizer(config["optimizer"], weights)
    steps = math.ceil(len(bunch.splits["train"]) / training.batch_size)
    if training.compile is not None:
        model.compile(backend=training.compile)
    kind, bf16 = bunch.splits["train"].labels.device.type, config["precision"] == "bf16"
    identity = {
        "config": config,
        "fingerprint": bunch.fingerprint,
        "threads": torch.get_num_threads(),
    }
    return Trainer(
        model=model,
        optimizer=optimizer,
        penalty=penalty,
        strength=config["penalty"]["strength"],
        every=config["penalty"].get("every", 1),
        bunch=bunch,
        training=training,
        seed=config["seed"],
        autocast=lambda: torch.autocast(kind, torch.bfloat16, enabled=bf16),
        save=lambda new: checkpoints.save(new | identity),
        report=epochs.write,
        stop=lambda: stop.received,
        class_weights=class_weights(training.class_weights, bunch),
        scheduler=build_scheduler(config["scheduler"], optimizer, steps, training),
        average=build_average(model, training),
    )


def go_on(trainer: Trainer, state: dict[str, Any]) -> None:
    """Put the trainer where `state` was taken; warn where the last bits may differ."""
    import torch

    trainer.load_state(state)
    log.info("going on at epoch %d, step %d", *trainer.position())
    before, now = state.get("threads"), torch.get_num_threads()
    if before not in (None, now):
        log.warning(
            "begun with threads=%d, going on with %d: the last bits of the result may differ from "
            "an undisturbed run's",
            before,
            now,
        )


def add_detection(result: dict[str, Any], trainer: Trainer, folder: Path) -> None:
    """Write what the trained model says of each example; add `metrics.judge` to the result."""
    from cdep_run.metrics import judge

    predictions = trainer.predictions()
    write_predictions(folder, predictions)
    worst_of = trainer.bunch.worst_of  # no split of its own: the threshold is that of its first
    chosen_on = worst_of[0] if worst_of is not None else result["selection_split"]
    resamples = result["config"]["training"]["resamples"]
    found = judge(predictions, chosen_on, resamples, result["seed"])
    for split, values in found.pop("metrics").items():
        result["metrics"][split] |= values
    result |= found
