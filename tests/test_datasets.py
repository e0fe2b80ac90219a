"""Data sets: what the shortcut looks like, that splits are apart, and how damaged files are met."""

from __future__ import annotations

import colorsys
import gzip
import hashlib
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cdep_run.datasets.base import Bunch, DataError, TensorSplit
from cdep_run.datasets.color_mnist import color_mnist, colour, moments, palette
from cdep_run.datasets.decoy import decoy, decoy_digits, decoy_mnist, enlarge
from cdep_run.datasets.mnist import FILES, Images, hold_out, load, mnist

DATA = Path(os.environ.get("CDEP_RUN_DATA", Path(__file__).parents[2] / "shared" / "data"))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_images(count: int, seed: int = 0) -> Images:
    """Images of noise whose corners are dark, with every label."""
    images = torch.randint(256, (count, 28, 28), generator=generator(seed)).to(torch.uint8)
    images[:, :6] = images[:, -6:] = 0
    return Images(images, torch.arange(count) % 10)


def small_decoy(test_patch: str = "inverted", seed: int = 0) -> Bunch:
    parts = [random_images(count, count) for count in (200, 50, 60)]
    return decoy(
        "decoy",
        *parts,
        patch_size=5,
        test_patch=test_patch,
        groups="corners",
        generator=generator(seed),
    )


def small_colour() -> Bunch:
    return colour(
        "colour",
        *(random_images(count, count) for count in (200, 50, 60)),
        groups="pixels",
        pixels=8,
    )


def grey_patches(split: TensorSplit) -> Tensor:
    """Grey levels `[N, 4, 5, 5]` in the four corners, from the model's inputs."""
    images = (split.batch(torch.arange(len(split))).inputs[:, 0] + 1) * 127.5
    tops = (slice(0, 5), slice(-5, None))
    return torch.stack([images[:, rows, columns] for rows in tops for columns in tops], 1)


@pytest.mark.parametrize(
    ("split_name", "level"),
    [
        ("train", lambda label: 255 - 25 * label),
        ("val", lambda label: 255 - 25 * label),
        ("val_shifted", lambda label: 25 * label),
        ("test", lambda label: 25 * label),
    ],
)
def test_one_corner_holds_a_patch_of_the_labels_grey_level(
    split_name: str, level: Callable[[Tensor], Tensor]
) -> None:
    split = small_decoy().splits[split_name]
    patches = grey_patches(split)
    wanted = level(split.labels).float()
    torch.testing.assert_close(patches.amax(1), wanted[:, None, None].expand(-1, 5, 5))
    assert ((patches > 0).flatten(2).any(2).sum(1) == (wanted > 0)).all()


def test_patches_visit_all_four_corners() -> None:
    assert (grey_patches(small_decoy().splits["train"]) > 0).flatten(2).any(2).any(0).all()


def test_random_test_patches_tell_nothing_about_the_label() -> None:
    split = small_decoy("random").splits["test"]
    levels = grey_patches(split).amax((1, 2, 3)).round().long()
    assert set(levels.tolist()) <= {255 - 25 * digit for digit in range(10)}
    assert not torch.equal(levels, 25 * split.labels)
    assert not torch.equal(levels, 255 - 25 * split.labels)


def test_decoyed_splits_differ_only_inside_the_annotated_corners() -> None:
    splits = small_decoy().splits
    for name, other in [("val", "val_shifted"), ("test", "test_clean")]:
        batch = splits[name].batch(torch.arange(len(splits[name])))
        groups = batch.groups
        assert groups is not None
        changed = batch.inputs != splits[other].batch(torch.arange(len(splits[other]))).inputs
        assert changed.any()
        assert not (changed & ~groups.mask[:, 0]).any()


def test_enlarged_digits_are_bilinear() -> None:
    images = torch.randint(17, (5, 8, 8), generator=generator()).double()
    wanted = torch.nn.functional.interpolate(images[:, None], size=28, mode="bilinear")[:, 0]
    error = wanted * 255 / 16 - enlarge(images, 255)
    assert error.min() > -1e-9 and error.max() < 1  # rounded down


