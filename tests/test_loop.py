"""The loop: what a step does, when training stops, and what a run may not do."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from cdep_run.batch import Batch, Groups
from cdep_run.config.schemas import Training
from cdep_run.errors import ConfigError, TrainingError
from cdep_run.files import read_record, write_record
from cdep_run.metrics import scores
from cdep_run.results.load import load
from cdep_run.results.record import read_result
from cdep_run.training.build import plain
from cdep_run.training.checks import check_data
from cdep_run.training.loop import Trainer, reseed
from running import composed, run, weights
from tiny_data import TinyNet, tiny


def trainer(penalty: Any, strength: float, **training: Any) -> Trainer:
    """A trainer on tiny data that saves and reports nothing."""
    reseed(0)
    model = TinyNet((1, 6, 6), 3, 8)
    settings = plain(composed())["training"] | {
        "batch_size": 10, "epochs": 2, "patience": None, "restore_best": False,
        "evaluation_batch_size": 7, "checkpoint_seconds": 1e9,
    }  # fmt: skip
    return Trainer(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        penalty=penalty,
        strength=strength,
        bunch=tiny(0, 64),
        training=Training(**settings | training),
        seed=0,
        autocast=lambda: torch.autocast("cpu", enabled=False),
        save=lambda state: None,
        report=lambda history: None,
        stop=lambda: False,
    )


def weight_norm(model: TinyNet, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    return model(batch.inputs), model.layers[1].weight.square().sum()


def never(model: TinyNet, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    raise AssertionError("the penalty was called")


def test_a_step_descends_task_loss_plus_strength_times_penalty() -> None:
    one, batch = trainer(weight_norm, 0.5), tiny(0, 64).splits["train"].batch(torch.arange(10))
    one.model.eval()  # no dropout
    before = {name: weight.clone() for name, weight in one.model.named_parameters()}
    logits, value = weight_norm(one.model, batch)
    loss = torch.nn.functional.cross_entropy(logits, batch.labels) + 0.5 * value
    gradients = torch.autograd.grad(loss, list(one.model.parameters()))
    summands = one.train_step(batch)
    for (name, weight), gradient in zip(one.model.named_parameters(), gradients, strict=True):
        torch.testing.assert_close(weight, before[name] - 0.1 * gradient)
    assert summands[0].item() + 0.5 * summands[1].item() == pytest.approx(loss.item())
    assert summands[3].item() == pytest.approx(logits.mean().item())


def test_strength_0_does_not_call_the_penalty() -> None:
    trainer(never, 0).fit()


def test_reentrant_checkpointing_trains_without_a_penalty() -> None:
    one = trainer(never, 0)
    layers, first = one.model.layers, one.model.layers[1].weight.detach().clone()
    one.model.forward = lambda x: layers[2:](checkpoint(layers[:2], x, use_reentrant=True))
    batch = one.bunch.splits["train"].batch(torch.arange(10))
    batch.inputs.requires_grad_()
    one.train_step(batch)
    assert not first.equal(layers[1].weight)


def test_a_step_reads_nothing_from_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    one = trainer(weight_norm, 0.5)
    batch = one.bunch.splits["train"].batch(torch.arange(10))

    def refuse(*arguments: object) -> None:
        raise AssertionError("the step waits for the device")

    for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "nonzero"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    one.train_step(batch)


def test_the_means_of_an_epoch_do_not_depend_on_how_often_they_are_read() -> None:
    rows = []
    for every in (1, 3, 50):
        one = trainer(weight_norm, 0.5, check_every=every)
        one.fit()
        rows.append([{k: v for k, v in r.items() if k != "seconds"} for r in one.progress.history])
    assert rows[0] == rows[1] == rows[2]


def test_the_last_short_batch_counts_by_its_size() -> None:
    one = trainer(never, 0)
    one.optimizer.param_groups[0]["lr"] = 0.0
    one.model.layers[3].p = 0.0
    one.fit()
    logits, labels = one.predict(one.bunch.splits["train"])
    row = one.progress.history[-1]
    assert row["train/accuracy"] == pytest.approx((logits.argmax(1) == labels).double().mean())
    assert row["train/loss"] == pytest.approx(
        torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5
    )


def test_patience_stops_after_more_than_so_many_epochs_without_a_lower_loss() -> None:
    one = trainer(never, 0, epochs=30, patience=2)
    losses = iter([3.0, 2.0, 2.5, 2.0, 1.9, 2.0, 2.0, 2.0, 1.0])
    one.evaluate = lambda: {"val": {"loss": next(losses)}}  # type: ignore[method-assign]
    one.fit()
    assert (one.progress.epoch, one.progress.best_epoch) == (8, 5)


@pytest.mark.parametrize("best", [True, False])
def test_restore_best_brings_back_the_epoch_with_the_lowest_loss(best: bool) -> None:
    one = trainer(never, 0, epochs=3, restore_best=best)
    losses, seen = iter([2.0, 1.0, 3.0]), []

    def evaluate() -> dict[str, dict[str, float | None]]:
        seen.append(one.model.layers[1].weight.detach().clone())
        return {"val": {"loss": next(losses)}}

    one.evaluate = evaluate  # type: ignore[method-assign]
    one.fit()
    assert torch.equal(one.model.layers[1].weight, seen[1 if best else 2])


@pytest.mark.parametrize("check_every", [1, 3, 50])
def test_a_loss_that_is_not_a_number_stops_the_run_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, check_every: int
) -> None:
    overrides = ("penalty=none", "penalty._target_=tiny_data.NotANumber", "penalty.strength=2")
    with pytest.raises(TrainingError) as error:
        run(tmp_path, *overrides, "optimizer.lr=0.25", f"training.check_every={check_every}")
    for words in ("epoch 2, not finite at step 3: ", "penalty nan", "λ = 2", "rate = 0.25"):
        assert words in str(error.value)
    assert all(weight.isfinite().all() for weight in weights(tmp_path).values())
    assert read_result(tmp_path) is None


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    overrides = ("penalty=none", "penalty._target_=tiny_data.Infinite", "penalty.strength=1")
    with pytest.raises(TrainingError, match="epoch 2, weights not finite after step 3"):
        run(tmp_path, *overrides, "training.checkpoint_seconds=0")
    assert all(weight.isfinite().all() for weight in weights(tmp_path).values())


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(tmp_path / name, f"seed={seed}")
    a, b, c = (weights(tmp_path / name) for name in "abc")
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not any(torch.equal(a[k], c[k]) for k in a)


def test_bf16_trains_with_weights_in_float32(tmp_path: Path) -> None:
    result = run(tmp_path, "precision=bf16", "training.epochs=1")
    assert math.isfinite(result["metrics"]["test"]["loss"])
    assert all(weight.dtype == torch.float32 for weight in weights(tmp_path).values())


def test_training_learns(tmp_path: Path) -> None:
    result = run(tmp_path, "penalty=none", "training.epochs=30", "optimizer.lr=0.01")
    assert result["metrics"]["val"]["accuracy"] > 0.8


@pytest.mark.parametrize("best", [True, False])
def test_a_finished_run_is_loaded_as_it_was_tested(tmp_path: Path, best: bool) -> None:
    overrides = (f"training.restore_best={best}", "optimizer.lr=3", "training.epochs=6")
    result = run(tmp_path, *overrides)
    model, bunch = load(tmp_path)
    batch = bunch.splits["test"].batch(torch.arange(24))
    assert scores(model(batch.inputs).detach(), batch.labels) == result["metrics"]["test"]


def test_a_run_whose_data_have_changed_is_not_loaded(tmp_path: Path) -> None:
    run(tmp_path, "training.epochs=1")
    record = read_record(tmp_path / "result.json")
    assert record is not None
    record["config"]["dataset"]["seed"] = 1
    write_record(tmp_path / "result.json", record)
    with pytest.raises(ConfigError, match="trained on other data"):
        load(tmp_path)


def test_a_run_that_did_not_finish_is_not_loaded(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no finished run"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["training.batch_size=65"], "batch_size is 65, but tiny has 64 training examples"),
        (["device=cuda"], "device is cuda, but torch .* finds none here"),
        (["model=lstm"], "is for text; tiny has no word vectors"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(
    tmp_path: Path, overrides: list[str], words: str
) -> None:
    if torch.cuda.is_available() and "device=cuda" in overrides:
        pytest.skip("there is a CUDA device")
    with pytest.raises(ConfigError, match=words):
        run(tmp_path, *overrides)


class Wanting:
    needs_groups = True


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (None, "penalty rrr needs to know which features must not matter, and tiny does not say"),
        (torch.ones(1, 2, 1, 6, 6), r"the mask of one example is torch.float32 \[1, 2, 1, 6, 6\]"),
        (torch.ones(1, 6, 6).bool(), r"its inputs are \[1, 1, 6, 6\]"),
        (torch.ones(1, 1, 1, 6, 5).bool(), r"\[1, 1, 1, 6, 5\]"),
    ],
)
def test_masks_that_do_not_fit_the_inputs_are_refused(
    mask: torch.Tensor | None, words: str
) -> None:
    bunch, config = tiny(0, 64), plain(composed("dataset=tiny"))
    bunch.splits["train"].annotation = None if mask is None else lambda index: Groups(mask)
    with pytest.raises(ConfigError, match=words):
        check_data(config, bunch, Wanting())
    config["penalty"]["strength"] = 0
    check_data(config, bunch, Wanting())
