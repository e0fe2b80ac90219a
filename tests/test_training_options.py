"""Training's options: schedules, clipping, averages, balance, monitors; exact when resumed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from cdep_run.config.schemas import Training
from cdep_run.errors import ConfigError
from cdep_run.results.load import load
from cdep_run.training.balance import balanced_order, class_weights
from cdep_run.training.build import plain
from cdep_run.training.schedule import build_average, build_scheduler
from cdep_run.training.signals import Interrupted
from running import composed, run, weights

ALL = (
    "penalty=rrr", "scheduler=cosine", "training.warmup=0.5", "training.clip_norm=0.5",
    "training.average=ema", "training.average_decay=0.8", "training.label_smoothing=0.1",
    "training.class_weights=balanced", "training.sampling=balanced", "training.restore_best=true",
    "training.monitor=test/accuracy", "training.patience=5",
)  # fmt: skip
STEPS = 7  # of an epoch of the tiny data


def rates(*overrides: str, epochs: int = 4) -> list[float]:
    """The learning rate of each step, from 1."""
    config = plain(composed(*overrides, "optimizer.lr=1", f"training.epochs={epochs}"))
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
    training = Training(**config["training"])
    schedule = build_scheduler(config["scheduler"], optimizer, STEPS, training)
    found = []
    for _ in range(epochs * STEPS):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if schedule is not None:
            schedule.step()
    return found


def test_schedules_span_the_training_in_steps() -> None:
    assert rates() == [1.0] * 28
    cosine = rates("scheduler=cosine")
    half = [0.5 * (1 + torch.tensor(torch.pi * t / 28).cos().item()) for t in range(28)]
    assert cosine == pytest.approx(half, abs=1e-6)
    assert rates("scheduler=step", "scheduler.step_size=2") == pytest.approx(
        [1.0] * 14 + [0.1] * 14
    )
    assert rates("scheduler=linear") == pytest.approx([1 - t / 28 for t in range(28)])
    cycle = rates("scheduler=onecycle")
    assert max(cycle) == pytest.approx(1, abs=0.02) and cycle[0] == pytest.approx(1 / 25)
    assert cycle[-1] < 0.01


def test_a_warm_up_comes_first_and_the_schedule_takes_the_rest() -> None:
    assert rates("training.warmup=1", "training.warmup_start=0.3") == pytest.approx(
        [0.3 + 0.1 * t for t in range(7)] + [1.0] * 21
    )
    found = rates("scheduler=linear", "training.warmup=2")
    assert found[0] == pytest.approx(0.01) and found[14] == pytest.approx(1)
    assert found[14:] == pytest.approx([1 - t / 14 for t in range(14)])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["training.warmup=3"], "training.warmup is 3.0 epochs"),
        (["scheduler=onecycle", "training.warmup=1"], "warms up by itself"),
        (["scheduler=onecycle", "scheduler.pct_start=2"], "pct_start"),
        (["scheduler._target_=torch.optim.lr_scheduler.ReduceLROnPlateau"], "waits for a metric"),
        (["scheduler._target_=torch.optim.lr_scheduler.Nothing"], "cannot be imported"),
        (["training.monitor=val_shifted/accuracy"], r"accepted: SPLIT/METRIC.*train, val, test"),
        (["training.monitor=val/acuracy"], "loss, accuracy, auc"),
        (["training.clip_norm=-1"], "clip_norm is -1"),
        (["training.label_smoothing=1"], "label_smoothing is 1"),
        (["training.class_weights=[1,2]"], "3 numbers of 0 or more"),
        (["training.class_weights=even"], "data, none, balanced"),
        (["training.compile=inductor"], "penalty rrr cannot look into it"),
    ],
)
def test_what_cannot_work_is_refused_before_the_first_step(
    tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(tmp_path, *overrides)
    assert not (tmp_path / "checkpoints").exists()


def state(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / "last.pt", weights_only=True)


def plain_numbers(value: Any) -> Any:
    """Nested tensors as lists, so that they compare; seconds left out."""
    if isinstance(value, dict):
        return {k: plain_numbers(v) for k, v in value.items() if k != "seconds"}
    if isinstance(value, list | tuple):
        return [plain_numbers(one) for one in value]
    return value.tolist() if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("schedule", ["cosine", "onecycle", "step"])
def test_a_resumed_run_with_every_option_ends_as_if_nothing_had_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, schedule: str
) -> None:
    warmup = "training.warmup=0" if schedule == "onecycle" else "training.warmup=0.5"
    options = (*ALL, f"scheduler={schedule}", warmup)
    result = run(tmp_path / "whole", *options)
    expected = plain_numbers(state(tmp_path / "whole")), plain_numbers(result["metrics"])
    for step in (2, 11):
        folder = tmp_path / str(step)
        steps = iter(range(1, 10**6))
        with monkeypatch.context() as patch:
            received = property(lambda self: next(steps) >= step, lambda self, value: None)  # noqa: B023
            patch.setattr("cdep_run.training.signals.StopRequest.received", received, raising=False)
            with pytest.raises(Interrupted):
                run(folder, *options)
        again = run(folder, *options, "resume=true")
        resumed = plain_numbers(state(folder)), plain_numbers(again["metrics"])
        for one in (expected[0], resumed[0]):
            one["config"] = None  # differs in `resume`
        assert resumed == expected


def test_the_options_off_leave_a_run_as_it_was(tmp_path: Path) -> None:
    run(tmp_path / "plain", "training.epochs=1")
    off = ("training.class_weights=none", "training.average=null", "scheduler=none")
    run(tmp_path / "off", "training.epochs=1", *off)
    for name, value in weights(tmp_path / "plain").items():
        assert torch.equal(value, weights(tmp_path / "off")[name])
    assert "learning_rate" not in (tmp_path / "plain" / "metrics.csv").read_text()


def test_gradients_are_cut_to_the_length(tmp_path: Path) -> None:
    one_step = ("optimizer=sgd", "optimizer.momentum=0", "training.batch_size=64")

    def after(rate: float, length: float) -> dict[str, torch.Tensor]:
        folder = tmp_path / f"{rate}_{length}"
        limits = (f"optimizer.lr={rate}", f"training.clip_norm={length}", "training.epochs=1")
        run(folder, *one_step, *limits)
        return weights(folder)

    start = after(0, 1)
    for length, least, most in ((1e-3, 0.999e-3, 1.001e-3), (1e9, 0.01, 1e9)):
        moved = after(1, length)
        distance = sum((moved[k] - start[k]).square().sum() for k in start).sqrt()
        assert least <= distance <= most


def test_the_average_is_that_of_the_steps_and_is_what_is_tested(tmp_path: Path) -> None:
    model = nn.Linear(1, 1, bias=False)
    training = {"average_decay": 0.75}
    ema = build_average(model, Training(average="ema", **training))
    mean = build_average(model, Training(average="mean", **training))
    assert build_average(model, Training(average=None, **training)) is None
    for value in (1.0, 2.0, 6.0):
        nn.init.constant_(model.weight, value)
        ema.update_parameters(model)
        mean.update_parameters(model)
    assert ema.module.weight.item() == pytest.approx(0.75 * (0.75 * 1 + 0.25 * 2) + 0.25 * 6)
    assert mean.module.weight.item() == pytest.approx(3)

    options = ("training.average=mean", "training.average_from=2", "training.epochs=3")
    result = run(tmp_path, *options)
    loaded, bunch = load(tmp_path)
    split = bunch.splits["test"]
    batch = split.batch(torch.arange(len(split)))
    with torch.no_grad():
        right = (loaded(batch.inputs).argmax(1) == batch.labels).double().mean().item()
    assert right == pytest.approx(result["metrics"]["test"]["accuracy"])
    kept = state(tmp_path)
    assert kept["average"]["n_averaged"] == 2 * STEPS
    assert any(
        not torch.equal(value, kept["model"][name]) for name, value in loaded.state_dict().items()
    )


def test_class_weights_and_sampling_even_out_rare_classes() -> None:
    labels = torch.tensor([0] * 90 + [1] * 10)
    bunch = SimpleNamespace(
        splits={"train": SimpleNamespace(labels=labels)}, num_classes=2, class_weights=None
    )
    found = class_weights("balanced", bunch)
    assert found.tolist() == pytest.approx([100 / 180, 100 / 20])
    assert class_weights("data", bunch) is None and class_weights("none", bunch) is None
    assert class_weights([1, 5], bunch).tolist() == [1, 5]
    torch.manual_seed(0)
    order = balanced_order(bunch, 32)
    assert [len(batch) for batch in order] == [32, 32, 32, 4]
    assert 30 <= int(labels[torch.cat(order)].sum()) <= 70
    bunch.num_classes = 3
    with pytest.raises(ConfigError, match="no training example is of class 2"):
        balanced_order(bunch, 32)


@pytest.mark.parametrize(("monitor", "mode"), [("val/loss", "auto"), ("test/accuracy", "auto"),
                                               ("test/accuracy", "min")])  # fmt: skip
def test_the_best_epoch_is_that_of_the_monitor(tmp_path: Path, monitor: str, mode: str) -> None:
    result = run(tmp_path, "training.epochs=4", "training.restore_best=true", "optimizer.lr=0.05",
                 f"training.monitor={monitor}", f"training.monitor_mode={mode}")  # fmt: skip
    values = [row[monitor] for row in result["history"]]
    best = min(values) if mode == "min" or monitor.endswith("loss") else max(values)
    assert result["best_epoch"] == values.index(best) + 1 == result["tested_epoch"]
    assert result["epoch_chosen_by"] == monitor.split("/")[0]


def test_labels_are_smoothed_in_training_alone(tmp_path: Path) -> None:
    low = run(tmp_path / "low", "optimizer.lr=0", "training.epochs=1")
    high = run(
        tmp_path / "high", "optimizer.lr=0", "training.epochs=1", "training.label_smoothing=0.9"
    )
    assert high["history"][0]["train/loss"] != low["history"][0]["train/loss"]
    assert high["metrics"]["test"] == low["metrics"]["test"]


def test_channels_last_and_compile_train_as_well(tmp_path: Path) -> None:
    last = run(tmp_path / "last", "dataset=tiny_spots", "training.channels_last=true",
               "training.epochs=1", "training.resamples=0")  # fmt: skip
    usual = run(tmp_path / "usual", "dataset=tiny_spots", "training.epochs=1",
                "training.resamples=0")  # fmt: skip
    assert last["metrics"]["val"]["loss"] == pytest.approx(
        usual["metrics"]["val"]["loss"], abs=1e-4
    )
    quick = run(tmp_path / "quick", "penalty=none", "training.compile=eager", "training.epochs=1")
    slow = run(tmp_path / "slow", "penalty=none", "training.epochs=1")
    assert quick["metrics"] == slow["metrics"]
    assert weights(tmp_path / "quick").keys() == weights(tmp_path / "slow").keys()


def test_the_rate_at_the_end_of_each_epoch_is_recorded(tmp_path: Path) -> None:
    result = run(tmp_path, *ALL, "training.epochs=2")
    first, last = (row["learning_rate"] for row in result["history"])
    assert first > last == 0
