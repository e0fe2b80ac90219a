"""ISIC preparation: any picture becomes usable or is reported, stickers are found, splits hold."""

import contextlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from browser import dump_dom
from cdep_run.errors import ConfigError
from cdep_run.isic_prep.decode import PrepareError, read_mask, read_rgb
from cdep_run.isic_prep.images import resize
from cdep_run.isic_prep.masks import segment, struck
from cdep_run.isic_prep.paste import paste
from cdep_run.isic_prep.segment import dilate, segment_patches
from cdep_run.isic_prep.settings import Splits, load
from cdep_run.isic_prep.sheet import sheet
from cdep_run.isic_prep.splits import assign, divide, groups_of, splits
from cdep_run.isic_prep.step_report import Report
from cdep_run.isic_prep.stickers import paste_sticker

ROOT = Path(__file__).parents[1]
SETTINGS = ROOT / "data_prep" / "isic.yaml"
GROUPS = ["patient_id", "lesion_id"]
DATA = Path(os.environ.get("CDEP_RUN_DATA", ROOT.parent / "shared" / "data")) / "isic"


def settings(*overrides):
    return load(SETTINGS, ["workers=1", "resize.size=99", *overrides])


def skin(seed=0, size=99):
    """Skin with a brown lesion in the middle, as uint8 [size, size, 3]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size - 0.5
    pixels = np.array([205.0, 168, 145]) + 20 * y[..., None]
    spot = 1 / (1 + np.exp((np.hypot(x, 1.2 * y) - 0.17) * 40))
    pixels += spot[..., None] * np.array([-100.0, -100, -100])
    return np.clip(pixels + rng.normal(0, 3, pixels.shape), 0, 255).astype(np.uint8)


def encoded(pixels, kind="PNG", **options):
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def source(tmp_path):
    """20 images, 10 of each class, two of each patient; the even benign ones show a sticker."""
    folder = tmp_path / "source"
    folder.mkdir()
    rows = []
    for n in range(20):
        pixels = skin(n)
        if n < 10 and n % 2 == 0:
            pixels, _ = paste_sticker(pixels, n)
        (folder / f"ISIC_{n:07d}.png").write_bytes(encoded(pixels))
        rows.append({"isic_id": f"ISIC_{n:07d}", "patient_id": f"P{n // 2}",
                     "benign_malignant": "benign" if n < 10 else "malignant"})  # fmt: skip
    pd.DataFrame(rows).to_csv(folder / "metadata.csv", index=False)
    return folder


def report(folder, name="resize"):
    table = pd.read_csv(folder / "reports" / f"{name}.csv", dtype=str)
    return table.fillna("").set_index("isic_id")


# --- pictures of every kind


def test_pictures_of_every_mode_become_the_same_rgb():
    grey = np.arange(0, 250, 10, dtype=np.uint8).repeat(10).reshape(25, 10)
    rgb = np.stack([grey] * 3, axis=-1)
    kinds = {
        "grey": encoded(grey),
        "16 bit": encoded(grey.astype(np.uint16) * 257),
        "16 bit tiff": encoded(grey.astype(np.uint16) * 257, "TIFF"),
        "float tiff": encoded(grey.astype(np.float32) / 255, "TIFF"),
        "opaque alpha": encoded(np.dstack([rgb, np.full_like(grey, 255)])),
        "palette": encoded(Image.fromarray(rgb).quantize(256)),
        "cmyk": encoded(Image.fromarray(rgb).convert("CMYK"), "TIFF"),
    }
    for name, data in kinds.items():
        image, changes = read_rgb(data)
        assert image.mode == "RGB", name
        assert np.abs(np.asarray(image).astype(int) - rgb).max() <= 1, name
        assert "made RGB" in changes, name
    image, changes = read_rgb(encoded(rgb))
    assert (np.asarray(image) == rgb).all() and not changes


def test_transparent_pixels_become_white():
    pixels = np.zeros((4, 4, 4), dtype=np.uint8)
    assert (np.asarray(read_rgb(encoded(pixels))[0]) == 255).all()


def test_exif_rotation_is_carried_out():
    wide = np.zeros((4, 8, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    image, changes = read_rgb(encoded(wide, "JPEG", exif=exif))
    assert image.size == (4, 8) and "EXIF" in changes


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"no picture", "cannot be decoded: it is no picture"),
        (encoded(skin(), "JPEG")[:-500], "truncated"),
        (encoded(skin())[:-500], "cannot be decoded"),
    ],
)
def test_what_is_no_whole_picture_is_refused(data, reason):
    with pytest.raises(PrepareError, match=reason):
        read_rgb(data)


def with_odd_exif(pixels):
    """A JPEG to be turned by 90 degrees, whose EXIF data give a resolution as text."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    data = bytearray(encoded(pixels, "JPEG", exif=exif))
    at = data.index((0x010F).to_bytes(2, "big"))
    data[at : at + 2] = (0x011A).to_bytes(2, "big")  # the text becomes XResolution
    return bytes(data)


