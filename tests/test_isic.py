"""ISIC as a data set: which image is in which split, what a batch holds, what is refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from cdep_run.datasets.isic import ImageSplit, isic
from cdep_run.errors import CdepError
from tiny_isic import COUNT, SIZE, bunch_of, name, tiny_isic

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("CDEP_RUN_DATA", ROOT.parent / "shared" / "data"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_isic(tmp_path)


def ids(bunch, split: str) -> set[str]:
    return {*bunch.splits[split].ids}


def test_splits_share_no_image_and_the_patch_free_ones_hold_what_has_no_sticker(folder):
    bunch = bunch_of(folder)
    parts = [ids(bunch, split) for split in ("train", "val", "test")]
    assert len(set.union(*parts)) == sum(map(len, parts)) == COUNT
    for split in ("val", "test"):
        patched = {name(n) for n in range(10)}
        assert ids(bunch, f"{split}_patch_free") == ids(bunch, split) - patched
    assert bunch.selection_split == "val_patch_free"


def test_a_batch_holds_pixels_labels_and_where_the_sticker_is(folder):
    split = bunch_of(folder).splits["train"]
    batch = split.batch(torch.arange(len(split)))
    assert batch.inputs.shape == (len(split), 3, SIZE, SIZE)
    for row, isic_id in enumerate(split.ids):
        number = int(isic_id[5:])
        assert batch.labels[row] == (number >= 24)
        assert batch.groups.annotated[row] == split.patched[row] == (number < 10)
        file = folder / "isic" / ("benign" if number < 24 else "malignant") / f"{isic_id}.png"
        pixels = torch.from_numpy(np.asarray(Image.open(file)).copy()).permute(2, 0, 1)
        torch.testing.assert_close((batch.inputs[row] + 1) * 127.5, pixels.float())
        blue = pixels == torch.tensor([20, 90, 200])[:, None, None]
        assert torch.equal(batch.groups.mask[row, 0, 0], blue.all(0))


def test_each_image_is_tested_in_one_fold(folder):
    tested = [ids(bunch_of(folder, fold=fold), "test") for fold in range(3)]
    assert sum(map(len, tested)) == len(set.union(*tested)) == COUNT
    bunch = bunch_of(folder, fold=1)
    assert not ids(bunch, "test") & (ids(bunch, "train") | ids(bunch, "val"))
    assert len(ids(bunch, "train")) == pytest.approx(2 * len(ids(bunch, "val")), abs=2)


def test_a_splits_file_decides_if_there_is_one(folder):
    table = pd.DataFrame({"isic_id": [name(n) for n in range(COUNT)]})
    table["split"] = [["train", "val", "test", "train"][n % 4] for n in range(COUNT)]
    table["fold"] = [n % 4 for n in range(COUNT)]
    table.to_csv(folder / "isic" / "splits.csv", index=False)
    assert ids(bunch_of(folder), "val") == {name(n) for n in range(1, COUNT, 4)}
    assert ids(bunch_of(folder, fold=3), "test") == {name(n) for n in range(3, COUNT, 4)}
    table[:-2].to_csv(folder / "isic" / "splits.csv", index=False)
    with pytest.raises(CdepError, match=r"does not name 2 of 48 images .*make isic ARGS=splits"):
        bunch_of(folder)


def test_the_share_of_stickers_is_reached_by_leaving_out_benign_images_without_one(folder):
    whole, mixed = bunch_of(folder), bunch_of(folder, patch_share=0.6)
    for split in ("train", "val", "test"):
        all_of_it, part = whole.splits[split], mixed.splits[split]
        assert {*part.ids} < {*all_of_it.ids}
        assert part.patched.sum() == all_of_it.patched.sum()
        assert part.labels.sum() == all_of_it.labels.sum()
        benign = int((part.labels == 0).sum())
        assert int(part.patched.sum()) / benign == pytest.approx(0.6, abs=0.1)
    assert ids(mixed, "test_patch_free") == ids(whole, "test_patch_free")
    assert ids(bunch_of(folder, patch_share=0.6), "train") == ids(mixed, "train")


def test_without_stickers_nothing_else_is_left_out_and_no_penalty_can_work(folder):
    bunch, whole = bunch_of(folder, exclude_patches=True), bunch_of(folder)
    train = bunch.splits["train"]
    assert {*train.ids} == ids(whole, "train") - {name(n) for n in range(10)}
    assert train.batch(torch.arange(2)).groups is None
    assert ids(bunch, "val") == ids(whole, "val")


def test_class_weights_make_both_classes_count_the_same_in_training(folder):
    bunch = bunch_of(folder, patch_share=0.6)
    counts = bunch.splits["train"].labels.bincount()
    torch.testing.assert_close(bunch.class_weights * counts, torch.full((2,), counts.sum() / 2.0))
    assert bunch_of(folder, class_weights=False).class_weights is None


def test_another_size_squashes_images_and_masks(folder):
    split = bunch_of(folder, size=12).splits["train"]
    batch = split.batch(torch.arange(len(split)))
    assert batch.inputs.shape[2:] == batch.groups.mask.shape[3:] == (12, 12)
    assert torch.equal(batch.groups.annotated, split.patched)


def test_what_changes_the_data_changes_the_fingerprint(folder):
    before = bunch_of(folder).fingerprint
    assert bunch_of(folder).fingerprint == before
    assert bunch_of(folder, patch_share=0.6).fingerprint != before
    assert bunch_of(folder, size=12).fingerprint != before
    mask = np.zeros((SIZE, SIZE), dtype=bool)
    mask[:3, :3] = True
    Image.fromarray(mask).save(folder / "isic" / "patch_masks" / f"{name(4)}.png")
    assert bunch_of(folder).fingerprint != before


def image(folder: Path, number: int) -> Path:
    return folder / "isic" / ("benign" if number < 24 else "malignant") / f"{name(number)}.png"


def mask(folder: Path, number: int) -> Path:
    return folder / "isic" / "patch_masks" / f"{name(number)}.png"


def truncated_jpeg(folder: Path) -> None:
    Image.open(image(folder, 30)).save(image(folder, 30), "JPEG")
    data = image(folder, 30).read_bytes()
    image(folder, 30).write_bytes(data[:-70])


def rewritten(column: str, value: str) -> Callable[[Path], object]:
    """Change a column of the fourth image in metadata.csv."""

    def change(folder: Path) -> None:
        table = pd.read_csv(folder / "isic" / "metadata.csv", dtype=str)
        table[column] = table[column].astype(object)
        table.loc[3, column] = value
        table.to_csv(folder / "isic" / "metadata.csv", index=False)

    return change


BAD: list[tuple[Callable[[Path], object], str]] = [
    (lambda f: (f / "isic").rename(f / "other"), r"metadata.csv does not exist.*make isic"),
    (lambda f: (f / "isic" / "metadata.csv").write_text(""), r"metadata.csv is no CSV table"),
    (lambda f: (f / "isic" / "splits.csv").write_text("a,b"), r"splits.csv has .*missing: isic_id"),
    (lambda f: image(f, 3).unlink(), r"ISIC_0000003.png does not exist"),
    (lambda f: image(f, 3).write_bytes(b""), r"ISIC_0000003.png: the file is empty"),
    (lambda f: image(f, 3).write_text("no picture"), r"ISIC_0000003.png: .*is no picture"),
    (truncated_jpeg, r"ISIC_0000030.png: is cut off"),
    (lambda f: mask(f, 3).unlink(), r"patch_masks/ISIC_0000003.png does not exist"),
    (lambda f: Image.new("1", (9, 9), 1).save(mask(f, 3)), r"its mask is 9×9, the image 24×24"),
    (lambda f: Image.new("1", (24, 24), 1).save(mask(f, 3)), r"its mask covers 100% of the image"),
    (lambda f: Image.new("1", (24, 24), 0).save(mask(f, 3)), r"its mask marks nothing"),
    (lambda f: Image.new("RGB", (30, 24)).save(image(f, 3)), r"its mask is 24×24, the image 30×24"),
    (lambda f: Image.new("RGB", (30, 24)).save(image(f, 33)), r"ISIC_0000033.png is 30×24, not"),
    (rewritten("file", "../../outside.jpg"), r"metadata.csv: '../../outside.jpg' leads outside"),
    (rewritten("file", "/etc/passwd"), r"metadata.csv: '/etc/passwd' leads outside"),
    (rewritten("patch_mask", "../m.png"), r"metadata.csv: '../m.png' leads outside"),
]


@pytest.mark.parametrize(("spoil", "message"), BAD)
def test_files_that_cannot_be_used_are_named_before_training(folder, spoil, message):
    spoil(folder)
    with pytest.raises(CdepError, match=message):
        bunch_of(folder)


def test_a_damaged_picture_is_named_by_the_check_before_training(folder):
    data = image(folder, 3).read_bytes()
    image(folder, 3).write_bytes(data[:500])  # the header of a PNG is whole
    with pytest.raises(CdepError, match=r"ISIC_0000003.png: cannot be decoded"):
        for split in bunch_of(folder).splits.values():
            split.check()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_share": 0.1}, r"patch_share is 0.1: of the benign images in train 0.4"),
        ({"patch_share": 0}, r"patch_share is 0"),
        ({"patch_share": 1.5}, r"patch_share is 1.5"),
        ({"size": 0}, r"dataset.size is 0"),
        ({"fold": 3}, r"dataset.fold is 3; there are 0, 1, 2"),
        ({"train_size": 1}, r"train has 1 images of .*not of both classes"),
        ({"shares": {"train": 0.5, "val": 0.1, "test": 0.1}}, r"shares must be above 0 and sum"),
    ],
)
def test_divisions_that_do_not_work_are_refused(folder, options, message):
    with pytest.raises(CdepError, match=message):
        bunch_of(folder, **options)


def test_images_without_a_usable_diagnosis_are_left_out_and_named(folder, caplog):
    table = pd.read_csv(folder / "isic" / "metadata.csv")
    table.loc[7, "benign_malignant"] = "indeterminate"
    table.loc[30, "benign_malignant"] = None
    table.to_csv(folder / "isic" / "metadata.csv", index=False)
    bunch = bunch_of(folder)
    assert sum(len(bunch.splits[s]) for s in ("train", "val", "test")) == COUNT - 2
    assert "ISIC_0000007 left out" in caplog.text and "ISIC_0000030 left out" in caplog.text


def test_the_real_images_have_the_mixture_of_the_paper():
    if not (DATA / "isic" / "metadata.csv").is_file():
        pytest.skip(f"the real images are not in {DATA}")
    options = {"seed": 0, "shares": {"train": 0.8, "val": 0.1, "test": 0.1}, "folds": 5}
    bunch = isic(DATA, **options, groups=["patient_id"], patch_share=0.5, fold=0)
    train = bunch.splits["train"]
    assert isinstance(train, ImageSplit)
    assert int(train.patched.sum()) == int(((train.labels == 0) & ~train.patched).sum())
    assert not train.patched[train.labels == 1].any()
    assert len(bunch.splits["test_patch_free"]) > 400
