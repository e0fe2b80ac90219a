"""`cdep-run check`: all that is wrong with a data set, at once, and nothing trained."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.stats import chi2_contingency, hypergeom

from cdep_run.check import check, settings
from cdep_run.check.association import associate
from cdep_run.check.findings import CheckReport
from cdep_run.check.page import as_html, as_text
from cdep_run.check.table import tells
from cdep_run.datasets.made_data import write_images, write_table
from running import inside

RNG = np.random.default_rng(0)


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """30 cats, of which 20 have a mask, and 30 dogs."""
    for label in ("cat", "dog"):
        for k in range(30):
            pixels = RNG.integers(0, 256, (10, 14, 3), dtype=np.uint8)
            save(tmp_path / "images" / label / f"{label}{k:02}.png", pixels)
            if label == "cat" and k < 20:
                mask = np.zeros((10, 14), bool)
                mask[2:5, 2:5] = True
                save(tmp_path / "masks" / f"cat{k:02}.png", mask)
    return tmp_path


def of_images(folder: Path, *options: str) -> CheckReport:
    return check(
        settings([
            "dataset=images", f"dataset.root={folder / 'images'}", "dataset.size=8",
            f"dataset.masks={{tag: {folder / 'masks'}}}", f"dataset.cache_dir={folder / 'cache'}",
            *options,
        ])
    )  # fmt: skip


def said(report: CheckReport, level: str) -> str:
    return "\n".join(f"{f.topic}|{f.where}|{f.what}" for f in report.of(level))


def test_a_feature_of_one_class_only_is_named_with_its_association(folder: Path) -> None:
    report = of_images(folder, "dataset.unmasked=clean")
    assert not report.of("fault")
    (found,) = report.associations
    assert found.table == [[20, 0], [10, 30]]
    assert found.alone == pytest.approx(50 / 60) and found.majority == 0.5
    # probability of 20 or more with a mask among 30 cats, both tails of a symmetric table
    one_tail = hypergeom(60, 20, 30).sf(19)
    assert found.p_value == pytest.approx(2 * one_tail, rel=1e-6)
    assert "'with' is of class cat alone" in said(report, "warning")
    assert "who sees it alone is right in 83%, who sees nothing in 50%" in said(report, "warning")


def test_everything_that_is_wrong_with_images_stands_in_one_report(folder: Path) -> None:
    images, masks = folder / "images", folder / "masks"
    (images / "cat" / "cat25.png").write_bytes(b"")
    (images / "dog" / "dog29.png").write_bytes((images / "dog" / "dog28.png").read_bytes()[:90])
    Image.open(images / "dog" / "dog00.png").save(images / "dog" / "copy.bmp")
    Image.open(images / "dog" / "dog01.png").save(images / "cat" / "twin.png")
    save(images / "dog" / "wide.png", RNG.integers(0, 256, (10, 40, 3), dtype=np.uint8))
    save(masks / "cat00.png", np.zeros((10, 14), bool))
    save(masks / "cat01.png", np.ones((10, 14), bool))
    save(masks / "cat02.png", np.ones((5, 7), bool))
    save(masks / "unknown.png", np.ones((10, 14), bool))
    for k in range(3):
        save(images / "rare" / f"rare{k}.png", RNG.integers(0, 256, (10, 14, 3), dtype=np.uint8))
    (images / "Thumbs.db").write_text("")
    report = of_images(folder)
    faults, warnings, notes = (said(report, level) for level in ("fault", "warning", "note"))
    for words in (
        "files and masks|cat/cat25.png|the file is empty",
        "files and masks|dog/dog29.png|cannot be decoded",
        "tag mask cat01.png|marks 100%",
        "tag mask cat02.png|is 7×5, the image (upright) is 14×10",
        "tag mask unknown.png|there is no image of this name",
    ):
        assert words in faults
    assert len(report.of("fault")) == 5
    for words in (
        "twin.png is cat, dog/dog01.png is dog",
        "class counts|class rare|has 1 examples in val",
        "1 masks mark nothing",
        "sizes|",
    ):
        assert words in warnings, words
    assert "dog/copy.bmp" in warnings + notes
    assert "Thumbs.db" in notes


def test_everything_that_is_wrong_with_a_table_stands_in_one_report(tmp_path: Path) -> None:
    count = 200
    label = RNG.integers(0, 2, count)
    frame = pd.DataFrame({
        "age": RNG.normal(40, 10, count).round(2),
        "after": label * 3.5 + RNG.random(count),
        "outcome": np.where(label, "bad", "good"),
        "empty": "",
        "same": "x",
        "sex": np.where(RNG.random(count) < 0.9, label, 1 - label),
        "price": [f"{k},5" for k in range(count)],
        "name": [f"n{k}" for k in range(count)],
        "label": label,
    })  # fmt: skip
    frame = pd.concat([frame, frame.iloc[:3]])
    frame.to_csv(tmp_path / "t.csv", index=False, encoding="utf-8-sig")
    base = ["dataset=table", f"dataset.table={tmp_path / 't.csv'}"]
    report = check(settings([*base, "dataset.must_not_matter=[sex,race]"]))
    faults, warnings = said(report, "fault"), said(report, "warning")
    assert "set dataset.decimal=','" in faults
    assert "column 'name' has 200 different values" in faults
    assert "names 'race' in race" in faults
    for words in (
        "leaks|outcome|tells the class of every row",
        "leaks|after|tells the class of every row",
        "constant columns|empty|is empty",
        "constant columns|same|holds 'x' alone",
    ):
        assert words in warnings, words
    assert "leaks|age" not in warnings and "leaks|name" not in warnings
    report = check(
        settings([*base, "dataset.must_not_matter=[sex]", "dataset.ignore=[price,name]"])
    )
    assert not report.of("fault")
    assert "shortcut|sex|goes with the class" in said(report, "warning")
    assert "duplicates" in said(report, "warning") + said(report, "note")


def test_strength_and_probability_are_those_of_the_textbook() -> None:
    values = ["a"] * 30 + ["b"] * 30 + ["c"] * 30
    labels = (["x"] * 20 + ["y"] * 10) + (["x"] * 10 + ["y"] * 20) + (["x"] * 15 + ["y"] * 15)
    found = associate("v", values, labels)
    assert found is not None
    chi2 = sum((o - 15) ** 2 / 15 for o in (20, 10, 10, 20, 15, 15))
    assert found.strength == pytest.approx((chi2 / 90) ** 0.5)
    assert found.p_value == pytest.approx(chi2_contingency([[20, 10], [10, 20], [15, 15]]).pvalue)
    assert associate("v", ["a"] * 4, ["x", "y"] * 2) is None


def test_a_column_tells_the_class_by_values_that_come_up_again() -> None:
    labels = ["x", "y"] * 20
    assert tells(np.array(labels, dtype=object), labels, numeric=False) == (1.0, 0.5)
    names = np.array([f"n{k}" for k in range(40)], dtype=object)
    assert tells(names, labels, numeric=False)[0] == 0.0
    assert tells(np.arange(40.0), sorted(labels), numeric=True)[0] == 1.0
    assert tells(np.arange(40.0), labels, numeric=True)[0] < 0.6


def test_the_page_escapes_what_the_data_hold_and_may_run_nothing(folder: Path) -> None:
    nasty = '<img src=x onerror="alert(1)">'
    for k in range(12):
        pixels = RNG.integers(0, 256, (10, 14, 3), dtype=np.uint8)
        save(folder / "images" / nasty.replace("/", "") / f"<b>{k}.png", pixels)
    page = as_html(of_images(folder))
    assert "<img src=x" not in page and "<b>" not in page
    assert "&lt;img src=x onerror=&quot;alert(1)&quot;&gt;" in page
    assert "default-src 'none'; img-src data:" in page
    assert set(re.findall(r'src="(.{15})', page)) == {"data:image/jpeg"}
    assert "<script" not in page and "http:" not in page and "https:" not in page
    assert page.count("<figure>") >= 18


def test_the_command_prints_writes_and_says_by_its_code_whether_training_would_refuse(
    folder: Path,
) -> None:
    words = ["check", "dataset=images", f"dataset.root={folder / 'images'}", "dataset.size=8",
             f"dataset.cache_dir={folder / 'cache'}", "--out", "sub/page.html"]  # fmt: skip
    done = inside(*words, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "Nothing stops training" in done.stdout
    assert (folder / "sub" / "page.html").is_file()
    assert not (folder / "outputs").exists()
    (folder / "images" / "cat" / "cat00.png").write_bytes(b"")
    assert inside(*words, cwd=folder).returncode == 1
    refused = inside("check", "dataset=images", "dataset.sise=3", cwd=folder)
    assert refused.returncode == 1 and "sise" in refused.stderr
    nothing = inside("check", "dataset=images", cwd=folder)
    assert nothing.returncode == 1 and "needs dataset.root=FOLDER" in nothing.stdout


def test_other_data_sets_are_checked_by_their_splits() -> None:
    report = check(settings(["dataset=decoy_digits"]))
    assert not report.of("fault")
    assert sum(report.counts["0"].values()) == 178
    assert "4 of 784 inputs never vary" in said(report, "note") and as_text(report)


def test_every_command_of_the_page_on_own_data_composes() -> None:
    page = (Path(__file__).parents[1] / "docs" / "own_data.md").read_text()
    lines = [line for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
             for line in block.splitlines() if line.startswith("cdep-run")]  # fmt: skip
    for line in lines:
        words = shlex.split(line)[1:]
        words = words[1 : words.index("--out")] if words[0] == "check" else words
        assert settings(words)["name"] in ("images", "table"), line
    assert len(lines) >= 6


def test_the_data_of_the_page_hold_the_shortcuts_that_they_are_for(tmp_path: Path) -> None:
    write_images(tmp_path, count=40)
    write_table(tmp_path, count=400)
    report = check(
        settings([
            "dataset=images", f"dataset.root={tmp_path / 'images'}", "dataset.size=8",
            f"dataset.masks={tmp_path / 'stickers'}", f"dataset.cache_dir={tmp_path / 'cache'}",
        ])
    )  # fmt: skip
    assert not report.of("fault") and report.associations[0].is_one
    report = check(
        settings([
            "dataset=table", f"dataset.table={tmp_path / 'applications.csv'}",
            "dataset.columns.label=invited", "dataset.must_not_matter=[origin]",
        ])
    )  # fmt: skip
    assert not report.of("fault") and report.associations[0].is_one
