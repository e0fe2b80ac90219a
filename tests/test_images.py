"""Images of one's own: every kind of file and mask, faults in one report, cache, augmentation."""

from __future__ import annotations

import io
import json
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from cdep_run.datasets.base import Bunch, DataError
from cdep_run.datasets.image_cache import ImageCache, Job
from cdep_run.datasets.images import images
from cdep_run.datasets.pictures import prepare, read_mask, read_picture
from cdep_run.errors import ConfigError
from cdep_run.features.store import RowError
from cdep_run.isic_prep.images import PrepareError
from cdep_run.train import train
from cdep_run.training.build import plain
from running import composed, run

SIZE = 12
COLUMNS = {"path": "path", "label": "label", "split": None, "group": None}
RNG = np.random.default_rng(0)


def photo(width: int = 16, height: int = 12) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path: Path, pixels: np.ndarray, **how: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **how)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """20 images of cats and 20 of dogs in `images`; 8 cats have a mask of 4 × 4 in `masks`."""
    for label in ("cat", "dog"):
        for k in range(20):
            save(tmp_path / "images" / label / f"{label}{k:02}.png", photo())
            if label == "cat" and k < 8:
                save(tmp_path / "masks" / f"cat{k:02}.png", square())
    return tmp_path


def square() -> np.ndarray:
    mask = np.zeros((12, 16), dtype=bool)
    mask[2:6, 4:8] = True
    return mask


def bunch_of(folder: Path, **options: Any) -> Bunch:
    standard = {
        "root": folder / "images",
        "seed": 0,
        "shares": {"train": 0.5, "val": 0.25, "test": 0.25},
        "columns": COLUMNS,
        "size": SIZE,
        "cache_dir": folder / "cache",
    }
    return images(**standard | options)


def everything(bunch: Bunch, split: str = "train") -> Any:
    return bunch.splits[split].batch(torch.arange(len(bunch.splits[split])))


# --- Pictures and masks ---------------------------------------------------------------------------


def data_of(image: Image.Image, kind: str = "PNG", **how: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **how)
    return buffer.getvalue()