def with_torn_exif(pixels):
    """A JPEG whose EXIF data end in the middle of an entry."""
    data = encoded(pixels, "JPEG")
    torn = b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12"
    return data[:2] + b"\xff\xe1" + (len(torn) + 2).to_bytes(2, "big") + torn + data[2:]


def with_huge_comment(pixels):
    """A PNG with a compressed comment that unpacks to 64 MB, more than Pillow allows."""
    data, text = encoded(pixels), b"comment\0\0" + zlib.compress(bytes(1 << 26))
    chunk = b"zTXt" + text
    whole = len(text).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    return data[:33] + whole + data[33:]


@pytest.mark.parametrize("spoil", [with_odd_exif, with_torn_exif, with_huge_comment])
def test_metadata_that_cannot_be_read_never_cost_the_pixels(spoil):
    pixels = skin(size=60)[:40]
    image, _ = read_rgb(spoil(pixels))
    upright = np.rot90(pixels, -1) if spoil is with_odd_exif else pixels
    assert image.size == upright.shape[1::-1]
    assert np.abs(np.asarray(image).astype(int) - upright).mean() < 4


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "AVIF", "DDS", "TIFF", "WEBP", "BMP"])
def test_a_damaged_file_of_any_kind_is_a_picture_or_a_prepare_error(kind):
    whole, draw = encoded(skin(size=24), kind), random.Random(0)
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(4):
            data[draw.randrange(min(300, len(data)))] ^= 1 << draw.randrange(8)
        for read in (read_rgb, read_mask):
            with contextlib.suppress(PrepareError):
                read(bytes(data[: draw.choice([len(data), draw.randrange(len(data))])]))


def test_numbers_that_are_none_cost_their_pixels_alone():
    grey = np.linspace(0, 1, 100, dtype=np.float32).reshape(10, 10)
    for scale in (1, 255, 65535):
        values = grey * scale
        values[0, 3] = np.nan
        image, changes = read_rgb(encoded(values, "TIFF"))
        expected = (grey * 255).round()
        expected[0, 3] = 0
        assert (np.asarray(image)[..., 0] == expected).all() and "1 pixels that are no" in changes
    with pytest.raises(PrepareError, match="no pixel is a finite number"):
        read_rgb(encoded(np.full((4, 4), np.nan, np.float32), "TIFF"))
    with pytest.raises(PrepareError, match="values up to 100000"):
        read_rgb(encoded(np.full((4, 4), 100_000, np.int32), "TIFF"))


def test_a_mask_marks_what_is_not_zero_in_any_channel():
    marked = np.zeros((6, 5), dtype=bool)
    marked[:2] = True
    faint = np.zeros((6, 5, 3), np.uint8)
    faint[marked, 2] = 2
    black = np.zeros((6, 5, 4), np.uint8)
    black[marked, 3] = 255
    palette = Image.fromarray(marked.astype(np.uint8), "P")
    palette.putpalette([255, 255, 255, 0, 0, 0])  # white, black: here black is zero
    assert (read_mask(encoded(palette)) == ~marked).all()
    palette.putpalette([0, 0, 0, 0, 0, 0])  # class numbers
    for picture in (marked, faint, black, marked.astype(np.uint16), palette):
        assert (read_mask(encoded(picture)) == marked).all()


# --- resize