def test_palette_runs_from_red_to_purple_in_hsl() -> None:
    colours = palette()
    torch.testing.assert_close(colours[0], torch.tensor([1.0, 0, 0], dtype=torch.float64))
    purple = torch.tensor([128 / 255, 0, 128 / 255], dtype=torch.float64)
    torch.testing.assert_close(colours[9], purple, atol=1e-4, rtol=0)
    hues = [colorsys.rgb_to_hls(*colour)[0] for colour in colours.tolist()]
    assert hues == pytest.approx([k * 0.83333 / 9 for k in range(10)])


@pytest.mark.parametrize(
    ("split_name", "shade"),
    [
        ("train", lambda label: label),
        ("val", lambda label: 9 - label),
        ("test", lambda label: 9 - label),
        ("test_same", lambda label: label),
    ],
)
def test_images_have_the_colour_of_their_label(
    split_name: str, shade: Callable[[Tensor], Tensor]
) -> None:
    bunch = small_colour()
    split = bunch.splits[split_name]
    shown = bunch.display(split.batch(torch.arange(len(split))).inputs)
    wanted = split.inputs[:, None] / 255 * palette().float()[shade(split.labels)][:, :, None, None]
    torch.testing.assert_close(shown, wanted, atol=1e-6, rtol=0)


def test_coloured_training_inputs_have_mean_0_and_variance_1() -> None:
    inputs = small_colour().splits["train"].batch(torch.arange(200)).inputs.double()
    torch.testing.assert_close(inputs.mean((0, 2, 3)), torch.zeros(3).double(), atol=1e-6, rtol=0)
    variance = inputs.var((0, 2, 3), correction=0)
    torch.testing.assert_close(variance, torch.ones(3).double(), atol=1e-5, rtol=0)


def test_moments_equal_those_of_the_coloured_images() -> None:
    part = random_images(40)
    coloured = part.images[:, None] / 255 * palette()[part.labels][:, :, None, None]
    mean, std = moments(part, palette())
    torch.testing.assert_close(mean, coloured.mean((0, 2, 3)))
    torch.testing.assert_close(std, coloured.std((0, 2, 3), correction=0))


def test_sampled_pixels_are_non_zero_somewhere_in_training() -> None:
    bunch = small_colour()
    torch.manual_seed(0)
    groups = bunch.splits["train"].batch(torch.arange(4)).groups
    assert groups is not None
    seen = (bunch.splits["train"].inputs > 0).any(0)
    assert not (groups.mask[0, :, 0] & ~seen).any()


@pytest.mark.parametrize("make", [small_decoy, small_colour])
def test_display_gives_images_in_0_to_1(make: Callable[[], Bunch]) -> None:
    bunch = make()
    shown = bunch.display(bunch.splits["train"].batch(torch.arange(20)).inputs)
    assert shown.shape == (20, *bunch.input_shape)
    assert shown.min() >= 0 and shown.max() <= 1


def test_held_out_images_are_not_trained_on() -> None:
    part = Images(torch.arange(100).view(100, 1, 1).expand(100, 28, 28), torch.arange(100))
    train, val = hold_out(part, 30, None, generator())
    assert sorted([*train.labels.tolist(), *val.labels.tolist()]) == list(range(100))
    assert torch.equal(train.images[:, 0, 0], train.labels)
    fewer, same_val = hold_out(part, 30, 10, generator())
    assert torch.equal(fewer.labels, train.labels[:10])
    assert torch.equal(same_val.labels, val.labels)


@pytest.mark.parametrize(("val_size", "train_size"), [(0, None), (100, None), (30, 71), (30, 0)])
def test_sizes_that_do_not_fit_are_refused(val_size: int, train_size: int | None) -> None:
    with pytest.raises(DataError, match="do not fit 100"):
        hold_out(random_images(100), val_size, train_size, generator())


def test_the_seed_alone_decides_the_data() -> None:
    assert small_decoy().fingerprint == small_decoy().fingerprint
    assert small_decoy().fingerprint != small_decoy(seed=1).fingerprint
    assert small_decoy().fingerprint != small_decoy("random").fingerprint


def test_an_epoch_visits_every_example_once_in_seeded_order() -> None:
    split = small_decoy().splits["val"]
    torch.manual_seed(3)
    order = split.order(16, shuffle=True)
    assert [len(index) for index in order] == [16, 16, 16, 2]
    assert sorted(torch.cat(order).tolist()) == list(range(50))
    assert torch.cat(split.order(16, shuffle=False)).tolist() == list(range(50))
    torch.manual_seed(3)
    assert torch.equal(torch.cat(split.order(16, shuffle=True)), torch.cat(order))


