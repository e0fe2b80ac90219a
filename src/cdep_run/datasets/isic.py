"""ISIC: photographs of skin, of which only benign ones show a coloured sticker.

Source of the experiment: Rieger et al. 2019 (arXiv:1909.13584), Table 1. The images are those that
`make isic` prepares (docs/isic.md); they are decoded when they are asked for.
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from cdep_run.batch import Batch, Groups
from cdep_run.datasets.base import Bunch, DataError, KeyedImages
from cdep_run.errors import PathError
from cdep_run.files import inside
from cdep_run.isic_prep.decode import UNREADABLE, PrepareError, decoding_error, read_mask, read_rgb
from cdep_run.isic_prep.images import read_table, usable
from cdep_run.isic_prep.masks import own_mask
from cdep_run.isic_prep.settings import Splits
from cdep_run.isic_prep.splits import assign, divide, groups_of

log = logging.getLogger(__name__)

LABELS = ("benign", "malignant")
NEARLY_ALL = 0.95
"""A mask that covers more than this share of the image says that nothing may matter."""
NAMED = 5
"""So many things that are wrong are named in an error."""


class ImageSplit(KeyedImages):
    """Images decoded on demand, by as many threads as torch has; stickers are one group.

    Args:
        table: a row for each image: isic_id, path, mask_path (None: no sticker), image_key,
            mask_key (what they hold, as SHA-256) and label.
        size: height and width of the images.

    Attributes:
        ids: names of the images.
        patched: bool `[N]`, which show a sticker.
        labels: int64 `[N]`, 0 benign, 1 malignant.
    """

    def __init__(self, table: pd.DataFrame, size: int) -> None:
        labels = torch.tensor(table["label"].to_numpy(), dtype=torch.int64)
        super().__init__(torch.empty(len(table), 0), labels)
        self.size = size
        self.ids: list[str] = table["isic_id"].tolist()
        self.paths: list[Path] = table["path"].tolist()
        self.mask_paths: list[Path | None] = table["mask_path"].tolist()
        self.image_keys: list[str] = table["image_key"].tolist()
        self.mask_keys: list[str] = table["mask_key"].tolist()
        self.patched = torch.tensor([p is not None for p in self.mask_paths], dtype=torch.bool)
        self.knows_groups = bool(self.patched.any())

    def annotates(self, index: Tensor) -> bool:
        """As in `TensorSplit`: whether any of these images has a mask."""
        return not self.knows_groups or bool(self.patched[index.to(self.patched.device)].any())

    def batch(self, index: Tensor) -> Batch:
        """Images in [−1, 1] `[n, 3, size, size]`, and where the sticker is."""
        places = index.tolist()
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            decoded = list(pool.map(self.pixels, places))
        shape = (len(places), self.size, self.size, 3)
        pixels = torch.from_numpy(np.array(decoded, np.uint8).reshape(shape))
        device = self.labels.device
        inputs = pixels.to(device).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
        groups = self.groups(places) if self.knows_groups else None
        return Batch(inputs.contiguous(), self.labels[index.to(device)], groups)

    def check(self, places: Sequence[int] | None = None) -> None:
        """Decode all images, or those at `places`, and forget them.

        Raises:
            DataError: names what cannot be decoded.
        """

        def problem(place: int) -> str | None:
            try:
                self.pixels(place)
            except DataError as error:
                return str(error)
            return None

        wanted = range(len(self)) if places is None else places
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            _refuse([found for found in pool.map(problem, wanted) if found])

    def pixels(self, place: int) -> np.ndarray:
        """One image, uint8 `[size, size, 3]`.

        Raises:
            DataError: it cannot be decoded.
        """
        try:
            image, _ = read_rgb(self.paths[place].read_bytes())
        except (OSError, PrepareError) as error:
            raise DataError(f"{self.paths[place]}: {error}") from None
        if image.size != (self.size, self.size):
            image = image.resize((self.size, self.size), Image.Resampling.LANCZOS)
        return np.asarray(image)

    def groups(self, places: Sequence[int]) -> Groups:
        """One group: the sticker, mask `[n, 1, 1, size, size]`; without one not annotated."""
        masks = torch.zeros(len(places), 1, 1, self.size, self.size, dtype=torch.bool)
        for row, place in enumerate(places):
            path = self.mask_paths[place]
            if path is not None:
                mask = Image.fromarray(read_mask(path.read_bytes()))
                mask = mask.resize((self.size, self.size), Image.Resampling.NEAREST)
                masks[row, 0, 0] = torch.from_numpy(np.array(mask))
        device = self.labels.device
        return Groups(masks.to(device), annotated=masks.flatten(1).any(1).to(device))


def isic(
    data_dir: str | Path,
    seed: int,
    shares: Mapping[str, float],
    folds: int,
    groups: Sequence[str],
    fold: int | None = None,
    patch_share: float | None = None,
    exclude_patches: bool = False,
    class_weights: bool = True,
    size: int | None = None,
    train_size: int | None = None,
    cache: bool = True,
    cache_dir: str | Path = ".",
) -> Bunch:
    """Benign and malignant skin lesions; what must not matter is the sticker, where there is one.

    Splits: train, val and test, each with the mixture of images that `patch_share` asks for;
    val_patch_free and test_patch_free, all images without a sticker of the same parts. λ is chosen
    on val_patch_free, as on val the sticker helps.

    Args:
        data_dir: folder that holds `isic/`, as `make isic` fills it.
        seed: of the division, where there is no `splits.csv`, and of what is left out.
        shares, folds, groups: as in `data_prep/isic.yaml`, for data without a `splits.csv`.
        fold: test on this fold of the cross-validation, and divide the rest into train and val;
            None: one division by `shares`.
        patch_share: leave out benign images without sticker until this share of the benign ones has
            one; None: take all images.
        exclude_patches: train on images without stickers only.
        class_weights: whether the rarer class counts for more in the loss: N / (classes · n).
        size: height and width to which images are squashed; None: they stay as they are.
        train_size: use only so many training images; None: all of them.
        cache: whether the features of a frozen trunk are kept.
        cache_dir: where.

    Raises:
        DataError: files are absent, damaged or do not fit; a split lacks a class.
        PrepareError: metadata or splits that do not do.
    """
    if size is not None and size < 1:
        raise DataError(
            f"dataset.size is {size}; accepted: pixels, 1 or more, or null: as they are"
        )
    folder = Path(data_dir) / "isic"
    table = _labelled(folder)
    table, side = _with_contents(folder, table, size)
    table = table.merge(_division(folder, table, Splits(seed, dict(shares), folds, list(groups))))
    if fold is not None:
        table["split"] = _cross_validation(table, fold, shares, seed, groups)
    rng = np.random.default_rng(seed)
    parts = {name: table[table["split"] == name] for name in ("train", "val", "test")}
    mixed = {name: _mixture(part, patch_share, name, rng) for name, part in parts.items()}
    if exclude_patches:
        mixed["train"] = mixed["train"][~mixed["train"]["patched"]]
    if train_size is not None:
        mixed["train"] = mixed["train"].sample(frac=1, random_state=rng)[:train_size].sort_index()
    for name in ("val", "test"):
        mixed[f"{name}_patch_free"] = parts[name][~parts[name]["patched"]]
    for name, part in mixed.items():
        if part["label"].nunique() < len(LABELS):
            raise DataError(f"{name} has {len(part)} images of {folder}, and not of both classes")
    counts = np.bincount(mixed["train"]["label"])
    return Bunch(
        name="isic",
        splits={name: ImageSplit(part, side) for name, part in mixed.items()},
        num_classes=len(LABELS),
        input_shape=(3, side, side),
        selection_split="val_patch_free",
        selection_metric="auc",
        positive=LABELS[1],
        fingerprint=_fingerprint(mixed, side),
        display=lambda inputs: (inputs.cpu() + 1) / 2,
        class_weights=torch.tensor(counts.sum() / (len(LABELS) * counts)).float()
        if class_weights
        else None,
        cache_dir=Path(cache_dir) / "isic" if cache else None,
    )


def _labelled(folder: Path) -> pd.DataFrame:
    """metadata.csv with a label for each row; images without a usable one are left out, and named.

    Columns: isic_id, path, mask_path (None: no sticker), label, patched, and metadata's own.
    """
    path = folder / "metadata.csv"
    if not path.is_file():
        raise DataError(f"{path} does not exist; prepare the images by `make isic` (docs/isic.md)")
    skipped: list[dict[str, str]] = []
    names = {"isic_id": str}
    table = usable(read_table(path, names, dtype=names, low_memory=False), skipped)
    left_out = [row for row in skipped if row["status"] == "skipped"]
    for row in left_out[:NAMED]:
        log.warning("%s left out: %s", row["isic_id"], row["detail"])
    if len(left_out) > NAMED:
        log.warning("%d images are left out altogether", len(left_out))
    table = table.sort_values("isic_id").reset_index(drop=True)
    default = table["benign_malignant"] + "/" + table["isic_id"] + ".jpg"
    files = table["file"].fillna(default) if "file" in table else default
    masks = table["patch_mask"] if "patch_mask" in table else pd.Series("", table.index)
    masks = masks.fillna("").astype(str)
    try:
        table["path"] = [inside(folder, str(file), links=True) for file in files]
        paths = [inside(folder, mask, links=True) if mask else None for mask in masks]
    except PathError as error:
        raise DataError(f"{path}: {error}") from error
    table["mask_path"] = pd.Series(paths, dtype=object)
    table["patched"] = masks != ""
    table["patches"] = table["patched"].astype(int)
    table["label"] = table["benign_malignant"].map({name: k for k, name in enumerate(LABELS)})
    return table


def _with_contents(folder: Path, table: pd.DataFrame, size: int | None) -> tuple[pd.DataFrame, int]:
    """`table` with image_key and mask_key, and height and width of the images.

    Raises:
        DataError: names what cannot be read, has another size than the others, or marks all.
    """
    problems: list[str] = []
    rows = []
    for path, mask_path in zip(table["path"], table["mask_path"], strict=True):
        try:
            rows.append(_contents(path, mask_path))
        except FileNotFoundError as error:
            problems.append(f"{error.filename} does not exist")
        except (OSError, PrepareError) as error:
            problems.append(f"{path}: {error}")
    sizes = [row[0] for row in rows]
    usual = max(set(sizes), key=sizes.count, default=(0, 0))
    if size is None and (len(set(sizes)) > 1 or usual[0] != usual[1]):
        odd = [row for row in rows if row[0] != usual] or rows
        problems += [f"{p} is {w}×{h}, not square as the others" for (w, h), p, *_ in odd]
    _refuse(problems)
    table = table.assign(image_key=[r[2] for r in rows], mask_key=[r[3] for r in rows])
    return table, size or usual[0]


def _refuse(problems: Sequence[str]) -> None:
    """Raise a `DataError` that names the first problems; the log, and the run's log file, all."""
    for problem in problems[NAMED:]:
        log.warning(problem)
    if problems:
        more = f"; and {len(problems) - NAMED} more, above" if len(problems) > NAMED else ""
        raise DataError(
            f"{'; '.join(problems[:NAMED])}{more}. `make isic` makes images and masks that fit, "
            "and reports the others (docs/isic.md)"
        )