def test_bad_input_is_reported_by_name_and_the_rest_is_made(source, tmp_path):
    out = tmp_path / "out"
    (source / "ISIC_0000000.png").write_bytes(b"")
    (source / "ISIC_0000001.png").write_bytes(b"no picture")
    (source / "ISIC_0000002.png").unlink()
    shutil.copy(source / "ISIC_0000004.png", source / "ISIC_0000003.png")
    table = pd.read_csv(source / "metadata.csv")
    table.loc[5, "benign_malignant"] = None
    table.loc[6, "benign_malignant"] = "indeterminate"
    other = table.iloc[[8]].assign(benign_malignant="malignant")
    pd.concat([table, table.iloc[[7]], other]).to_csv(source / "metadata.csv", index=False)
    shutil.copy(source / "ISIC_0000012.png", source / "ISIC_0000012.tiff")
    resize(out, settings(f"resize.source={source}").resize, 1)
    rows = report(out)
    assert "ISIC_0000012.png is used" in " ".join(rows.loc[["ISIC_0000012"], "detail"])
    expected = {
        0: "the file is empty", 1: "cannot be decoded", 2: "no picture of this name",
        4: "the same picture as ISIC_0000003", 5: "no diagnosis", 6: "is indeterminate",
        8: "with different labels",
    }  # fmt: skip
    for number, detail in expected.items():
        row = rows.loc[f"ISIC_{number:07d}"]
        assert row["status"] == "skipped" and detail in row["detail"]
    assert "listed twice" in " ".join(rows.loc[["ISIC_0000007"], "detail"])
    made = {path.stem: path for path in out.glob("*/*.jpg")}
    assert sorted(made) == [f"ISIC_{n:07d}" for n in range(20) if n not in expected]
    for path in made.values():
        with Image.open(path) as image:
            assert image.size == (99, 99) and image.mode == "RGB"
    assert made["ISIC_0000009"].parent.name == "benign"
    assert made["ISIC_0000010"].parent.name == "malignant"


def test_odd_files_cost_their_own_line_of_the_report_alone(source, tmp_path):
    out, names = tmp_path / "out", [f"ISIC_{n:07d}" for n in range(10)]
    for name in names[:9]:
        (source / f"{name}.png").unlink()
    (source / f"{names[0]}.jpg").symlink_to(source / "nowhere.jpg")
    (source / f"{names[1]}.gif").write_bytes(encoded(skin(50), "GIF"))
    (source / f"{names[2]}.txt").write_text("notes")
    (source / f"{names[3]}.png").write_bytes(encoded(np.zeros((1, 1, 3), np.uint8)))
    (source / f"{names[4]}.png").write_bytes(encoded(skin(51)[:1].repeat(30, axis=1)))
    (source / f"{names[5]}.png").write_bytes(encoded(np.zeros((99, 99, 3), np.uint8)))
    (source / f"{names[6]}.png").write_bytes(encoded(np.full((99, 99, 3), 255, np.uint8)))
    (source / f"{names[7]}.png").write_bytes(encoded(Image.new("1", (4000, 3000))))
    (source / names[8]).symlink_to(source)  # a circle of links
    table = pd.read_csv(source / "metadata.csv")
    wild = table.iloc[[0]].assign(isic_id="../../outside")
    pd.concat([table, wild, table.iloc[[9]]]).to_csv(source / "metadata.csv", index=False)
    resize(out, settings(f"resize.source={source}", "resize.largest=10").resize, 1)
    rows = report(out)
    assert rows.loc["../../outside", "detail"] == "metadata: no usable isic_id"
    assert rows.loc[[names[9]], "status"].tolist() == ["ok", "remark"]
    expected = {
        0: ("skipped", "cannot be read: No such file"), 1: ("ok", "P made RGB"),
        2: ("skipped", "ISIC_0000002.txt: cannot be decoded: it is no picture"),
        3: ("skipped", "same picture as"), 4: ("ok", "look at it: only 2970×1 pixels"),
        5: ("ok", "look at it: all of one colour (0, 0, 0)"),
        6: ("ok", "look at it: all of one colour (255, 255, 255)"),
        7: ("skipped", "has 4000×3000 pixels, 12 megapixels; at most 10"),
        8: ("skipped", "no picture of this name"),
    }  # fmt: skip
    # 1×1 and all black are the same picture once they are squashed.
    expected[3], expected[5] = ("ok", "only 1×1 pixels"), ("skipped", "the same picture as")
    for number, (status, detail) in expected.items():
        row = rows.loc[names[number]]
        assert row["status"] == status and detail in row["detail"], names[number]
    (source / f"{names[3]}.png").unlink()
    resize(out, settings(f"resize.source={source}", "resize.largest=10").resize, 1)
    row = report(out).loc[names[5]]  # its twin has gone
    assert row["status"] == "ok" and "all of one colour (0, 0, 0)" in row["detail"]