@pytest.mark.parametrize("make", [small_decoy, small_colour])
def test_a_moved_bunch_has_every_tensor_on_the_device(make: Callable[[], Bunch]) -> None:
    split = make().to("meta").splits["train"]
    batch = split.batch(torch.arange(4, device="meta"))
    assert batch.inputs.is_meta and batch.labels.is_meta
    assert batch.groups is not None and batch.groups.mask.is_meta


@pytest.mark.parametrize("setting", [{"patch_size": 15}, {"test_patch": "none"}, {"ink": 0}])
def test_settings_that_no_image_can_have_are_refused(setting: dict[str, int | str]) -> None:
    default = {"seed": 0, "val_size": 200, "test_size": 397, "ink": 96}
    patch = {"patch_size": 7, "test_patch": "inverted", "groups": "corners"}
    with pytest.raises(DataError, match=f"dataset.{next(iter(setting))}="):
        decoy_digits(**{**default, **patch, **setting})  # type: ignore[arg-type]


# ---- files


def write_files(data_dir: Path) -> dict[str, dict[str, str]]:
    """A tiny MNIST on disk: 20 training and 10 test images. Returns its sums."""
    folder = data_dir / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name in FILES:
        part = random_images(20 if name.startswith("train") else 10)
        array = part.images if "images" in name else part.labels.to(torch.uint8)
        header = struct.pack(f">I{array.dim()}I", 0x800 + array.dim(), *array.shape)
        (folder / name).write_bytes(header + array.numpy().tobytes())
    return {
        "MNIST": {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES}
    }


def test_files_are_read_as_torchvision_reads_them(tmp_path: Path) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    parts = load(tmp_path, "MNIST", False, write_files(tmp_path))
    for part, train in zip(parts, (True, False), strict=True):
        other = datasets.MNIST(tmp_path, train=train)
        assert torch.equal(part.images, other.data)
        assert torch.equal(part.labels, other.targets)


def test_a_truncated_file_is_named_with_both_sums_and_the_remedy(tmp_path: Path) -> None:
    sums = write_files(tmp_path)
    path = tmp_path / "MNIST" / "raw" / FILES[0]
    path.write_bytes(path.read_bytes()[:-1])
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(DataError) as error:
        load(tmp_path, "MNIST", True, sums)
    for part in (path, found, sums["MNIST"][FILES[0]], "Delete it", f"{FILES[0]}.gz"):
        assert str(part) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named_with_its_place_and_address(tmp_path: Path) -> None:
    sums = write_files(tmp_path)
    (tmp_path / "MNIST" / "raw" / FILES[3]).unlink()
    with pytest.raises(DataError) as error:
        load(tmp_path, "MNIST", False, sums)
    for part in (f"{FILES[3]} not found", str(tmp_path), f"{FILES[3]}.gz", "download=true"):
        assert part in str(error.value)
    assert FILES[0] not in str(error.value)


def test_packed_files_that_lie_there_are_unpacked(tmp_path: Path) -> None:
    sums = write_files(tmp_path)
    folder = tmp_path / "MNIST" / "raw"
    whole = load(tmp_path, "MNIST", False, sums)
    for name in FILES:
        (folder / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes()))
        (folder / name).unlink()
    for part, before in zip(load(tmp_path, "MNIST", False, sums), whole, strict=True):
        assert torch.equal(part.images, before.images) and torch.equal(part.labels, before.labels)
    (folder / FILES[0]).unlink()
    (folder / f"{FILES[0]}.gz").write_bytes(gzip.compress(b"x" * 99)[:-4])
    with pytest.raises(DataError, match=rf"{FILES[0]}.gz is damaged"):
        load(tmp_path, "MNIST", False, sums)


def test_without_network_one_line_says_what_to_fetch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("torchvision.datasets")

    def offline(self: object) -> None:
        raise RuntimeError("no route\nto host")

    monkeypatch.setattr(datasets.MNIST, "download", offline)
    with pytest.raises(DataError, match=r"download failed \(no route to host\)") as error:
        load(tmp_path, "MNIST", True)
    assert all(f"{name}.gz" in str(error.value) for name in FILES)
    assert not list((tmp_path / "MNIST" / "raw").iterdir())


