"""A frozen trunk's features: the same computation as through the whole net, in whole files."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cdep_run.batch import Batch
from cdep_run.cd import decompose
from cdep_run.datasets.base import Bunch
from cdep_run.errors import CdepError
from cdep_run.features import cache as features
from cdep_run.features import store as rows
from cdep_run.features.cache import FeatureSplit, from_cache
from cdep_run.features.store import RowError, RowStore
from cdep_run.models.frozen import FrozenTrunk
from cdep_run.penalties.cdep import CDEP
from cdep_run.penalties.eg import ExpectedGradients
from cdep_run.penalties.none import NoPenalty
from cdep_run.penalties.rrr import RRR
from cdep_run.train import train
from cdep_run.training.build import plain
from running import composed, weights
from tiny_isic import SIZE, bunch_of, name, net, tiny_isic


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_isic(tmp_path)


@pytest.fixture
def passed(monkeypatch) -> list[int]:
    """How many images went through the trunk, portion by portion."""
    counts: list[int] = []
    forward = torch.nn.Sequential.forward

    def counted(self, x):
        if isinstance(self[0], torch.nn.Conv2d):
            counts.append(len(x))
        return forward(self, x)

    monkeypatch.setattr(torch.nn.Sequential, "forward", counted)
    return counts


def both(bunch: Bunch, cached: Bunch, split: str = "train") -> tuple[Batch, Batch]:
    index = torch.arange(len(bunch.splits[split]))
    return bunch.splits[split].batch(index), cached.splits[split].batch(index)


@pytest.mark.parametrize("relu", ["asymmetric", "symmetric"])
def test_logits_and_parts_from_the_cache_are_those_of_the_whole_net(folder, relu):
    bunch, model, rules = bunch_of(folder), net().eval(), {"relu": relu}
    images, kept = both(bunch, from_cache(bunch, model, rules))
    assert kept.inputs.shape == (len(images.inputs), 180)
    whole = decompose(model, images.inputs, images.groups.mask, rules=rules)
    parts = decompose(
        model, kept.inputs, kept.groups.mask, rules=rules, relevant=kept.groups.relevant
    )
    for mine, wanted in ((parts.relevant, whole.relevant), (parts.irrelevant, whole.irrelevant)):
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model(kept.inputs), model(images.inputs), rtol=1e-4, atol=1e-4)
    assert torch.equal(kept.labels, images.labels)
    assert torch.equal(kept.groups.annotated, images.groups.annotated)
    assert parts.relevant[kept.groups.annotated].abs().min() > 0
    assert not parts.relevant[~kept.groups.annotated].any()


@pytest.mark.parametrize(
    "penalty", [NoPenalty(), CDEP("pair"), CDEP("centred", {"relu": "symmetric"})]
)
def test_loss_and_gradients_from_the_cache_are_those_of_the_whole_net_with_dropout(folder, penalty):
    bunch, model = bunch_of(folder), net()
    cached = from_cache(bunch, model, getattr(penalty, "rules", None))
    found = []
    for batch in both(bunch, cached):
        torch.manual_seed(1)
        logits, value = penalty(model, batch)
        loss = torch.nn.functional.cross_entropy(logits, batch.labels) + 10 * value
        head = [*model.head.parameters()]
        found.append([loss, value, logits, *torch.autograd.grad(loss, head)])
    for wanted, mine in zip(*found, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-4)
    assert (penalty(model, batch)[0] - penalty(model, batch)[0]).abs().max() > 0.01  # dropout is on


def test_nothing_is_computed_twice_and_a_changed_mask_only_for_its_own_image(folder, passed):
    rules = {"relu": "asymmetric"}
    before = from_cache(bunch_of(folder), net(), rules)
    assert sum(passed[1:]) == 48  # and one to see how wide the features are
    passed.clear()
    from_cache(bunch_of(folder, fold=1), net(), rules)
    assert passed == [1]
    mask = np.zeros((SIZE, SIZE), dtype=bool)
    mask[2:5, 2:9] = True
    Image.fromarray(mask).save(folder / "isic" / "patch_masks" / f"{name(4)}.png")
    passed.clear()
    after = from_cache(bunch_of(folder), net(), rules)
    assert passed == [1, 1]
    for split in ("train", "val", "test"):
        old, new = both(before, after, split)
        ids = before.splits[split].ids
        differs = (old.groups.relevant != new.groups.relevant).flatten(1).any(1)
        assert {ids[k] for k in differs.nonzero()[:, 0].tolist()} <= {name(4)}
        assert torch.equal(old.inputs, new.inputs)


def test_other_weights_other_rules_and_another_precision_have_rows_of_their_own(folder, passed):
    bunch = bunch_of(folder)
    first = from_cache(bunch, net(), None)
    other = from_cache(bunch, net(1), None)
    assert not torch.allclose(first.splits["val"].inputs, other.splits["val"].inputs)
    passed.clear()
    from_cache(bunch, net(), {"relu": "asymmetric"})
    assert sum(passed[1:]) == 10
    passed.clear()
    from_cache(bunch, net(), {"relu": "symmetric"})
    assert sum(passed[1:]) == 10
    rough = both(bunch, from_cache(bunch, net(), None, "bf16"))[1].inputs
    fine = both(bunch, first)[1].inputs
    assert 0 < (rough - fine).abs().max() < 0.1


def test_other_code_of_the_trunk_has_rows_of_its_own(folder, passed, monkeypatch, tmp_path):
    bunch = bunch_of(folder)
    from_cache(bunch, net(), None)
    (tmp_path / "other.py").write_text("# another forward")
    monkeypatch.setattr(features.lite0, "__file__", str(tmp_path / "other.py"))
    passed.clear()
    from_cache(bunch, net(), None)
    assert sum(passed[1:]) == 48


def test_without_rules_no_relevant_part_is_taken_from_runs_that_had_some(folder):
    bunch = bunch_of(folder)
    assert both(bunch, from_cache(bunch, net(), {}))[1].groups is not None
    assert both(bunch, from_cache(bunch, net(), None))[1].groups is None


def test_a_killed_run_goes_on_where_it_stopped(folder, passed, monkeypatch):
    add, calls = RowStore.add, []

    def interrupted(self, names, new):
        if len(calls) == 3:
            self.data.open("ab").write(b"half a row")  # what a kill in the middle leaves
            self.lines.open("a").write("0123456789abcd")
            raise KeyboardInterrupt
        calls.append(len(names))
        add(self, names, new)

    bunch, rules = bunch_of(folder), {"relu": "asymmetric"}
    monkeypatch.setattr(RowStore, "add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        from_cache(bunch, net(), rules)
    monkeypatch.setattr(RowStore, "add", add)
    passed.clear()
    resumed = from_cache(bunch, net(), rules)
    assert sum(passed[1:]) == 48 - sum(calls)
    undisturbed = from_cache(bunch_of(folder, cache_dir=folder / "anew"), net(), rules)
    for split in bunch.splits:
        first, second = both(resumed, undisturbed, split)
        torch.testing.assert_close(first.inputs, second.inputs)
        if first.groups is not None:
            torch.testing.assert_close(first.groups.relevant, second.groups.relevant)


def test_a_damaged_row_is_computed_again(folder, passed):
    bunch = bunch_of(folder)
    wanted = both(bunch, from_cache(bunch, net(), None))[1].inputs.clone()
    (file,) = (folder / "cache").rglob("features.f32")
    data = bytearray(file.read_bytes())
    data[4 * 180 * 5 + 3] ^= 1  # one bit of the sixth row
    file.write_bytes(data)
    passed.clear()
    found = both(bunch, from_cache(bunch, net(), None))[1].inputs
    assert passed == [1, 1]
    torch.testing.assert_close(found, wanted)


def test_a_full_disk_is_an_error_that_loses_nothing(folder, passed, monkeypatch):
    write, written = rows._write_at, []

    def full(path, position, data):
        if len(written) == 4:
            write(path, position, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        write(path, position, data)

    bunch = bunch_of(folder)
    monkeypatch.setattr(rows, "_write_at", full)
    with pytest.raises(RowError, match=r"the disk is full; 16 rows are kept.*dataset.cache_dir"):
        from_cache(bunch, net(), None)
    monkeypatch.setattr(rows, "_write_at", write)
    passed.clear()
    from_cache(bunch, net(), None)
    assert sum(passed[1:]) == 48 - 16


def test_what_would_not_fit_is_refused_before_anything_is_computed(folder, passed, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(features.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(RowError, match=r"take 0.0 MB, and .* has 0.0 MB free"):
        from_cache(bunch_of(folder), net(), None)
    assert passed == [1]


def test_a_picture_that_cannot_be_decoded_is_named_before_anything_is_computed(folder, passed):
    bunch = bunch_of(folder)
    for number in (3, 30):
        label = "benign" if number < 24 else "malignant"
        path = folder / "isic" / label / f"{name(number)}.png"
        path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(CdepError, match=r"cannot be decoded"):
        from_cache(bunch, net(), None)
    assert passed == [1]


def test_a_mask_of_another_image_is_another_row(folder):
    bunch = bunch_of(folder, size=12)  # masks of 0, 3, 6, 9 are the same
    model = FrozenTrunk(torch.nn.Flatten(), torch.nn.Linear(432, 2), (3, 12, 12))
    images, kept = both(bunch, from_cache(bunch, model, {}))
    wanted = (images.inputs[:, None] * images.groups.mask).flatten(2)
    torch.testing.assert_close(kept.groups.relevant, wanted)


def test_a_move_to_another_device_takes_a_split_s_own_rows(folder):
    bunch = bunch_of(folder)
    cached = from_cache(bunch, net(), {"relu": "asymmetric"})
    split = cached.splits["val"]
    assert isinstance(split, FeatureSplit)
    assert split.to("cpu") is split
    moved = split.to("meta")
    assert moved.inputs.shape == (len(split), 180)
    assert moved.inputs.is_meta and moved.relevant.is_meta and moved.rows.is_meta
    index = split.order(5, shuffle=False)[0]
    own = split.loaded()
    torch.testing.assert_close(own.batch(index).inputs, split.batch(index).inputs)
    torch.testing.assert_close(own.batch(index).groups.relevant, split.batch(index).groups.relevant)


@pytest.mark.parametrize("penalty", [RRR(), ExpectedGradients()])
def test_penalties_on_pixels_refuse_features(folder, penalty):
    bunch, model = bunch_of(folder), net()
    kept = both(bunch, from_cache(bunch, model, {"relu": "asymmetric"}))[1]
    with pytest.raises(CdepError, match=r"needs the images.*dataset.cache=false"):
        penalty(model, kept)


def test_a_cache_that_cannot_be_made_is_named(folder):
    (folder / "file").write_text("")
    with pytest.raises(RowError, match=r"file/isic/.* cannot be made.*dataset.cache_dir chooses"):
        from_cache(bunch_of(folder, cache_dir=folder / "file"), net(), None)


def run(folder: Path, *overrides: str):
    """Train the small net on the tiny images."""
    composition = composed(
        "dataset=isic",
        "model=tiny_trunk",
        f"data_dir={folder}",
        f"dataset.cache_dir={folder / 'cache'}",
        "dataset.shares={train: 0.5, val: 0.25, test: 0.25}",
        "training.epochs=2",
        "loggers=csv",
        "training.resamples=10",
        "training.batch_size=8",
        "device=cpu",
        *overrides,
    )
    out = folder / "run"
    out.mkdir()
    return train(plain(composition), out)


def test_a_run_from_the_cache_ends_as_one_on_images(folder):
    ends = []
    for cache in ("true", "false"):
        result = run(folder, "penalty=cdep", f"dataset.cache={cache}")
        ends.append((result["metrics"], weights(folder / "run")))
        os.rename(folder / "run", folder / f"run-{cache}")
    for key, value in ends[0][1].items():
        torch.testing.assert_close(value, ends[1][1][key], rtol=1e-4, atol=1e-4)
    for split in ("train", "test_patch_free"):
        assert ends[0][0][split]["loss"] == pytest.approx(ends[1][0][split]["loss"], abs=1e-4)
    assert ends[0][0]["train"]["penalty"] > 0
    assert (folder / "cache").is_dir()


def test_rrr_gets_the_images_with_a_sticker_beside_the_features_of_all(folder):
    bunch, model, penalty = bunch_of(folder), net().eval(), RRR()
    found = []
    for batch in both(bunch, from_cache(bunch, model, None, images=True)):
        logits, value = penalty(model, batch)
        found.append([logits, value, *torch.autograd.grad(value, [*model.head.parameters()])])
    for wanted, mine in zip(*found, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-6)
    assert found[0][1] > 0
    assert batch.inputs.dim() == 2
    assert len(batch.images.inputs) == bunch.splits["train"].patched.sum() < len(batch.inputs)


def test_a_batch_without_stickers_has_no_penalty_under_rrr(folder):
    bunch, model = bunch_of(folder), net()
    split = from_cache(bunch, model, None, images=True).splits["train"]
    logits, value = RRR()(model, split.batch((~split.patched).nonzero()[:4, 0]))
    (logits.sum() + value).backward(inputs=[*model.head.parameters()])
    assert logits.shape == (4, 2)
    assert value == 0


@pytest.mark.parametrize("penalty", ["eg", "rrr penalty.form=published"])
def test_penalties_on_all_pixels_train_on_images(folder, penalty):
    result = run(folder, *f"penalty={penalty}".split(), "training.epochs=1")
    assert result["metrics"]["train"]["penalty"] > 0
    assert not (folder / "cache").exists()


def test_rrr_trains_from_the_cache(folder):
    assert run(folder, "penalty=rrr", "training.epochs=1")["metrics"]["train"]["penalty"] > 0
    assert (folder / "cache").is_dir()


def test_layers_of_the_trunk_are_trained_on_images(folder):
    run(folder, "penalty=none", "model.trainable=['4']", "training.epochs=1")
    before, after = net().state_dict(), weights(folder / "run")
    assert not torch.equal(before["trunk.4.weight"], after["trunk.4.weight"])
    assert torch.equal(before["trunk.0.weight"], after["trunk.0.weight"])
    assert not (folder / "cache").exists()