def test_a_remark_does_not_hide_the_row_that_it_remarks_on(tmp_path):
    file = Report(tmp_path / "r.csv", ("isic_id", "status", "detail"))
    rows = [{"isic_id": f"{n:03d}", "status": "ok", "detail": "a\nb"} for n in range(100)]
    file.replace(rows + [{**row, "status": "remark", "detail": ""} for row in rows])
    assert [row["status"] for row in file.rows().values()] == ["ok"] * 100
    content = bytearray(file.path.read_bytes())
    content[content.index(b"050")] = 0x22  # a quotation mark swallows no other line
    content[content.index(b"060")] = 0xFF
    file.path.write_bytes(content)
    assert len({f"{n:03d}" for n in range(100)} & set(file.rows())) == 98


def test_a_second_run_makes_only_what_is_missing_or_changed(source, tmp_path):
    out = tmp_path / "out"
    options = settings(f"resize.source={source}").resize
    resize(out, options, 1)
    for path in out.glob("*/*.jpg"):
        os.utime(path, (0, 0))
    (out / "benign" / "ISIC_0000001.jpg").unlink()
    (source / "ISIC_0000002.png").write_bytes(encoded(skin(77)))
    resize(out, options, 1)
    again = {p.stem for p in out.glob("*/*.jpg") if p.stat().st_mtime > 0}
    assert again == {"ISIC_0000001", "ISIC_0000002"}


def test_a_report_survives_a_row_that_was_cut_off(tmp_path):
    file = Report(tmp_path / "r.csv", ("isic_id", "status"))
    file.add({"isic_id": "a", "status": "ok"})
    with open(file.path, "a") as text:
        text.write("b")
    assert set(file.rows()) == {"a"}
    file.add({"isic_id": "c", "status": "ok"})
    assert set(file.rows()) == {"a", "c"}


def test_metadata_that_is_missing_or_has_no_label_column_stops_with_the_cure(tmp_path):
    with pytest.raises(PrepareError, match="run the step download"):
        resize(tmp_path / "out", settings().resize, 1)
    (tmp_path / "metadata.csv").write_text("isic_id,age\nISIC_1,50\n")
    with pytest.raises(PrepareError, match="diagnosis_1 or benign_malignant"):
        resize(tmp_path / "out", settings(f"resize.source={tmp_path}").resize, 1)


# --- segment


def test_pasted_stickers_are_found_and_lesions_are_not():
    options = settings().segment
    ious = []
    for seed in range(12):
        image = skin(seed, 150)
        assert not segment_patches(image, options).any()
        pasted, truth = paste_sticker(image, seed)
        found = segment_patches(pasted, options)
        ious.append((found & truth).sum() / (found | truth).sum())
    assert np.mean(ious) > 0.8 and np.mean(np.array(ious) > 0.5) > 0.9


def test_uniform_black_and_white_pictures_have_no_sticker():
    for value in (0, 128, 255):
        image = np.full((80, 80, 3), value, dtype=np.uint8)
        assert not segment_patches(image, settings().segment).any()


def test_dilation_adds_ten_pixels_each_way():
    mask = np.zeros((60, 60), dtype=bool)
    mask[25:35, 25:35] = True
    grown = dilate(mask, 20)
    assert grown.sum() == 29 * 29 and (dilate(mask, 0) == mask).all()


def test_own_masks_replace_the_automatic_ones_if_they_fit(source, tmp_path):
    out, own = tmp_path / "out", tmp_path / "own"
    own.mkdir()
    options = settings(f"resize.source={source}", f"segment.masks={own}", "segment.dilate=3")
    good = np.zeros((99, 99), dtype=np.uint8)
    good[:20, :20] = 255
    for number, data in enumerate(
        [encoded(good), encoded(good[:50]), encoded(np.full((99, 99), 255, np.uint8)), b"broken",
         encoded(np.zeros((99, 99), np.uint8))]
    ):  # fmt: skip
        (own / f"ISIC_{number:07d}.png").write_bytes(data)
    (own / "ISIC_7777777.png").write_bytes(encoded(good))
    resize(out, options.resize, 1)
    segment(out, options.segment, 1)
    rows = report(out, "segment")
    assert rows.loc["ISIC_7777777", "detail"] == "there is no image of this name"
    details = [rows.loc[f"ISIC_{n:07d}", "detail"] for n in range(5)]
    assert details[0] == "" and "own mask marks nothing" in details[4]
    assert "99×50" in details[1] and "covers 100%" in details[2] and "decoded" in details[3]
    assert [rows.loc[f"ISIC_{n:07d}", "origin"] for n in (0, 1, 4)] == ["own", "automatic", "own"]
    with Image.open(out / "patch_masks" / "ISIC_0000000.png") as mask:
        assert mask.mode == "1" and np.asarray(mask).sum() == 21 * 21
    assert not (out / "patch_masks" / "ISIC_0000004.png").exists()