def _contents(path: Path, mask_path: Path | None) -> tuple[tuple[int, int], Path, str, str]:
    """Width and height of an image, its path, and the SHA-256 of image and mask ("": no mask).

    Raises:
        PrepareError: one of them cannot be used.
        OSError: one of them cannot be read.
    """
    data = path.read_bytes()
    try:
        with Image.open(io.BytesIO(data)) as image:
            size, kind = image.size, image.format
    except UNREADABLE as error:
        raise decoding_error(data, error) from None
    if kind == "JPEG" and b"\xff\xd9" not in data[-64:]:
        raise PrepareError("is cut off")
    if mask_path is None:
        return size, path, hashlib.sha256(data).hexdigest(), ""
    marked = mask_path.read_bytes()
    try:
        found = own_mask(marked, size, NEARLY_ALL).any()
    except PrepareError as error:
        raise PrepareError(f"its mask {error}") from None
    if not found:
        raise PrepareError("its mask marks nothing")
    return size, path, hashlib.sha256(data).hexdigest(), hashlib.sha256(marked).hexdigest()


def _division(folder: Path, table: pd.DataFrame, options: Splits) -> pd.DataFrame:
    """Columns isic_id, split and fold: those of splits.csv, or, without it, made as it would be."""
    path = folder / "splits.csv"
    if not path.is_file():
        return assign(table, options)
    columns = ["isic_id", "split", "fold"]
    division = read_table(path, columns, dtype={"isic_id": str})
    missing = sorted({*table["isic_id"]} - {*division["isic_id"]})
    if missing:
        raise DataError(
            f"{path} does not name {len(missing)} of {len(table)} images "
            f"({', '.join(missing[:3])}); run `make isic ARGS=splits`"
        )
    return division[columns]