def test_pictures_of_every_mode_become_upright_rgb() -> None:
    colour = Image.fromarray(photo())
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90°
    assert read_picture(data_of(colour, "JPEG", exif=exif)).size == (12, 16)
    cmyk = read_picture(data_of(Image.new("CMYK", (4, 3), (0, 255, 255, 0)), "JPEG"))
    assert np.asarray(cmyk)[0, 0, 0] > 200 and np.asarray(cmyk)[0, 0, 1] < 60
    deep = Image.fromarray(np.full((3, 4), 128 * 257, np.uint16))
    assert np.asarray(read_picture(data_of(deep))).tolist() == [[[128] * 3] * 4] * 3
    palette = read_picture(data_of(colour.quantize(4)))
    assert palette.mode == "RGB"
    clear = Image.new("RGBA", (2, 2), (0, 0, 0, 0))
    assert np.asarray(read_picture(data_of(clear))).min() == 255
    frames = [Image.new("RGB", (4, 4), name) for name in ("red", "blue")]
    animation = data_of(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.asarray(read_picture(animation))[0, 0].tolist() == [254, 0, 0] or np.asarray(
        read_picture(animation)
    )[0, 0].tolist() == [255, 0, 0]


def bomb() -> bytes:
    """A PNG whose header announces 60,000 × 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"", "is empty"), (b"hello", "no picture of a known kind"), (bomb(), "megapixels: too large"),
     (data_of(Image.fromarray(photo(200, 200)), "JPEG")[:3000], "truncated")],
)  # fmt: skip
def test_what_is_no_whole_picture_is_refused(data: bytes, words: str) -> None:
    for read in (read_picture, read_mask):
        with pytest.raises(PrepareError, match=words):
            read(data)


def test_masks_mark_what_is_not_zero_whatever_their_mode() -> None:
    wanted = square()
    ink = wanted.astype(np.uint8)
    rgba = np.zeros((12, 16, 4), np.uint8)
    rgba[wanted, 3] = 1  # black on clear
    opaque = np.dstack([ink * 0, ink * 0, ink * 3, np.full_like(ink, 255)])
    palette = Image.fromarray(ink)
    palette.putpalette([0, 0, 0, 0, 0, 0])  # both colours are black: the number counts
    made = [Image.fromarray(wanted), Image.fromarray(ink), Image.fromarray(ink.astype(np.uint16)),
            Image.fromarray(rgba), Image.fromarray(opaque), palette]  # fmt: skip
    for image in made:
        np.testing.assert_array_equal(read_mask(data_of(image)), wanted, err_msg=image.mode)


# --- The data set ---------------------------------------------------------------------------------


def test_a_folder_of_classes_becomes_splits_with_pixels_labels_and_masks(folder: Path) -> None:
    bunch = bunch_of(folder, masks=folder / "masks", unmasked="clean")
    assert bunch.classes == ["cat", "dog"]
    assert bunch.group_names == ["mask"]
    assert {name: len(split) for name, split in bunch.splits.items()}.items() >= {
        ("train", 20), ("val", 10), ("test", 10)
    }  # fmt: skip
    assert bunch.selection_split == "val_without"
    split = bunch.splits["train"]
    batch = everything(bunch)
    for place, name in enumerate(split.ids):
        data = (folder / "images" / name).read_bytes()
        expected = prepare(data, bunch.preprocessing)
        np.testing.assert_allclose(batch.inputs[place].numpy(), expected, atol=1e-6)
        assert bunch.classes[batch.labels[place]] == name.split("/")[0]
        there = (folder / "masks" / f"{Path(name).stem}.png").is_file()
        assert batch.groups.annotated[place] == there == split.present[place]
        # of 16 columns and 12 rows, 4 to 8 and 2 to 6 are marked: of 12 columns, 3 to 6
        marked = torch.zeros(SIZE, SIZE, dtype=torch.bool)
        marked[2:6, 3:6] = there
        assert (batch.groups.mask[place, 0, 0] == marked).all()
    assert json.loads(json.dumps(bunch.preprocessing)) == bunch.preprocessing
    shown = bunch.display(batch.inputs)
    assert shown.min() >= 0 and shown.max() <= 1


def test_a_table_gives_labels_splits_and_groups(folder: Path) -> None:
    files = sorted((folder / "images").rglob("*.png"))
    rows = pd.DataFrame({
        "file": [p.relative_to(folder).as_posix() for p in files],
        "animal": [p.parent.name for p in files],
        "owner": [f"o{k // 4}" for k in range(40)],
    })  # fmt: skip
    rows.to_csv(folder / "t.csv", index=False, encoding="utf-16")
    columns = {"path": "file", "label": "animal", "split": None, "group": "owner"}
    bunch = bunch_of(folder, root=None, table=folder / "t.csv", columns=columns)
    owner = dict(zip(rows["file"], rows["owner"], strict=True))
    parts = [{owner[name] for name in bunch.splits[s].ids} for s in ("train", "val", "test")]
    assert not parts[0] & parts[1] and not parts[1] & parts[2] and not parts[0] & parts[2]
    assert everything(bunch).groups is None
    rows["part"] = np.where(rows["owner"] < "o3", "training", "dev")
    rows.loc[::5, "part"] = "dev"
    rows.loc[25::5, "part"] = "training"
    rows.to_csv(folder / "t.csv", index=False)
    given = bunch_of(folder, root=None, table=folder / "t.csv", columns=columns | {"split": "part"})
    assert {*given.splits} == {"train", "val"}
    assert given.fingerprint != bunch.fingerprint


def test_folders_of_splits_are_given_splits(folder: Path) -> None:
    for label in ("cat", "dog"):
        for k, path in enumerate(sorted((folder / "images" / label).iterdir())):
            part = "train" if k < 10 else "valid"
            (folder / "parted" / part / label).mkdir(parents=True, exist_ok=True)
            path.rename(folder / "parted" / part / label / path.name)
    bunch = bunch_of(folder, root=folder / "parted", masks={"tag": folder / "masks"})
    assert {name: len(split) for name, split in bunch.splits.items()} == {"train": 20, "val": 20}
    assert everything(bunch).groups.mask.any(-1).any(-1).sum() == 8
    assert bunch.splits["val"].present is None  # nothing is known of images without a mask


def test_polygons_boxes_and_circles_mark_what_a_picture_would(folder: Path) -> None:
    points = [[4, 2], [7, 2], [7, 5], [4, 5]]
    (folder / "labelme").mkdir()
    for k in range(8):
        shapes = [{"label": "tag", "shape_type": "polygon", "points": points},
                  {"label": "no", "shape_type": "circle", "points": [[9, 9], [9, 10]]}]  # fmt: skip
        (folder / "labelme" / f"cat{k:02}.json").write_text(json.dumps({"shapes": shapes}))
    coco = {
        "images": [{"id": k, "file_name": f"cat/cat{k:02}.png"} for k in range(8)],
        "categories": [{"id": 5, "name": "tag"}],
        "annotations": [{"id": k, "image_id": k, "category_id": 5, "bbox": [4, 2, 4, 4]}
                        for k in range(8)],
    }  # fmt: skip
    (folder / "coco.json").write_text(json.dumps(coco))
    boxes = pd.DataFrame({"path": [f"cat{k:02}.png" for k in range(8)], "left": 4, "top": 2,
                          "right": 8, "bottom": 6})  # fmt: skip
    boxes.to_csv(folder / "boxes.csv", index=False)
    masks = {
        "picture": folder / "masks",
        "labelme": {"path": folder / "labelme", "label": "tag"},
        "coco": {"path": folder / "coco.json", "label": "tag"},
        "boxes": folder / "boxes.csv",
    }
    batch = everything(bunch_of(folder, masks=masks))
    assert batch.groups.mask.shape[1] == 4
    assert batch.groups.mask[:, 0].any()
    for group in range(1, 4):
        assert (batch.groups.mask[:, group] == batch.groups.mask[:, 0]).all(), group


def test_all_faults_stand_in_one_report(folder: Path) -> None:
    cats, masks = folder / "images" / "cat", folder / "masks"
    (cats / "cat00.png").write_bytes(b"")
    (cats / "cat01.png").write_bytes((cats / "cat02.png").read_bytes()[:100])
    save(folder / "images" / "lost.png", photo())
    save(masks / "nobody.png", square())
    save(masks / "cat03.png", square()[:, :8])
    save(masks / "cat04.png", np.ones((12, 16), bool))
    save(masks / "cat05.jpg", square().astype(np.uint8))
    (masks / "cat06.png").write_text("no picture")
    (folder / "images" / "notes.txt").write_text("aside")
    with pytest.raises(DataError) as error:
        bunch_of(folder, masks={"tag": masks})
    text = str(error.value)
    for words in (
        "8 faults in the data",
        "tag mask cat06.png: cannot be decoded",
        "cat/cat00.png: the file is empty",
        "cat/cat01.png: cannot be decoded",
        "lost.png: lies in no class's folder",
        "tag mask nobody.png: there is no image of this name",
        "tag mask cat03.png: is 8×12, the image (upright) is 16×12",
        "tag mask cat04.png: marks 100% of the image",
        "tag mask cat05.png: cat/cat05.png has another mask, tag mask cat05.jpg",
    ):
        assert words in text
    assert "notes.txt" not in text


def test_faults_of_a_table_are_named_by_row(folder: Path) -> None:
    lines = ["path,label", "images/cat/cat00.png,cat", "images/cat/cat00.png,dog", ",cat",
             "images/none.png,cat", "images/dog/dog00.png,"]  # fmt: skip
    (folder / "t.csv").write_text("\n".join(lines))
    with pytest.raises(DataError) as error:
        bunch_of(folder, root=None, table=folder / "t.csv")
    for words in ("t.csv, row 3: images/cat/cat00.png stands in row 2, too",
                  "t.csv, row 4: has no path", "none.png does not exist",
                  "t.csv, row 6: images/dog/dog00.png has no label"):  # fmt: skip
        assert words in str(error.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"root": None}, "needs dataset.root=FOLDER .* or dataset.table"),
        ({"fit": "stretch"}, "dataset.fit is 'stretch'; accepted: squash, crop"),
        ({"unmasked": "no"}, "dataset.unmasked is 'no'"),
        ({"masks": "nowhere"}, "dataset.masks.mask: nowhere does not exist"),
        ({"masks": {"a": {"label": "x"}}}, "dataset.masks.a is"),
        ({"positive": "cow"}, "dataset.positive is 'cow'; the classes are cat, dog"),
        ({"augment": [{"name": "Nonsense"}]}, "v2 has no 'Nonsense'"),
        ({"augment": [{"name": "RandomHorizontalFlip", "q": 1}]}, "RandomHorizontalFlip: .*'q'"),
    ],
)
def test_options_that_no_run_can_use_are_refused(
    folder: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        bunch_of(folder, **options)


def test_an_empty_mask_says_that_the_image_is_without_the_feature(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(folder / "masks" / "cat00.png", np.zeros((12, 16), bool))
    bunch = bunch_of(folder, masks=folder / "masks", unmasked="clean")
    assert sum(int(bunch.splits[s].present.sum()) for s in ("train", "val", "test")) == 7
    assert "1 masks of mask mark nothing" in caplog.text


# --- The cache ------------------------------------------------------------------------------------


def test_pictures_are_decoded_once_and_again_when_they_change(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []
    real = ImageCache._decode_one

    def counted(self: ImageCache, job: Job) -> Any:
        decoded.append(job.where)
        return real(self, job)

    monkeypatch.setattr(ImageCache, "_decode_one", counted)
    first = bunch_of(folder, masks=folder / "masks")
    assert len(decoded) == 48
    assert bunch_of(folder, masks=folder / "masks").fingerprint == first.fingerprint
    assert len(decoded) == 48
    save(folder / "images" / "dog" / "dog00.png", photo())
    os.utime(folder / "images" / "dog" / "dog00.png", (1, 1))
    changed = bunch_of(folder, masks=folder / "masks")
    assert decoded[48:] == ["dog/dog00.png"]
    assert changed.fingerprint != first.fingerprint


def test_a_changed_byte_in_the_cache_is_noticed_when_it_is_read(folder: Path) -> None:
    bunch = bunch_of(folder)
    (path,) = (folder / "cache").glob("images-*/pixels.u8")
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    path.write_bytes(data)
    with pytest.raises(RowError, match=r"pixels\.u8 is damaged at row 0; delete"):
        for split in bunch.splits:
            everything(bunch, split)


def test_what_a_killed_process_left_half_written_is_decoded_again(folder: Path) -> None:
    whole = bunch_of(folder)
    (cache,) = (folder / "cache").glob("images-*")
    for name in ("pixels.u8", "pixels.csv", "files.csv"):
        data = (cache / name).read_bytes()
        (cache / name).write_bytes(data[: len(data) * 2 // 3])
    again = bunch_of(folder)
    assert again.fingerprint == whole.fingerprint
    assert torch.equal(everything(again).inputs, everything(whole).inputs)


def test_batches_read_ahead_are_those_asked_for(folder: Path) -> None:
    split = bunch_of(folder).splits["train"]
    torch.manual_seed(0)
    order = split.order(6, shuffle=True)
    ahead = [split.batch(index) for index in order]
    for index, batch in zip(order, ahead, strict=True):
        assert torch.equal(split.batch(index.clone()).inputs, batch.inputs)
        assert torch.equal(split.labels[index], batch.labels)


# --- Training options -----------------------------------------------------------------------------


def test_image_and_mask_are_augmented_together_and_by_the_seed(folder: Path) -> None:
    for path in (folder / "images" / "cat").iterdir():  # white where the mask will be
        save(path, np.where(square()[..., None], 255, 0).astype(np.uint8).repeat(3, 2))
    for k in range(8, 20):
        save(folder / "masks" / f"cat{k:02}.png", square())
    augment = [{"name": "RandomHorizontalFlip"}, {"name": "RandomVerticalFlip"}]
    bunch = bunch_of(folder, masks=folder / "masks", augment=augment, mean=[0] * 3, std=[1] * 3)
    split = bunch.splits["train"]
    cats = torch.nonzero(split.labels == 0).flatten()
    torch.manual_seed(1)
    batch = split.batch(cats)
    bright = batch.inputs.mean(1, keepdim=True) > 0.5
    assert (bright == batch.groups.mask[:, 0]).float().mean() > 0.97
    assert len({tuple(m.nonzero()[0].tolist()) for m in batch.groups.mask[:, 0, 0]}) > 1
    torch.manual_seed(1)
    assert torch.equal(split.batch(cats).inputs, batch.inputs)
    plain_cats = bunch.splits["val"].batch(torch.nonzero(bunch.splits["val"].labels == 0)[:, 0])
    assert len({tuple(m.nonzero()[0].tolist()) for m in plain_cats.groups.mask[:, 0, 0]}) == 1


def test_statistics_are_those_of_the_training_images(folder: Path) -> None:
    bunch = bunch_of(folder, mean=None, std=None)
    inputs = everything(bunch).inputs
    torch.testing.assert_close(inputs.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(inputs.std((0, 2, 3)), torch.ones(3), atol=1e-2, rtol=0)


def test_a_run_trains_and_reports_the_worst_group(folder: Path) -> None:
    options = [
        "plugins=[tiny_data,tiny_isic]", "dataset=images",
        f"dataset.root={folder / 'images'}", f"dataset.masks={folder / 'masks'}",
        "dataset.unmasked=clean", "dataset.size=24", f"dataset.cache_dir={folder / 'cache'}",
        "dataset.positive=dog", "model=tiny_conv", "training.epochs=1",
        "training.batch_size=8", "training.resamples=0", "loggers=csv",
    ]  # fmt: skip
    result = run(folder / "run", *options)
    assert {"worst_group_accuracy", "accuracy_with", "auc"} <= result["metrics"]["test"].keys()
    assert result["selection_metric"] == "auc"
    # a frozen trunk's features are kept, and decompose to the same penalty as the images
    trunk = [*options, "model=tiny_trunk"]
    kept = run(folder / "kept", *trunk)
    anew = run(folder / "anew", *trunk, "dataset.cache=false")
    assert list((folder / "cache").glob("*/features.f32"))
    for name in ("loss", "penalty"):
        one, other = (r["history"][0][f"train/{name}"] for r in (kept, anew))
        assert one == pytest.approx(other, rel=1e-3)
    config = plain(composed(*trunk, "dataset.mean=[0,0,0]"))
    (folder / "refused").mkdir()
    with pytest.raises(ConfigError, match=r"leave out dataset\.mean and"):
        train(config, folder / "refused")