def test_a_damaged_image_costs_its_own_line_in_every_later_step(source, tmp_path, capsys):
    out = tmp_path / "out"
    options = settings(f"resize.source={source}", "splits.folds=2",
                       "splits.shares={train: 0.6, val: 0.2, test: 0.2}")  # fmt: skip
    resize(out, options.resize, 1)
    (out / "benign" / "ISIC_0000001.jpg").write_bytes(b"damaged")
    (out / "benign" / "ISIC_0000003.jpg").unlink()
    (out / "benign" / "ISIC_0000003.jpg").symlink_to(out / "nowhere")
    segment(out, options.segment, 1)
    rows = report(out, "segment")
    assert rows.loc["ISIC_0000001", "status"] == rows.loc["ISIC_0000003", "status"] == "skipped"
    assert "ISIC_0000001.jpg: cannot be decoded" in rows.loc["ISIC_0000001", "detail"]
    assert "ISIC_0000003.jpg: cannot be read" in rows.loc["ISIC_0000003", "detail"]
    assert "run the step resize again" in rows.loc["ISIC_0000003", "detail"]
    sheet(out, 1)
    assert "2 images" in capsys.readouterr().out
    splits(out, options.resize, options.splits)
    assert len(pd.read_csv(out / "metadata.csv")) == 18
    (out / "benign" / "ISIC_0000005.jpg").write_bytes(b"damaged")
    paste(out, load(SETTINGS, ["paste.benign_train=1.0"]).paste, 1)
    assert "ISIC_0000005" not in set(pd.read_csv(out / "pasted" / "metadata.csv")["isic_id"])


def test_an_interrupted_segmentation_goes_on_and_a_new_setting_starts_anew(source, tmp_path):
    out = tmp_path / "out"
    options = settings(f"resize.source={source}")
    resize(out, options.resize, 1)
    segment(out, options.segment, 1)
    table = (out / "reports" / "segment.csv").read_text().splitlines(keepends=True)
    assert sum(",mask," in line for line in table) >= 4
    (out / "reports" / "segment.csv").write_text("".join(table[:10]) + table[10][:9])
    for path in out.glob("patch_masks/*"):
        os.utime(path, (0, 0))
    segment(out, options.segment, 1)
    assert (out / "reports" / "segment.csv").read_text() == "".join(table)
    old = [line.split(",")[0] for line in table[1:10] if ",mask," in line]
    assert all((out / "patch_masks" / f"{n}.png").stat().st_mtime == 0 for n in old)
    segment(out, settings("segment.dilate=5").segment, 1)
    assert all(path.stat().st_mtime > 0 for path in out.glob("patch_masks/*"))


# --- struck out, splits


@pytest.fixture
def prepared(source, tmp_path):
    out = tmp_path / "out"
    options = settings(f"resize.source={source}", "splits.shares={train: 0.6, val: 0.2, test: 0.2}")
    resize(out, options.resize, 1)
    segment(out, options.segment, 1)
    return out, options


def test_struck_out_masks_and_images_are_left_out(prepared):
    out, options = prepared
    (out / "struck.txt").write_text("# by eye\nISIC_0000002 mask\nISIC_0000011 image\n")
    splits(out, options.resize, options.splits)
    table = pd.read_csv(out / "metadata.csv").set_index("isic_id")
    assert "ISIC_0000011" not in table.index and len(table) == 19
    assert table.loc["ISIC_0000002", "patches"] == 0
    assert table["patch_mask"].notna().sum() == table["patches"].sum() >= 3
    for row in table.itertuples():
        assert (out / row.file).is_file()
    (out / "struck.txt").write_text("ISIC_0000002\n")
    with pytest.raises(PrepareError, match="line 1"):
        struck(out)