def _cross_validation(
    table: pd.DataFrame, fold: int, shares: Mapping[str, float], seed: int, groups: Sequence[str]
) -> pd.Series:
    """The split of each image where `fold` is the test, and the rest is divided into train and val.

    Raises:
        DataError: there is no such fold.
    """
    folds = sorted(set(table["fold"]))
    if fold not in folds:
        raise DataError(f"dataset.fold is {fold}; there are {', '.join(map(str, folds))}")
    rest = table[table["fold"] != fold].reset_index()
    both = shares["train"] + shares["val"]
    strata = np.unique(rest["label"] * 2 + rest["patched"], return_inverse=True)[1]
    wanted = [shares["train"] / both, shares["val"] / both]
    part = divide(strata, groups_of(rest, list(groups)), wanted, seed)
    split = pd.Series("test", table.index)
    split[rest["index"]] = np.array(["train", "val"])[part]
    return split


def _mixture(
    part: pd.DataFrame, share: float | None, name: str, rng: np.random.Generator
) -> pd.DataFrame:
    """`part` without so many benign images that `share` of those left show a sticker.

    Raises:
        DataError: more of them have one already.
    """
    if share is None:
        return part
    plain = part.index[(part["label"] == 0) & ~part["patched"]]
    patched = int(part["patched"].sum())
    kept = round(patched * (1 - share) / share) if share > 0 else len(plain) + 1
    if not kept <= len(plain) or share > 1:
        now = patched / max(patched + len(plain), 1)
        raise DataError(
            f"dataset.patch_share is {share}: of the benign images in {name} {now:.3f} show a "
            "sticker already; choose a share between that and 1"
        )
    left_out = rng.choice(plain, len(plain) - kept, replace=False)
    return part.drop(left_out)


def _fingerprint(parts: Mapping[str, pd.DataFrame], side: int) -> str:
    """SHA-256 over the contents of images and masks and the labels, split by split."""
    digest = hashlib.sha256(f"{side}".encode())
    for name, part in parts.items():
        columns = part[["isic_id", "label", "image_key", "mask_key"]]
        digest.update(f"{name}\n{columns.to_csv(index=False)}".encode())
    return digest.hexdigest()
