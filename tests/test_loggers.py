"""Loggers: chosen as a list, closed after errors, and MLflow and W&B without a network."""

from __future__ import annotations

from pathlib import Path

import pytest

from cdep_run.errors import ConfigError
from cdep_run.results.loggers import EpochLog
from running import run

SHORT = ("penalty=none", "training.epochs=2")


def test_only_the_loggers_of_the_list_write(tmp_path: Path) -> None:
    run(tmp_path / "none", *SHORT, "loggers=[]")
    run(tmp_path / "events", *SHORT, "loggers=[tensorboard]")
    run(tmp_path / "off", *SHORT, "loggers=[csv,tensorboard]", "loggers.tensorboard=null")
    there = {path.name for path in (tmp_path / "none").iterdir()}
    assert "result.json" in there and not there & {"metrics.csv", "tensorboard", "wandb", "mlruns"}
    assert (tmp_path / "events" / "tensorboard").is_dir()
    assert not (tmp_path / "events" / "metrics.csv").exists()
    assert not (tmp_path / "off" / "tensorboard").exists()
    assert (tmp_path / "off" / "metrics.csv").exists()


def test_every_logger_is_closed_after_an_error() -> None:
    closed = []

    class One:
        def __init__(self, name: str) -> None:
            self.name = name

        def write(self, history: list) -> None:
            raise OSError

        def close(self) -> None:
            closed.append(self.name)

    with pytest.raises(OSError), EpochLog([One("a"), One("b")]) as epochs:
        epochs.write([{"epoch": 1}])
    assert closed == ["a", "b"]


def test_loggers_may_change_when_a_run_goes_on(tmp_path: Path) -> None:
    run(tmp_path, *SHORT)
    again = run(tmp_path, *SHORT, "loggers=[]", "resume=true")
    assert again["epochs"] == 2


def test_mlflow_keeps_metrics_and_settings_in_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="needs mlflow: pip install 'cdep-run[mlflow]'")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    store = f"file://{tmp_path / 'mlruns'}"
    options = (*SHORT, "loggers=[mlflow]", f"loggers.mlflow.tracking_uri={store}")
    result = run(tmp_path / "run", *options)
    client = mlflow.MlflowClient(store)
    place = client.get_experiment_by_name("cdep-run").experiment_id
    (kept,) = client.search_runs([place])
    assert kept.info.status == "FINISHED" and kept.data.params["penalty.name"] == "none"
    history = client.get_metric_history(kept.info.run_id, "val/accuracy")
    assert [(m.step, m.value) for m in history] == [
        (row["epoch"], row["val/accuracy"]) for row in result["history"]
    ]


def test_mlflow_that_cannot_write_is_named(tmp_path: Path) -> None:
    pytest.importorskip("mlflow", reason="needs mlflow: pip install 'cdep-run[mlflow]'")
    with pytest.raises(ConfigError, match=r"loggers\.mlflow\.tracking_uri=nowhere://x"):
        run(tmp_path, *SHORT, "loggers=[mlflow]", "loggers.mlflow.tracking_uri=nowhere://x")


def test_wandb_keeps_a_run_offline(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="needs wandb: pip install 'cdep-run[wandb]'")
    run(tmp_path / "run", *SHORT, "loggers=[csv,wandb]")
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb"))


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_what_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(ConfigError, match=rf"pip install 'cdep-run\[{name}\]'"):
        run(tmp_path, *SHORT, f"loggers=[{name}]")
