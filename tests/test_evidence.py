"""Evidence: nets that look at the patch and nets that do not, and what must be refused."""

from __future__ import annotations

import html
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from cdep_run.datasets.base import Bunch
from cdep_run.errors import ConfigError
from cdep_run.evidence import kind_of, main, write
from cdep_run.evidence.images import paste, scale, with_and_without
from cdep_run.evidence.measure import Found, Options, spread
from cdep_run.evidence.summary import markdown, summarise
from cdep_run.results.load import load
from running import run
from tiny_data import MEAN, STD, tiny_spots

OF_IMAGES = {"area", "cd_share", "gradcam", "gradient", "painted_over", "painted_changed",
             "pasted", "pasted_relative", "cutout", "cutout_changed"}  # fmt: skip
LEARNT = ("dataset=tiny_spots", "training.epochs=12", "training.resamples=0", "optimizer.lr=0.03")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained on the shortcut without a penalty, and with one."""
    folder = tmp_path_factory.mktemp("runs")
    run(folder / "none", *LEARNT, "penalty=none")
    run(folder / "cdep", *LEARNT, "penalty.strength=30")
    return folder


def test_a_penalised_net_looks_less_at_the_patch_by_every_judge(runs: Path, tmp_path: Path) -> None:
    report = write([runs], tmp_path, Options(resamples=50, examples=2))
    none, cdep = report["settings"].values()
    assert none["runs"] == 1 and set(none["measures"]) == OF_IMAGES and not report["left_out"]
    assert none["measures"]["area"]["mean"] == pytest.approx(25 / 256)
    assert none["measures"]["painted_over"]["mean"] > 2  # the patch says "not bright"
    assert none["measures"]["pasted"]["mean"] < -0.5 and none["measures"]["pasted"]["images"] == 12
    for measure in ("cd_share", "gradcam", "gradient", "painted_over", "pasted", "cutout"):
        assert cdep["measures"][measure]["ratio"] < 0.7, measure
    rows = pd.read_csv(tmp_path / "evidence.csv")
    assert rows["id"].nunique() == 6 + 12  # patched ones, and those of class 1
    by_hand = rows.groupby(["measure", "setting"])["value"].mean()["pasted"]
    assert by_hand["none"] == pytest.approx(none["measures"]["pasted"]["mean"])
    assert json.loads((tmp_path / "evidence.json").read_text()) == report
    assert Image.open(tmp_path / "evidence.png").size[0] > 400
    assert report["verdict"].startswith("Pasting the feature changes ")
    assert report["verdict"].count(" of predictions under ") == 2
    page = (tmp_path / "evidence.html").read_text()
    assert report["verdict"] in html.unescape(page) and "Content-Security-Policy" in page
    text = (tmp_path / "evidence.md").read_text()
    assert text == markdown(report) and "| ratio to the first |" in text


def test_grey_images_and_other_tasks_have_the_measures_that_make_sense(tmp_path: Path) -> None:
    run(tmp_path / "run", "penalty=none", "training.epochs=1")
    report = write([tmp_path], tmp_path / "out", Options(resamples=5, limit=4, examples=0))
    (found,) = report["settings"].values()
    assert found["measures"].keys() == {
        "area", "cd_share", "gradient", "painted_over", "painted_changed"}  # fmt: skip
    assert found["measures"]["area"]["images"] == 4
    assert "yields maps" in report["left_out"]["gradcam"]  # a net without convolutions
    assert "no class to be found" in report["left_out"]["pasted"]


def test_only_what_is_asked_for_is_measured(runs: Path, tmp_path: Path) -> None:
    report = write([runs / "none"], tmp_path, Options(resamples=5, measures=("pasted",)))
    assert report["settings"]["none"]["measures"].keys() == {"pasted", "pasted_relative"}
    assert not (tmp_path / "evidence.png").exists()


def test_patched_images_are_those_with_a_mask_and_a_limit_spreads() -> None:
    patched, plain = with_and_without(tiny_spots(0, 24, 0).splits["test"])
    assert patched == [0, 4, 8, 12, 16, 20] and len(plain) == 18
    assert spread(patched, 3) == [0, 8, 16] and spread(patched, 9) == spread(patched, None)
    assert spread([], 3) == []


def test_ratios_are_of_the_same_images_and_an_undefined_map_is_left_out() -> None:
    found = Found()
    names = ["a", "b", "c"]
    found.add("none", names, "gradcam", torch.tensor([0.4, 0.6, torch.nan]))
    found.add("cdep", names, "gradcam", torch.tensor([0.1, 0.1, 0.9]))
    found.add("none", names, "pasted", torch.tensor([-2.0, -4.0, -3.0]))
    found.add("none", names, "before", torch.tensor([1.0, 2.0, 3.0]))
    summary = summarise(found, ["none", "cdep"], Options(resamples=20))
    assert summary["none"]["gradcam"]["mean"] == pytest.approx(0.5)
    assert summary["none"]["gradcam"]["images"] == 2
    assert summary["cdep"]["gradcam"]["ratio"] == pytest.approx(0.2)
    low, high = summary["none"]["pasted"]["interval"]
    assert -4 <= low <= -3 <= high <= -2
    assert summary["none"]["pasted_relative"]["mean"] == pytest.approx(-3)


def test_an_image_that_two_folds_judge_counts_once_with_their_mean() -> None:
    found = Found()
    found.add("none", ["a", "b"], "area", torch.tensor([0.2, 0.6]))
    found.add("none", ["a"], "area", torch.tensor([0.4]))
    area = summarise(found, ["none"], Options(resamples=20))["none"]["area"]
    assert area["images"] == 2 and area["mean"] == pytest.approx(0.45)


def test_a_sticker_is_the_same_for_every_net_and_spares_what_it_is_told_to(tmp_path: Path) -> None:
    image = np.full((64, 64, 3), 200, dtype=np.uint8)
    first, again = (paste(image, "x", Options(seed=1)) for _ in range(2))
    assert (first == again).all() and (first != image).any()
    assert (paste(image, "y", Options(seed=1)) != first).any()
    hidden = (first != image).any(-1)
    Image.fromarray(np.uint8(255 * hidden)).save(tmp_path / "x.png")
    spared = (paste(image, "x", Options(seed=1, avoid=tmp_path)) != image).any(-1)
    assert (spared & hidden).sum() < 0.5 * hidden.sum()
    with pytest.raises(ConfigError, match=r"there is no y\.png"):
        paste(image, "y", Options(avoid=tmp_path))


def test_a_brighter_pixel_becomes_an_input_in_the_data_s_own_scale() -> None:
    bunch: Bunch = tiny_spots(0, 4, 0)
    torch.testing.assert_close(scale(bunch), torch.full((3, 1, 1), STD))
    bunch.display = lambda x: (x * torch.tensor([1.0, 2.0, 4.0])[:, None, None]) + MEAN
    torch.testing.assert_close(scale(bunch).flatten(), torch.tensor([1.0, 2.0, 4.0]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "no finished run below nowhere"),
        (["{runs}", "--split", "tset"], "--split is tset; tiny_spots has train, val, test"),
        (["{runs}", "--split", "test_patch_free"], "no image of split test_patch_free has a mask"),
        (["{runs}", "--limit", "0"], "--limit is 0; accepted: 1 or more"),
        (["{runs}", "--avoid", "{out}"], "there is no test_0_1.png"),
    ],
)
def test_bad_input_is_one_line(
    runs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    said = [one.format(runs=runs / "none", out=tmp_path) for one in arguments]
    monkeypatch.setattr(sys, "argv", ["evidence", *said, "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert message in str(stopped.value) and "\n" not in str(stopped.value)


def test_texts_are_judged_by_their_words(tmp_path: Path) -> None:
    run(tmp_path / "run", "dataset=tiny_text", "penalty=none", "training.epochs=4")
    report = write([tmp_path], tmp_path / "out", Options(resamples=5, split="train"))
    (found,) = report["settings"].values()
    assert {"omission", "word_gradient", "word_cd"} <= found["measures"].keys()
    assert found["measures"]["omission"]["mean"] > 1  # the word gives the class away


def test_data_that_name_no_feature_are_refused(tmp_path: Path) -> None:
    run(tmp_path / "run", "dataset=tiny_spots", "penalty=none", "training.epochs=1",
        "training.resamples=0")  # fmt: skip
    _, bunch = load(tmp_path / "run")
    with pytest.raises(ConfigError, match="no images, no texts and no table"):
        kind_of(replace(bunch, display=None), None)
