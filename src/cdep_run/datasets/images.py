"""Images of one's own: folders or a table, masks of what must not matter, decoded once.

`dataset=images dataset.root=FOLDER dataset.masks=FOLDER`; docs/own_data.md shows it step by step.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from cdep_run.batch import Batch, Groups
from cdep_run.datasets.base import Bunch, DataError, KeyedImages, TensorSplit
from cdep_run.datasets.faults import Fault, refuse
from cdep_run.datasets.image_cache import Decoded, ImageCache, Job, mask_fault
from cdep_run.datasets.image_files import ImageFiles, divided, find_images
from cdep_run.datasets.image_masks import GroupMasks, MaskSource, mask_groups, read_masks
from cdep_run.datasets.pictures import FITS

log = logging.getLogger(__name__)

UNMASKED = ("unknown", "clean")
CURE = "correct or remove them; cdep-run check with the same options lists all, with pictures"
STATISTICS = 2000
"""So many training images decide about mean and standard deviation."""


@dataclass
class Gathered:
    """All that is known of the images before a split is made.

    Attributes:
        files: the images found.
        decoded: what is known of each, in the order of `files.table`; None: it cannot be used.
        masks: by group, what is known of each image's mask; None: it has none, or none to use.
        groups: by group, where its masks come from.
        faults: all that cannot be used.
        cache: where the pixels are.
    """

    files: ImageFiles
    decoded: list[Decoded | None]
    masks: dict[str, list[Decoded | None]]
    groups: dict[str, GroupMasks]
    cache: ImageCache
    faults: list[Fault] = field(default_factory=list)


def gather(
    root: str | Path | None,
    table: str | Path | None,
    columns: Mapping[str, str | None],
    masks: Any,
    cache: ImageCache,
    encoding: str | None = None,
    delimiter: str | None = None,
) -> Gathered:
    """Find and decode all images and masks; nothing that is wrong with one of them ends it.

    Raises:
        DataError: folder, table or masks cannot be read at all.
        RowError: the disk is full.
    """
    wanted = mask_groups(masks)
    skip = [path for path, _ in wanted.values() if path.is_dir()]
    files = find_images(root, table, columns, skip, encoding, delimiter)
    faults = list(files.faults)
    names = files.table["id"].tolist()
    jobs = [Job(name, path) for name, path in zip(names, files.table["path"], strict=True)]
    decoded, more = cache.decode(jobs)
    found = Gathered(files, decoded, {}, {}, cache, faults + more)
    for group, (path, label) in wanted.items():
        found.groups[group] = source = read_masks(group, path, label, names)
        found.faults += source.faults
        if source.without_image and files.whole:
            found.faults += [
                Fault(f"{group} mask {n}", "there is no image of this name")
                for n in source.without_image
            ]
        elif source.without_image:
            log.info("%s: %d masks are of images that the table does not name",
                     path, len(source.without_image))  # fmt: skip
        found.masks[group] = _decode_masks(found, names, source)
    return found


def _decode_masks(
    found: Gathered, names: Sequence[str], source: GroupMasks
) -> list[Decoded | None]:
    """What is known of each image's mask of one group; adds what is wrong to `found.faults`."""
    place = {name: number for number, name in enumerate(names)}
    pairs: list[tuple[int, MaskSource, Decoded]] = []
    for name, mask in source.by_image.items():
        if (image := found.decoded[place[name]]) is not None:
            pairs.append((place[name], mask, image))
    jobs = [Job(m.where, m.path, m, (image.width, image.height)) for _, m, image in pairs]
    decoded, more = found.cache.decode(jobs)
    found.faults += more
    masks: list[Decoded | None] = [None] * len(names)
    for (number, mask, image), known in zip(pairs, decoded, strict=True):
        problem = None if known is None else mask_fault(known, image)
        if problem:
            found.faults.append(Fault(mask.where, problem))
        else:
            masks[number] = known
    return masks


