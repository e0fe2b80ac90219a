"""A finished run's model: the one that was tested, without the data, and never another one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import cdep_run
from cdep_run.errors import CdepError, CheckpointError, ConfigError, DamagedError, TrustError
from cdep_run.results.load import load
from cdep_run.results.record import MODEL, RESULT
from cdep_run.training import build
from running import run
from test_checkpoint import flip_a_bit


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that tested its best epoch, which was not the last."""
    folder = tmp_path_factory.mktemp("run")
    options = ("training.restore_best=true", "training.monitor=val/accuracy", "optimizer.lr=0.02")
    result = run(folder / "a", "penalty=none", *options)
    assert result["tested_epoch"] < result["epochs"]
    return folder / "a"


def copy(folder: Path, to: Path) -> Path:
    """The run once more, to be damaged."""
    for file in folder.rglob("*"):
        if file.is_file():
            place = to / file.relative_to(folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(file.read_bytes())
    return to


def change_record(folder: Path, **changes: object) -> None:
    """Change a record by hand as its owner could: without a checksum."""
    record = json.loads((folder / RESULT).read_text())
    for key in ("record_format", "record_sha256"):
        record.pop(key, None)
    (folder / RESULT).write_text(json.dumps(record | changes))


def test_the_tested_model_is_loaded_without_data_and_from_another_folder(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, bunch = load(finished)
    split = bunch.splits["test"]
    batch = split.batch(torch.arange(len(split)))
    with torch.no_grad():
        expected = model(batch.inputs)
    correct = (expected.argmax(1) == batch.labels).float().mean().item()
    record = json.loads((finished / RESULT).read_text())
    assert correct == pytest.approx(record["metrics"]["test"]["accuracy"])

    def no_data(node: object, **extra: object) -> object:
        assert "count" not in node, "the data set is built"  # type: ignore[operator]
        return real(node, **extra)  # type: ignore[arg-type]

    real = build.build
    monkeypatch.setattr(build, "build", no_data)
    monkeypatch.chdir(tmp_path)
    loaded = cdep_run.load(str(finished))
    assert not loaded.model.training and loaded.config["penalty"]["name"] == "none"
    with torch.no_grad():
        assert torch.equal(loaded.model(batch.inputs), expected)


def test_what_a_damaged_or_missing_model_leaves_is_refused_and_nothing_is_moved(
    finished: Path, tmp_path: Path
) -> None:
    folder = copy(finished, tmp_path / "run")
    flip_a_bit(folder / MODEL)
    before = sorted(folder.rglob("*"))
    for read in (cdep_run.load, load):
        with pytest.raises(DamagedError, match=r"model.safetensors is damaged"):
            read(folder)
    (folder / MODEL).unlink()
    with pytest.raises(DamagedError, match="cannot be read"):
        cdep_run.load(folder)
    assert sorted(folder.rglob("*")) == [path for path in before if path.name != MODEL]


def test_a_run_of_an_older_version_is_never_loaded_from_another_epoch(
    finished: Path, tmp_path: Path
) -> None:
    expected, _ = load(finished)
    folder = copy(finished, tmp_path / "run")
    record = json.loads((folder / RESULT).read_text())
    (folder / MODEL).unlink()
    files = {name: digits for name, digits in record["files"].items() if name != MODEL}
    change_record(folder, files=files)
    model, _ = load(folder)
    for name, weights in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], weights)
    flip_a_bit(folder / "checkpoints" / "last.pt")
    for _ in range(2):  # reading changes nothing
        with pytest.raises(CheckpointError, match="the tested weights are gone"):
            load(folder)
    assert (folder / "checkpoints" / "last.pt").exists()
    for file in (folder / "checkpoints").iterdir():
        file.unlink()
    with pytest.raises(CheckpointError, match="a record alone"):
        load(folder)


def test_data_that_are_gone_or_changed_are_named(finished: Path, tmp_path: Path) -> None:
    folder = copy(finished, tmp_path / "run")
    record = json.loads((folder / RESULT).read_text())
    changed = record["config"]["dataset"] | {"seed": 1}
    change_record(folder, config=record["config"] | {"dataset": changed})
    with pytest.raises(ConfigError, match="trained on other data"):
        load(folder)
    gone = {"name": "mnist", "_target_": "cdep_run.datasets.mnist.mnist", "data_dir": "nowhere"}
    gone |= {"download": False, "dataset": "MNIST", "seed": 0, "train_size": None}
    change_record(folder, config=record["config"] | {"dataset": gone})
    with pytest.raises(CdepError, match="cannot be judged without its data"):
        load(folder)
    cdep_run.load(folder)  # asks for none


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "subprocess.run",
        "builtins.exec",
        "torch.hub.load",
        "torch.load",
        "torch.nn.modules.module.warnings.warn",
        "torch.utils.cpp_extension.load_inline",
        "torch.nn.functional.relu",
        "timm.create_model",
        "transformers.pipeline",
        "torchvision.datasets.utils.download_url",
        "cdep_run.models.zoo.get_close_matches",
        "cdep_run.files.write_atomic",
        "cdep_run_evil.thing",
    ],
)
def test_a_strangers_record_runs_no_code(finished: Path, tmp_path: Path, target: str) -> None:
    folder = copy(finished, tmp_path / "run")
    record = json.loads((folder / RESULT).read_text())
    for part in ("model", "dataset"):
        node = {"_target_": target, "command": f"touch {tmp_path}/ran"}
        change_record(folder, config=record["config"] | {part: node, "plugins": ["os", "builtins"]})
        with pytest.raises((TrustError, ConfigError), match="_target_"):
            cdep_run.load(folder) if part == "model" else load(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "target",
    [
        "cdep_run.models.zoo.torchvision_model",
        "cdep_run.datasets.decoy.decoy_digits",
        "torch.optim.Adam",
        "torch.optim.lr_scheduler.CosineAnnealingLR",
        "torch.nn.Linear",
        "torchvision.models.resnet18",
        "tiny_data.TinyNet",
    ],
)
def test_what_settings_may_name(finished: Path, target: str) -> None:
    assert build.target({"_target_": target}).__name__ == target.rpartition(".")[2]


def test_pretrained_models_are_rebuilt_without_fetching(tmp_path: Path) -> None:
    from cdep_run.models.zoo import torchvision_model

    model = torchvision_model((3, 32, 32), 2, "shufflenet_v2_x0_5", size=32)
    assert model.rebuild_arguments == {"weights": None}
