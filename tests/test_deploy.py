"""A finished run put to use: predictions of new examples, exported files, the model card."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import cdep_run
from cdep_run.deploy.export import FORMATS, ExportError, export
from cdep_run.deploy.predict import as_csv, class_names, predict
from cdep_run.results.text import spreadsheet_safe
from running import inside, run


@pytest.fixture(scope="module")
def table_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A net for rows whose class shows in `size`; the data are gone afterwards."""
    folder = tmp_path_factory.mktemp("table")
    lines = ["size,kind,label"]
    for i in range(90):
        lines.append(f"{10 * (i % 2) + i % 5},{'xy'[i % 3 % 2]},{'no' if i % 2 else 'yes'}")
    (folder / "data.csv").write_text("\n".join(lines) + "\n")
    run(folder / "run", "dataset=table", f"dataset.table={folder / 'data.csv'}", "penalty=none",
        "dataset.must_not_matter=[kind]", "model=mlp", "optimizer=adam", "optimizer.lr=0.05",
        "training.epochs=20", "training.batch_size=16")  # fmt: skip
    (folder / "data.csv").unlink()
    return folder / "run"


@pytest.fixture(scope="module")
def image_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A net for dark and bright images, without their data."""
    folder = tmp_path_factory.mktemp("images")
    draw = np.random.default_rng(0)
    for label, level in (("dark", 60), ("bright", 190)):
        (folder / "data" / label).mkdir(parents=True)
        for number in range(20):
            pixels = draw.integers(level - 40, level + 40, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "data" / label / f"{label}{number}.png")
    run(folder / "run", "dataset=images", f"dataset.root={folder / 'data'}", "dataset.size=28",
        f"dataset.cache_dir={folder / 'cache'}", "model=mnist_cnn", "penalty=none",
        "training.epochs=4", "training.batch_size=8")  # fmt: skip
    (folder / "data").rename(folder / "moved")
    return folder / "run"


def test_rows_are_classified_without_the_data_and_from_any_folder(
    table_run: Path, tmp_path: Path
) -> None:
    new = tmp_path / "new.csv"
    new.write_text("kind,size\nx,1\ny,12\n")
    done = inside("predict", str(table_run), "new.csv", "--out", "said.csv", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(io.StringIO((tmp_path / "said.csv").read_text())))
    assert [row["class"] for row in rows] == ["yes", "no"]
    assert rows[0]["example"] == "new.csv row 2" and float(rows[1]["p(no)"]) > 0.5


def test_a_table_without_a_column_of_training_is_one_line(table_run: Path, tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text("kind,sise\nx,1\n")
    done = inside("predict", str(table_run), "new.csv", cwd=tmp_path)
    assert done.returncode == 1 and "size" in done.stderr and "Traceback" not in done.stderr


def test_images_are_classified_and_what_cannot_be_read_is_named(image_run: Path) -> None:
    moved = image_run.parent / "moved"
    (moved / "broken.png").write_bytes(b"no picture")
    loaded = cdep_run.load(str(image_run))
    found = list(predict(loaded, [moved], batch_size=7))
    assert len(found) == 41
    right = [one.label == Path(one.name).parent.name for one in found if not one.problem]
    assert sum(right) == 40
    (broken,) = (one for one in found if one.problem)
    assert broken.label is None and broken.name.endswith("broken.png")
    text = as_csv(found, class_names(loaded)).decode()
    assert text.splitlines()[0] == "example,class,p(bright),p(dark),problem"


def test_what_is_not_there_and_runs_of_other_data_are_refused(
    image_run: Path, tmp_path: Path
) -> None:
    done = inside("predict", str(image_run), "nowhere.png", cwd=tmp_path)
    assert done.returncode == 1 and "nowhere.png does not exist" in done.stderr
    run(tmp_path / "tiny", "penalty=none", "training.epochs=1")
    done = inside("predict", "tiny", "tiny", cwd=tmp_path)
    assert done.returncode == 1 and "does not say how raw examples become inputs" in done.stderr


@pytest.mark.parametrize("name", ["safetensors", "torch"])
def test_exported_files_compute_the_same_for_any_number_of_rows(
    table_run: Path, tmp_path: Path, name: str
) -> None:
    loaded = cdep_run.load(table_run)
    differences = export(loaded, tmp_path, [name])
    assert differences[name] < 1e-5 and (tmp_path / FORMATS[name][0]).is_file()
    if name == "torch":
        module = torch.export.load(tmp_path / "model.pt2").module()
        inputs = torch.randn(11, *loaded.result["model"]["input_shape"])
        torch.testing.assert_close(module(inputs), loaded.model(inputs))
    assert '"classes"' in (tmp_path / "card.json").read_text()


def test_onnx_computes_the_same(image_run: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    assert export(cdep_run.load(image_run), tmp_path, ["onnx"])["onnx"] < 1e-4


def test_a_file_that_computes_something_else_is_removed(
    table_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(model, inputs, file):
        file.write_bytes(b"x")
        return lambda x: model(x) + 1

    monkeypatch.setitem(FORMATS, "torch", ("model.pt2", wrong))
    with pytest.raises(ExportError, match="computes other logits"):
        export(cdep_run.load(table_run), tmp_path, ["torch"])
    assert not (tmp_path / "model.pt2").exists()


def test_every_run_has_a_card(table_run: Path) -> None:
    card = (table_run / "model_card.md").read_text()
    assert "| must not matter | kind |" in card and "| classes | no, yes |" in card
    assert "## Limits" in card and "| test | " in card


@pytest.mark.parametrize(
    ("cell", "safe"),
    [("=1+1", "'=1+1"), ("@x", "'@x"), ("-0.5", "-0.5"), ("+x", "'+x"), ("plain", "plain")],
)
def test_cells_are_no_formulas(cell: str, safe: str) -> None:
    assert spreadsheet_safe(cell) == safe
