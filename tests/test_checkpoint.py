"""Checkpoints: whole, checked, and exact, whatever interrupts the run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from cdep_run.errors import CheckpointError, ConfigError
from cdep_run.results.record import METRICS
from cdep_run.training.checkpoint import Checkpoints
from cdep_run.training.loop import Trainer
from cdep_run.training.signals import Interrupted
from running import run, weights

EXACT = ("penalty=rrr", "training.restore_best=true", "training.patience=5")


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def outcome(folder: Path, result: dict[str, Any]) -> tuple[Any, ...]:
    """All numbers that an undisturbed run and a resumed one must share."""
    table = (folder / METRICS).read_text().splitlines()
    rows = [[cell for k, cell in enumerate(line.split(",")) if k != 1] for line in table]  # seconds
    without_time = {
        split: {name: value for name, value in scores.items()}
        for split, scores in result["metrics"].items()
    }
    state = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)
    moments = state["optimizer"]["state"]
    return (
        rows,
        without_time,
        {name: weight.tolist() for name, weight in state["model"].items()},
        {name: weight.tolist() for name, weight in state["best"].items()},
        [{k: v.tolist() for k, v in moments[index].items()} for index in moments],
    )


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Ask the run to stop at its `step`-th step."""
    steps = iter(range(1, 10**6))
    monkeypatch.setattr("cdep_run.training.signals.StopRequest.received", property(
        lambda self: next(steps) >= step, lambda self, value: None), raising=False)  # fmt: skip


def test_a_run_interrupted_at_any_step_ends_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = outcome(tmp_path / "whole", run(tmp_path / "whole", *EXACT))
    for step in (1, 4, 7, 8, 14, 21):  # 7 steps an epoch: first, middle, last and next
        folder = tmp_path / str(step)
        with monkeypatch.context() as patch:
            interrupt_at(patch, step)
            with pytest.raises(Interrupted):
                run(folder, *EXACT)
        assert outcome(folder, run(folder, *EXACT, "resume=true")) == expected


def test_a_run_that_failed_between_two_checkpoints_goes_on_from_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = outcome(tmp_path / "whole", run(tmp_path / "whole", *EXACT))
    real, calls = Trainer.train_step, iter(range(100))

    def failing(self: Trainer, batch: Any, *more: Any) -> torch.Tensor:
        if next(calls) == 12:
            raise MemoryError
        return real(self, batch, *more)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", failing)
        with pytest.raises(MemoryError):
            run(tmp_path / "failed", *EXACT)
    assert outcome(tmp_path / "failed", run(tmp_path / "failed", *EXACT, "resume=true")) == expected


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = outcome(tmp_path / "whole", run(tmp_path / "whole", *EXACT))
    folder = tmp_path / "damaged"
    with monkeypatch.context() as patch:
        interrupt_at(patch, 10)
        with pytest.raises(Interrupted):
            run(folder, *EXACT)
    flip_a_bit(folder / "checkpoints" / "last.pt")
    assert outcome(folder, run(folder, *EXACT, "resume=true")) == expected
    assert "last.pt is damaged" in caplog.text


def test_a_flipped_bit_a_cut_and_an_empty_file_are_noticed(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path / "checkpoints")
    store.save({"n": torch.ones(100)})
    whole = store.last.read_bytes()
    for damaged in (whole[:100], b"", whole[:300] + bytes([whole[300] ^ 1]) + whole[301:]):
        store.last.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="no undamaged checkpoint"):
            store.load()


def test_the_last_two_are_kept_and_torch_reads_them_too(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path / "checkpoints")
    assert store.load() is None
    for n in range(3):
        store.save({"n": n, "weights": torch.full((3,), n)})
    assert store.load()["n"] == 2  # type: ignore[index]
    assert torch.load(store.previous, weights_only=True)["n"] == 1
    assert {path.name for path in store.last.parent.iterdir()} == {"last.pt", "previous.pt"}


@pytest.mark.parametrize("crash_at", [1, 2, 3])
def test_a_crash_at_any_rename_leaves_a_checkpoint_that_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash_at: int
) -> None:
    store = Checkpoints(tmp_path / "checkpoints")
    store.save({"n": 0})
    store.save({"n": 1})
    real, calls = os.replace, iter(range(1, 10))

    def crashing(source: Any, target: Any) -> None:
        if next(calls) == crash_at:
            raise KeyboardInterrupt
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", crashing)
        with pytest.raises(KeyboardInterrupt):
            store.save({"n": 2})
    assert store.load()["n"] == 1  # type: ignore[index]


def test_resuming_under_other_settings_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, 5)
        with pytest.raises(Interrupted):
            run(tmp_path, "penalty.strength=1")
    with pytest.raises(ConfigError, match=r"penalty.strength: 1.0 → 2.0"):
        run(tmp_path, "penalty.strength=2", "resume=true")
    with pytest.raises(CheckpointError, match="trained on other data"):
        monkeypatch.setattr("cdep_run.train.refuse_changes", lambda old, new: None)
        run(tmp_path, "penalty.strength=1", "dataset.seed=1", "resume=true")


def test_a_folder_that_holds_a_run_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, 5)
        with pytest.raises(Interrupted):
            run(tmp_path)
    with pytest.raises(ConfigError, match="holds an unfinished run; add resume=true"):
        run(tmp_path)
    result = run(tmp_path, "resume=true")
    with pytest.raises(ConfigError, match="holds a finished run"):
        run(tmp_path)
    before = weights(tmp_path)
    assert run(tmp_path, "resume=true") == result
    assert all(torch.equal(before[k], v) for k, v in weights(tmp_path).items())


def test_resuming_where_nothing_was_saved_starts_at_the_beginning(tmp_path: Path) -> None:
    assert run(tmp_path, "resume=true")["epochs"] == 3
