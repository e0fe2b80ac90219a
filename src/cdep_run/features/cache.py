"""What a frozen trunk makes of images, and of their stickers, computed once and kept in files."""

from __future__ import annotations

import copy
import hashlib
import logging
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from cdep_run import cd
from cdep_run.batch import Batch, Groups
from cdep_run.cd import decompose
from cdep_run.datasets import isic
from cdep_run.datasets.base import Bunch, KeyedImages, TensorSplit
from cdep_run.features.store import ELSEWHERE, RowError, RowStore
from cdep_run.files import alone_in
from cdep_run.isic_prep import decode
from cdep_run.models import frozen, lite0
from cdep_run.models.frozen import FrozenTrunk

log = logging.getLogger(__name__)

PORTION = 8
"""Images that go through the trunk together."""


class FeatureSplit(TensorSplit):
    """Features `[N, F]` of a split's images, with what the sticker contributed to them.

    The rows stay in their file until they are used; on a GPU the split's own are loaded.

    Args:
        split: the images.
        features, relevant: the rows, by what images hold and by what image and mask hold; without
            any relevant part the batches know no groups.
        images: whether the batches hold the images with a sticker, too.
    """

    def __init__(
        self, split: KeyedImages, features: RowStore, relevant: RowStore, images: bool = False
    ) -> None:
        super().__init__(features.tensor(), split.labels)
        self.ids, self.patched, self.present = split.ids, split.patched, split.present
        self.group_count = split.group_count
        self.images = split if images else None
        self.rows = torch.tensor([features.index[key] for key in split.image_keys])
        self.relevant = relevant.tensor()
        self.knows_groups = split.knows_groups and bool(relevant.count)
        pairs = zip(pair_keys(split), self.patched.tolist(), strict=True)
        self.relevant_rows = torch.tensor([relevant.index.get(k, 0) if p else 0 for k, p in pairs])

    def annotates(self, index: Tensor) -> bool:
        """As in `TensorSplit`: whether any of these images has a mask."""
        return bool(self.patched[index.to(self.patched.device)].any())

    def batch_without_groups(self, index: Tensor) -> Batch:
        """Features `[n, F]` alone."""
        return Batch(self.inputs[self.rows[index]], self.labels[index])

    def batch(self, index: Tensor) -> Batch:
        """Features `[n, F]`; of images with a sticker the relevant part, of the others 0."""
        batch = self.batch_without_groups(index)
        inputs, groups = batch.inputs, None
        if self.knows_groups:
            there = self.patched[index]
            relevant = inputs.new_zeros(len(inputs), self.group_count, inputs.shape[1])
            rows = self.relevant[self.relevant_rows[index[there]]]
            relevant[there] = rows.view(-1, self.group_count, inputs.shape[1])
            mask = there[:, None, None].expand(-1, self.group_count, -1)
            groups = Groups(mask, annotated=there, relevant=relevant)
        images = self.images.batch(index[self.patched[index]]) if self.images else None
        return replace(batch, groups=groups, images=images)

    def to(self, device: torch.device | str) -> TensorSplit:
        """A copy with its own rows on `device`; on the CPU they stay in the file."""
        return self if torch.device(device).type == "cpu" else TensorSplit.to(self.loaded(), device)

    def loaded(self) -> FeatureSplit:
        """A copy with its own rows in memory, and no others."""
        own = copy.copy(self)
        own.inputs, own.rows = self.inputs[self.rows], torch.arange(len(self))
        own.relevant = self.relevant[self.relevant_rows[self.patched]]
        own.relevant_rows = (self.patched.cumsum(0) - 1).clamp(min=0)
        return own


def from_cache(
    bunch: Bunch,
    model: FrozenTrunk,
    rules: Mapping[str, str] | None,
    precision: str = "float32",
    images: bool = False,
) -> Bunch:
    """`bunch` with the features of its images in place of these; what is missing is computed first.

    Another process that computes the same waits for this one. The folder below `bunch.cache_dir`
    is named by weights, layers and code of the trunk, precision and size of the images; in it a row
    is found by what image and mask hold, and the relevant part by CD's code and rules, too.

    Args:
        bunch: of `KeyedImages`s, with a `cache_dir`.
        model: its trunk frozen, on the device that is to compute.
        rules: of CD, as in `decompose`; None: the relevant parts are not wanted.
        precision: "float32", or "bf16": autocast.
        images: whether training batches hold the images with a sticker, too.

    Returns:
        The same splits as `FeatureSplit`s, on the model's device.

    Raises:
        DataError: an image cannot be decoded.
        RowError: the disk is full, or `cache_dir` cannot be made.
    """
    assert bunch.cache_dir is not None
    splits = {name: s for name, s in bunch.splits.items() if isinstance(s, KeyedImages)}
    groups = max((split.group_count for split in splits.values()), default=1)
    made = next((split.pixels_key for split in splits.values()), "")
    folder = bunch.cache_dir / _trunk_key(model, bunch.input_shape, precision, made)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RowError(f"{folder} cannot be made: {error}; {ELSEWHERE}") from error
    with alone_in(folder, wait=True):
        features = RowStore(folder / "features", model.features, write=True)
        several = f"-{groups}" if groups > 1 else ""
        path = folder / f"relevant-{_engine_key(rules)}{several}"
        relevant = RowStore(path, groups * model.features, write=True)
        cache = Cache(model, rules, precision, features, relevant)
        cache.complete(splits.values())
    kept = {
        name: FeatureSplit(split, features, relevant, images and name == "train")
        for name, split in splits.items()
    }
    result = replace(bunch, splits={**bunch.splits, **kept}, input_shape=(model.features,))
    return result.to(cache.device)