def test_downloaded_files_are_moved_into_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    sums = write_files(tmp_path / "remote")

    def download(self: object) -> None:
        shutil.copytree(tmp_path / "remote" / "MNIST", Path(self.root) / "MNIST")  # type: ignore[attr-defined]

    monkeypatch.setattr(datasets.MNIST, "download", download)
    train, test = load(tmp_path / "local", "MNIST", True, sums)
    assert (len(train.labels), len(test.labels)) == (20, 10)
    assert {p.name for p in (tmp_path / "local" / "MNIST" / "raw").iterdir()} == set(FILES)


def test_an_unknown_source_is_refused_with_the_choices(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="choose from MNIST, FashionMNIST"):
        load(tmp_path, "KMNIST", False)


# ---- real data: the arrays are the same on every machine

PINNED = {
    "mnist": "a5c8c257185edc4007fee28b90335331f1fa6b6e2b7ce3caa551b66191cd0991",
    "decoy_mnist": "490d86feeb5d09e851bd2c6ac9f98180b0f69be974ad63d56737b9e8ce317961",
    "color_mnist": "27a143fc2d14e6960beab7904bca599a03e1621320f001a54e64e5f4dfe573cb",
    "fashion_mnist": "af27c94c1b1b94f6cc359585aa212accf0c311686a5aa6671220668a99ac743e",
    "decoy_fashion_mnist": "cf23ab4d33731c0ec32b13c800482fe6e087dfde19a9306e3db1271a6a45aa71",
    "color_fashion_mnist": "5b1ece012d73c83b016955af86fa1375feba54184d40fe1d9bc0fe9e8855eeb6",
}


def real(name: str, seed: int = 0, train_size: int | None = None) -> Bunch:
    """The data set `name` as configured, from the files under `DATA`."""
    source = "FashionMNIST" if "fashion" in name else "MNIST"
    if not (DATA / source / "raw").is_dir():
        pytest.skip(f"no {source} under {DATA}; set CDEP_RUN_DATA to the folder that holds it")
    common = (DATA, source, False, seed, 6000)
    if "decoy" in name:
        return decoy_mnist(*common, 5, "inverted", "corners", train_size)
    if "color" in name:
        return color_mnist(*common, "pixels", 8, train_size)
    return mnist(*common, train_size)


@pytest.mark.parametrize("name", PINNED)
def test_the_data_are_the_pinned_ones(name: str) -> None:
    bunch = real(name)
    assert bunch.name == name
    assert bunch.fingerprint == PINNED[name]


def test_the_decoy_digits_are_the_pinned_ones() -> None:
    bunch = decoy_digits(0, 200, 397, 96, 7, "inverted", "corners")
    assert {name: len(split) for name, split in bunch.splits.items()} == {
        "train": 1200, "val": 200, "val_shifted": 200, "test": 397, "test_clean": 397,
    }  # fmt: skip
    assert bunch.fingerprint == "4a6105978ac2abfd11f1324e1545320958944b45013fa522d933a4572af74285"


def test_training_and_validation_divide_the_training_part_and_test_is_the_test_part() -> None:
    bunch = real("mnist")
    train_part, test_part = load(DATA, "MNIST", False)
    train, val, test = (bunch.splits[name] for name in ("train", "val", "test"))
    key = torch.randint(2**40, (784,), generator=generator())  # a hash for each image
    hashes = [(images.flatten(1).long() * key).sum(1) for images in (train.inputs, val.inputs)]
    whole = (train_part.images.flatten(1).long() * key).sum(1)
    assert torch.equal(torch.cat(hashes).sort().values, whole.sort().values)
    assert not set(hashes[0].tolist()) & set(hashes[1].tolist())
    assert torch.equal(test.inputs, test_part.images)


def test_train_size_limits_training_alone() -> None:
    bunch, whole = real("color_mnist", train_size=100), real("color_mnist")
    assert len(bunch.splits["train"]) == 100
    assert torch.equal(bunch.splits["val"].inputs, whole.splits["val"].inputs)