def test_patients_stay_together_and_every_split_has_its_share(prepared):
    out, options = prepared
    first = splits(out, options.resize, options.splits)
    table = pd.read_csv(out / "splits.csv").merge(pd.read_csv(out / "metadata.csv"), on="isic_id")
    for column in ("split", "fold"):
        assert (table.groupby("patient_id")[column].nunique() == 1).all()
    assert table["split"].value_counts().to_dict() == {"train": 12, "val": 4, "test": 4}
    assert splits(out, options.resize, options.splits).equals(first)


def test_a_class_missing_from_a_split_stops_with_its_name(prepared):
    out, options = prepared
    (out / "struck.txt").write_text("".join(f"ISIC_{n:07d} image\n" for n in range(12, 20)))
    with pytest.raises(PrepareError, match=r"has no malignant image \(2 of 12 images"):
        splits(out, options.resize, options.splits)


def test_groups_are_joined_through_any_column():
    table = pd.DataFrame({
        "patient_id": ["A", "A", "B", None, "C"], "lesion_id": [None, "1", "1", None, "2"]
    })  # fmt: skip
    assert groups_of(table, ["patient_id", "lesion_id"]).tolist() == [0, 0, 0, 1, 2]
    assert groups_of(table, ["absent"]).tolist() == [0, 1, 2, 3, 4]


def test_division_keeps_shares_within_each_stratum():
    rng = np.random.default_rng(0)
    groups = np.sort(rng.integers(0, 700, 1000))
    groups = np.unique(groups, return_inverse=True)[1]
    strata = rng.choice(3, size=1000, p=[0.75, 0.2, 0.05])
    part = divide(strata, groups, [0.8, 0.1, 0.1], seed=3)
    for stratum in range(3):
        size = (strata == stratum).sum()
        for number, share in enumerate([0.8, 0.1, 0.1]):
            assert abs(((strata == stratum) & (part == number)).sum() - share * size) <= 2
    assert (pd.Series(part).groupby(groups).nunique() == 1).all()
    assert (divide(strata, groups, [0.8, 0.1, 0.1], seed=4) != part).any()


def test_a_patient_with_most_images_stays_where_there_is_room_and_is_warned_of(caplog):
    patients = ["P0"] * 26 + [f"P{n}" for n in range(1, 35)]
    table = pd.DataFrame({
        "isic_id": [f"I{n}" for n in range(60)], "patient_id": patients, "patches": 0,
        "benign_malignant": ["benign"] * 30 + ["malignant"] * 30,
    })  # fmt: skip
    for seed in range(6):
        parts = assign(table, Splits(seed, {"train": 0.8, "val": 0.1, "test": 0.1}, 4, GROUPS))
        assert set(parts["split"][:26]) == {"train"}
        assert parts["split"].value_counts().to_dict() == {"train": 50, "val": 5, "test": 5}
    warnings = [record.message for record in caplog.records]
    assert any("benign images instead of 8" in text and "has 26 of 60" in text for text in warnings)
    assert not any("split" in text for text in warnings)
    caplog.clear()
    assign(table, Splits(0, {"train": 0.4, "val": 0.3, "test": 0.3}, 2, GROUPS))
    assert "holds 26 of 30 benign images instead of 12" in caplog.text


def test_pasted_copies_have_exact_masks_and_the_other_layout_stays(prepared):
    out, options = prepared
    splits(out, options.resize, options.splits)
    paste(out, load(SETTINGS, ["paste.benign_train=1.0"]).paste, 1)
    table = pd.read_csv(out / "pasted" / "metadata.csv")
    parts = pd.read_csv(out / "splits.csv").set_index("isic_id")["split"]
    assert {(parts[r.isic_id], r.benign_malignant) for r in table.itertuples()} == {
        ("train", "benign"), ("test", "malignant")
    }  # fmt: skip
    for row in table.itertuples():
        before = np.asarray(Image.open(out / row.benign_malignant / f"{row.isic_id}.jpg"))
        after = np.asarray(Image.open(out / "pasted" / row.file))
        mask = np.asarray(Image.open(out / "pasted" / row.patch_mask))
        assert (before[~mask] == after[~mask]).all() and (before[mask] != after[mask]).any()


# --- contact sheet


def test_the_contact_sheet_lists_all_images_with_outlines(prepared):
    out, _ = prepared
    (out / "struck.txt").write_text("ISIC_0000003 image\n")
    sheet(out, 1)
    page = (out / "sheet.html").read_text()
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert len(data["images"]) == 20 and data["struck"] == {"ISIC_0000003": "image"}
    masks = {path.stem for path in (out / "patch_masks").glob("*.png")}
    assert {image["id"] for image in data["images"] if "outline" in image} == masks