@dataclass
class Cache:
    """The rows of one trunk and what they are computed with; see `from_cache`."""

    model: FrozenTrunk
    rules: Mapping[str, str] | None
    precision: str
    features: RowStore
    relevant: RowStore

    @property
    def device(self) -> torch.device:
        """Where the trunk is."""
        return next(self.model.parameters()).device

    def complete(self, splits: Iterable[KeyedImages]) -> None:
        """Add the rows that `splits` need and that are not there yet."""
        missing = [(split, *self.missing(split)) for split in splits]
        for split, plain, masked in missing:
            split.check([*plain, *masked])
        masked_count = sum(len(masked) for *_, masked in missing)
        count = sum(len(plain) for _, plain, _ in missing) + masked_count
        _check_space(self.features, count + masked_count)
        # On a CPU one image at a time: CD then works inside the rectangle around its own sticker.
        together = 1 if self.device.type == "cpu" else PORTION
        with tqdm(total=count, desc="features", unit=" images", disable=None) as bar:
            for split, plain, masked in missing:
                for add, places, size in (
                    (self.add_features, plain, PORTION),
                    (self.add_both, masked, together),
                ):
                    for start in range(0, len(places), size):
                        portion = places[start : start + size]
                        add(split, portion)
                        bar.update(len(portion))

    def missing(self, split: KeyedImages) -> tuple[list[int], list[int]]:
        """Places of images that lack features alone, and of those that lack the relevant part."""
        plain, masked = [], []
        keys = zip(split.image_keys, pair_keys(split), split.patched.tolist(), strict=True)
        for place, (image, pair, patched) in enumerate(keys):
            if self.rules is not None and patched and pair not in self.relevant.index:
                masked.append(place)
            elif image not in self.features.index:
                plain.append(place)
        return plain, masked

    def add_features(self, split: KeyedImages, places: list[int]) -> None:
        """Features of images that no other split had."""
        places = _new(places, split.image_keys, self.features)
        if places:
            batch = split.batch(torch.tensor(places))
            with torch.no_grad(), self.autocast():
                rows = self.model.trunk(batch.inputs)
            self.features.add([split.image_keys[place] for place in places], rows)

    def add_both(self, split: KeyedImages, places: list[int]) -> None:
        """Relevant parts of images with a sticker, and the features, which come with them."""
        pairs = pair_keys(split)
        places = _new(places, pairs, self.relevant)
        if not places:
            return
        batch = split.batch(torch.tensor(places))
        assert batch.groups is not None
        with torch.no_grad(), self.autocast():
            mask = batch.groups.mask
            parts = decompose(self.model.trunk, batch.inputs, mask, rules=self.rules)
        lacking = _new(places, split.image_keys, self.features)
        if lacking:
            rows = parts.total[[places.index(place) for place in lacking]]
            self.features.add([split.image_keys[place] for place in lacking], rows)
        self.relevant.add([pairs[place] for place in places], parts.relevant.flatten(1))

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of a forward pass."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")


def _new(places: list[int], keys: list[str], rows: RowStore) -> list[int]:
    """The places whose key has no row yet, each key once."""
    first = {keys[place]: place for place in reversed(places) if keys[place] not in rows.index}
    return sorted(first.values())


def _check_space(rows: RowStore, count: int) -> None:
    """Refuse to start what would fill the disk."""
    free, wanted = shutil.disk_usage(rows.data.parent).free, count * rows.row_bytes
    if wanted > free:
        raise RowError(
            f"features and relevant parts take {wanted / 1e6:.1f} MB, and {rows.data.parent} has "
            f"{free / 1e6:.1f} MB free; {ELSEWHERE}"
        )


def pair_keys(split: KeyedImages) -> list[str]:
    """Names of the relevant parts: what image and mask hold."""
    return [f"{i}:{m}" for i, m in zip(split.image_keys, split.mask_keys, strict=True)]


def _trunk_key(
    model: FrozenTrunk, input_shape: Sequence[int], precision: str, pixels_key: str = ""
) -> str:
    """Of weights and layers, and of the code that reads images and runs them through the trunk."""
    how = f"{model.trunk}\n{tuple(input_shape)}\n{precision}{pixels_key}"
    digest = hashlib.sha256(how.encode())
    for module in (isic, decode, frozen, lite0):
        digest.update(Path(str(module.__file__)).read_bytes())
    for name, tensor in model.trunk.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy().data)
    return digest.hexdigest()[:16]


def _engine_key(rules: Mapping[str, str] | None) -> str:
    """Of the code of CD and the variants of its rules: another engine, another relevant part."""
    digest = hashlib.sha256(repr(None if rules is None else sorted(rules.items())).encode())
    for path in sorted(Path(cd.__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