class PixelSplit(KeyedImages):
    """Images read from the cache, the next batch's while the model works on this one.

    Args:
        ids: names of the images.
        cache: where their pixels are.
        rows: `[N]`, the row of each image.
        mask_rows: `[N, G]`, the row of each mask, −1: nothing marked.
        keys: `[N]`, names of what each image and its masks hold.
        labels: int64 `[N]`.
        mean, std: of the channels, `[3]`, of images in [0, 1].

    Attributes:
        augment: changes image and masks, uint8 `[3, H, W]` and bool `[G, H, W]`, at random; None:
            they stay as they are.
        present: as in `TensorSplit`: known only where images without a mask are clean.
    """

    augment: Augment | None = None

    def __init__(
        self,
        ids: list[str],
        cache: ImageCache,
        rows: NDArray[np.int64],
        mask_rows: NDArray[np.int64],
        keys: Sequence[tuple[str, str]],
        labels: Tensor,
        mean: Tensor,
        std: Tensor,
    ) -> None:
        super().__init__(torch.empty(len(ids), 0), labels)
        self.names = ids
        self.ids, self.cache, self.rows, self.mask_rows = ids, cache, rows, mask_rows
        self.mean, self.std = mean, std
        self.image_keys, self.mask_keys = [image for image, _ in keys], [mask for _, mask in keys]
        self.patched = torch.from_numpy((mask_rows >= 0).any(1))
        self.group_count = mask_rows.shape[1]
        self.knows_groups = self.group_count > 0
        self.pixels_key = f"{cache.folder.name} {mean.tolist()} {std.tolist()}"
        self._following: dict[int, Tensor] = {}
        self._ahead: tuple[list[int], Future[tuple[Tensor, Tensor]]] | None = None
        self._reader: ThreadPoolExecutor | None = None

    def order(self, batch_size: int, shuffle: bool) -> list[Tensor]:
        """As in `TensorSplit`, on the CPU, where the rows are read; the batches are expected."""
        batches = [index.cpu() for index in super().order(batch_size, shuffle)]
        self.expect(batches)
        return batches

    def expect(self, order: list[Tensor]) -> None:
        """As in `TensorSplit`: while one of these batches is worked on, the next one is read."""
        self._following = {id(a): b for a, b in pairwise(order)}
        self._kept = order  # so that their ids stay theirs

    def annotates(self, index: Tensor) -> bool:
        """As in `TensorSplit`: whether any of these images has a mask."""
        return not self.knows_groups or bool(self.patched[index.to(self.patched.device)].any())

    def batch(self, index: Tensor) -> Batch:
        """Standardised images `[n, 3, H, W]`; masks `[n, G, 1, H, W]` where there are groups."""
        pixels, masks = self._take(index)
        if self.augment is not None:
            pixels, masks = _augmented(self.augment, pixels, masks)
        device = self.labels.device
        inputs = pixels.to(device, non_blocking=True).float().div_(255)
        inputs = inputs.sub_(self.mean[:, None, None]).div_(self.std[:, None, None])
        there = index.to(device)
        groups = None
        if self.knows_groups:
            marked = masks.to(device, non_blocking=True)[:, :, None]
            groups = Groups(marked, annotated=marked.flatten(1).any(1))
        return Batch(inputs, self.labels[there], groups)

    def _take(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """What was read ahead, if it is this batch, else read now; starts to read the next one."""
        wanted, ahead = index.tolist(), self._ahead
        ready = ahead[1].result() if ahead is not None and ahead[0] == wanted else None
        self._ahead = None
        if (following := self._following.get(id(index))) is not None:
            self._reader = self._reader or ThreadPoolExecutor(1, "images")
            places = following.tolist()
            self._ahead = places, self._reader.submit(self.read, places)
        return ready if ready is not None else self.read(wanted)

    def read(self, places: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Pixels uint8 `[n, 3, H, W]` and masks bool `[n, G, H, W]` of the images at `places`.

        Raises:
            RowError: a row has changed since it was written.
        """
        size = self.cache.size
        pixels = self.cache.pixels.read(self.rows[places].tolist()).reshape(-1, 3, size, size)
        rows = self.mask_rows[places]
        masks = np.zeros((*rows.shape, size, size), dtype=bool)
        if (rows >= 0).any():
            masks[rows >= 0] = self.cache.masks_of(rows[rows >= 0].tolist())
        return torch.from_numpy(pixels), torch.from_numpy(masks)

    def part(self, chosen: NDArray[np.bool_]) -> PixelSplit:
        """The images where `chosen` `[N]` is true."""
        places = np.flatnonzero(chosen)
        split = PixelSplit(
            [self.names[place] for place in places],
            self.cache,
            self.rows[places],
            self.mask_rows[places],
            [(self.image_keys[place], self.mask_keys[place]) for place in places],
            self.labels[places],
            self.mean,
            self.std,
        )
        split.present = None if self.present is None else self.present[places]
        return split


class Augment:
    """torchvision's transforms of an image and its masks together.

    Args:
        transforms: each `{name: …}` of `torchvision.transforms.v2` and its arguments.

    Raises:
        DataError: there is none of this name, or it has no such arguments.
    """

    def __init__(self, transforms: Sequence[Mapping[str, Any]]) -> None:
        from torchvision.transforms import v2  # late: takes a second

        steps = []
        for entry in transforms:
            arguments = {key: value for key, value in entry.items() if key != "name"}
            made = getattr(v2, str(entry.get("name")), None)
            if not (isinstance(made, type) and issubclass(made, v2.Transform)):
                raise DataError(
                    f"dataset.augment: torchvision.transforms.v2 has no {entry.get('name')!r}; an "
                    "entry is {name: RandomHorizontalFlip, p: 0.5}"
                )
            try:
                steps.append(made(**arguments))
            except (TypeError, ValueError) as error:
                raise DataError(f"dataset.augment: {entry['name']}: {error}") from error
        self.steps = v2.Compose(steps)

    def __call__(self, image: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Both changed in the same way, uint8 `[3, H, W]` and bool `[G, H, W]`."""
        from torchvision import tv_tensors

        image, masks = self.steps(tv_tensors.Image(image), tv_tensors.Mask(masks))
        return image.as_subclass(Tensor), masks.as_subclass(Tensor).bool()


def _augmented(augment: Augment, pixels: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Every image of a batch, and its masks, changed by itself.

    Raises:
        DataError: the images have another size afterwards.
    """
    pairs = [augment(image, mask) for image, mask in zip(pixels, masks, strict=True)]
    if pairs[0][0].shape != pixels.shape[1:]:
        raise DataError(
            f"dataset.augment makes images {list(pairs[0][0].shape)}, the model takes "
            f"{list(pixels.shape[1:])}; end it with a transform to that size"
        )
    return torch.stack([p for p, _ in pairs]), torch.stack([m for _, m in pairs])


def images(
    seed: int,
    shares: Mapping[str, float],
    columns: Mapping[str, str | None],
    size: int,
    root: str | Path | None = None,
    table: str | Path | None = None,
    masks: Any = None,
    unmasked: str = "unknown",
    fit: str = "squash",
    mean: Sequence[float] | None = (0.5, 0.5, 0.5),
    std: Sequence[float] | None = (0.5, 0.5, 0.5),
    augment: Sequence[Mapping[str, Any]] = (),
    positive: str | None = None,
    train_size: int | None = None,
    cache: bool = True,
    cache_dir: str | Path = ".",
    encoding: str | None = None,
    delimiter: str | None = None,
) -> Bunch:
    """Images of one's own, with what must not matter as one group for each kind of mask.

    Splits: train, val, test, as folders or table say or made by `shares`. Where images without a
    mask are known to be clean and each class has some, val_without and test_without: the images
    without the feature; λ is then chosen on val_without, as on val the feature helps.

    Args:
        seed: of the splits, where they are made, and of `train_size`.
        shares: of the splits that are made.
        columns: what the table's columns are called, by path, label, split, group.
        size: height and width in pixels.
        root: folder with a sub-folder for each class; with a table: what its paths start from.
        table: file with a row for each image.
        masks: a folder or file, or several by the group's name; see `image_masks`.
        unmasked: whether images without a mask are "clean", or nothing is known ("unknown").
        fit: how images become square, "squash" or "crop".
        mean, std: of the channels of images in [0, 1]; None: those of the training images.
        augment: transforms of the training images, see `Augment`.
        positive: of two classes the one to be found.
        train_size: use only so many training images; None: all of them.
        cache: keep the features of a frozen trunk, too, where images are not augmented.
        cache_dir: where decoded pixels and features are kept.
        encoding, delimiter: of the table.

    Raises:
        DataError: names all files and rows that cannot be used.
        RowError: the disk is full.
    """
    check_options(size, fit, unmasked)
    kept = ImageCache(Path(cache_dir), size, fit)
    found = gather(root, table, columns, masks, kept, encoding, delimiter)
    refuse(found.faults, CURE)
    say_ignored(found)
    frame = _frame(found, shares, seed)
    classes = found.files.classes(positive)
    frame = _smaller(frame, train_size, seed)
    statistics = _statistics(kept, frame, mean, std)
    change = Augment(augment) if augment else None
    splits: dict[str, TensorSplit] = {}
    for name in ["train", "val", *sorted({*frame["split"]} - {"train", "val"})]:
        part = frame[frame["split"] == name]
        split = _split(part, list(found.masks), kept, classes, statistics)
        if unmasked == "clean" and found.masks:
            split.present = split.patched
        split.augment = change if name == "train" else None
        splits[name] = split
    chosen_on = _add_without(splits, len(classes))
    return Bunch(
        "images",
        splits,
        len(classes),
        (3, size, size),
        chosen_on,
        _fingerprint(frame, list(found.masks), classes, size, fit),
        display=Display(*statistics),
        cache_dir=Path(cache_dir).expanduser() if cache and not augment else None,
        selection_metric="auc" if positive else "accuracy",
        positive=positive,
        classes=classes,
        preprocessing={
            "kind": "images",
            "size": size,
            "fit": fit,
            "mean": [round(value, 6) for value in statistics[0].tolist()],
            "std": [round(value, 6) for value in statistics[1].tolist()],
        },
        group_names=list(found.masks) or None,
    )


@dataclass(frozen=True)
class Display:
    """Makes inputs `[N, 3, H, W]` images in [0, 1] on the CPU again."""

    mean: Tensor
    std: Tensor

    def __call__(self, inputs: Tensor) -> Tensor:
        """The images."""
        pixels = inputs.cpu() * self.std[:, None, None] + self.mean[:, None, None]
        return pixels.clamp(0, 1)


def check_options(size: int, fit: str, unmasked: str) -> None:
    for key, value, accepted in (("fit", fit, FITS), ("unmasked", unmasked, UNMASKED)):
        if value not in accepted:
            raise DataError(f"dataset.{key} is {value!r}; accepted: {', '.join(accepted)}")
    if size < 1:
        raise DataError(f"dataset.size is {size}; it must be 1 or more")


def say_ignored(found: Gathered) -> None:
    """Log what was left aside: files that are no pictures, masks that mark nothing."""
    if ignored := found.files.ignored:
        log.info(
            "%d files are no pictures by their names (%s)", len(ignored), ", ".join(ignored[:3])
        )
    for group, masks in found.masks.items():
        empty = sum(mask is not None and mask.share == 0 for mask in masks)
        if empty:
            log.warning(
                "%d masks of %s mark nothing: these images count as without it", empty, group
            )


def _frame(found: Gathered, shares: Mapping[str, float], seed: int) -> pd.DataFrame:
    """A row for each image: id, label, split, key and row of its pixels, and those of its masks."""
    frame = found.files.table.assign(split=divided(found.files, shares, seed))
    keys = [known.key for known in found.decoded if known is not None]
    frame["key"] = keys
    frame["pixels"] = [found.cache.pixels.index[key] for key in keys]
    for group, masks in found.masks.items():
        marked = [mask if mask is not None and mask.share > 0 else None for mask in masks]
        frame[f"mask {group}"] = [mask.key if mask else "" for mask in marked]
        frame[f"row {group}"] = [found.cache.masks.index[m.key] if m else -1 for m in marked]
    return frame


def _smaller(frame: pd.DataFrame, train_size: int | None, seed: int) -> pd.DataFrame:
    """At most so many training images, drawn at random."""
    train = np.flatnonzero(frame["split"] == "train")
    if train_size is None or train_size >= len(train):
        return frame
    left_out = np.random.default_rng(seed).permutation(train)[max(train_size, 1) :]
    return frame.drop(frame.index[left_out])


def _statistics(
    cache: ImageCache,
    frame: pd.DataFrame,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the channels `[3]`: those given, or the training images'."""
    if mean is not None and std is not None:
        return torch.tensor(list(mean)), torch.tensor(list(std))
    rows = frame.loc[frame["split"] == "train", "pixels"].to_numpy()
    rows = np.unique(rows[np.linspace(0, len(rows) - 1, min(len(rows), STATISTICS)).astype(int)])
    total, squares = np.zeros(3), np.zeros(3)
    for start in range(0, len(rows), 64):
        pixels = cache.pixels.read(rows[start : start + 64].tolist())
        values = pixels.reshape(len(pixels), 3, -1).astype(np.float32) / 255
        total += values.mean((0, 2), dtype=np.float64) * len(pixels)
        squares += np.square(values).mean((0, 2), dtype=np.float64) * len(pixels)
    means = total / len(rows)
    spread = np.sqrt(np.maximum(squares / len(rows) - means**2, 1e-12))
    given = (mean if mean is not None else means, std if std is not None else spread)
    return torch.tensor(given[0]).float(), torch.tensor(given[1]).float().clamp(min=1e-3)


def _split(
    part: pd.DataFrame,
    groups: Sequence[str],
    cache: ImageCache,
    classes: Sequence[str],
    statistics: tuple[Tensor, Tensor],
) -> PixelSplit:
    number = {name: k for k, name in enumerate(classes)}
    labels = torch.tensor([number[label] for label in part["label"]], dtype=torch.int64)
    keys = (
        part[[f"mask {group}" for group in groups]].agg("+".join, axis=1)
        if groups
        else [""] * len(part)
    )
    pairs = list(zip(part["key"], keys, strict=True))
    rows = (
        part[[f"row {group}" for group in groups]]
        .to_numpy(np.int64)
        .reshape(len(part), len(groups))
    )
    pixels = part["pixels"].to_numpy(np.int64)
    return PixelSplit(part["id"].tolist(), cache, pixels, rows, pairs, labels, *statistics)


def _add_without(splits: dict[str, TensorSplit], classes: int) -> str:
    """Add val_without and test_without where they are known; returns where λ is chosen."""
    chosen = "val"
    for name in ("val", "test"):
        split = splits.get(name)
        if not isinstance(split, PixelSplit) or split.present is None or not split.present.any():
            continue
        without = split.part(~split.present.numpy())
        if len(torch.unique(without.labels)) == classes:
            splits[f"{name}_without"] = without
            chosen = "val_without" if name == "val" else chosen
    return chosen


def _fingerprint(
    frame: pd.DataFrame, groups: Sequence[str], classes: Sequence[str], size: int, fit: str
) -> str:
    """SHA-256 over what images and masks hold, labels and splits."""
    columns = ["split", "id", "label", "key", *(f"mask {group}" for group in groups)]
    text = frame.sort_values(["split", "id"])[columns].to_csv(index=False)
    return hashlib.sha256(f"{size} {fit} {list(classes)}\n{text}".encode()).hexdigest()