@pytest.mark.browser
def test_the_contact_sheet_works_in_a_browser(prepared):
    out, _ = prepared
    sheet(out, 1)
    page = (out / "sheet.html").read_text()
    keys = """<script>
      const press = key => document.dispatchEvent(new KeyboardEvent("keydown", {key}));
      press(" "); press("ArrowRight"); press("x"); press("ArrowRight"); press("m"); press("u");
      document.title = list();
    </script>"""
    (out / "sheet.html").write_text(page.replace("</body>", f"{keys}</body>"))
    dom = dump_dom(out / "sheet.html", clock="--virtual-time-budget=5000")
    shown = sorted(path.stem for path in (out / "patch_masks").glob("*.png"))
    title = dom.split("<title>")[1].split("</title>")[0].split("\n")
    assert title[1:3] == [f"{shown[0]} mask", f"{shown[1]} image"] and len(title) <= 4
    assert dom.count("<figure") == len(shown)
    assert dom.count("<path") == len(shown) + 1  # one is in the script


# --- the command, and the real images


def command(*arguments):
    return subprocess.run(
        [sys.executable, ROOT / "data_prep" / "isic.py", *map(str, arguments)],
        capture_output=True, text=True, timeout=200,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
    )  # fmt: skip


def test_the_whole_path_by_one_command(source, tmp_path):
    out = tmp_path / "out"
    done = command(f"folder={out}", f"resize.source={source}", "resize.size=99",
                   "splits.shares={train: 0.6, val: 0.2, test: 0.2}")  # fmt: skip
    assert done.returncode == 0, done.stderr
    for name in ("metadata.csv", "splits.csv", "sheet.html", "reports/resize.csv"):
        assert (out / name).is_file()


def test_ctrl_c_even_twice_ends_all_processes_and_the_next_call_goes_on(source, tmp_path):
    out, more = tmp_path / "out", tmp_path / "more"
    shutil.copytree(source, more)
    rows = []
    for n in range(400):
        (more / f"ISIC_1{n:06d}.png").write_bytes(encoded(skin(n, 60)))
        rows.append({"isic_id": f"ISIC_1{n:06d}", "benign_malignant": "benign"})
    table = pd.concat([pd.read_csv(source / "metadata.csv"), pd.DataFrame(rows)])
    table.to_csv(more / "metadata.csv", index=False)
    arguments = [f"folder={out}", f"resize.source={more}", "resize.size=199", "workers=2"]
    assert command("resize", *arguments).returncode == 0
    process = subprocess.Popen(
        [sys.executable, ROOT / "data_prep" / "isic.py", "segment", *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")}, start_new_session=True,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    report_file = out / "reports" / "segment.csv"
    while process.poll() is None and not report_file.is_file():
        time.sleep(0.05)
    for _ in range(2):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.02)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0 and "goes on from here" in errors
    first = set(Report(report_file, ("isic_id",)).rows())
    assert 0 < len(first) < 420
    done = command("segment", *arguments)
    assert done.returncode == 0 and len(Report(report_file, ("isic_id",)).rows()) == 420


def test_mistakes_are_one_line(tmp_path):
    for arguments, message in [
        (["resizes"], "no step 'resizes'"),
        (["resize", "resize.sice=3"], "sice"),
        (["segment", f"folder={tmp_path}"], "run the step resize first"),
    ]:
        done = command(*arguments)
        assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr
    with pytest.raises(ConfigError, match="workers"):
        load(SETTINGS, ["workers=many"])


def test_real_stickers_are_found_and_the_images_without_stay_without():
    if not (DATA / "metadata.csv").is_file():
        pytest.skip(f"the real images are not in {DATA}")
    table = pd.read_csv(DATA / "metadata.csv").sample(frac=1, random_state=1)
    options = load(SETTINGS).segment
    ious = []
    for row in table[table["patch_mask"].notna()].head(6).itertuples():
        truth = np.asarray(Image.open(DATA / row.patch_mask)) > 0
        found = segment_patches(np.asarray(Image.open(DATA / row.file)), options)
        ious.append((found & truth).sum() / (found | truth).sum())
    assert np.mean(ious) >= 0.8
    free = table[table["patches"] == 0].head(6)
    false = [segment_patches(np.asarray(Image.open(DATA / f)), options).any() for f in free["file"]]
    assert sum(false) <= 1
