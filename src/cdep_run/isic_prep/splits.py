"""Step `splits`: metadata of the usable images, divided by patient or lesion, label and patch."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cdep_run.isic_prep.decode import PrepareError
from cdep_run.isic_prep.images import COLUMNS as RESIZE_COLUMNS
from cdep_run.isic_prep.images import find_metadata, usable
from cdep_run.isic_prep.masks import COLUMNS as MASK_COLUMNS
from cdep_run.isic_prep.masks import struck
from cdep_run.isic_prep.settings import Resize, Splits
from cdep_run.isic_prep.step_report import Report, write_table

log = logging.getLogger(__name__)

SLACK = 1.0
"""So many images more than a part has room for are no reason to put a group elsewhere."""

NOTICEABLE = 0.2
"""A part that misses its share by more than this share of it is warned of."""


def collect(folder: Path, options: Resize) -> pd.DataFrame:
    """Make one row for each usable image, and write them as metadata.csv.

    Columns: those of the archive, then `file`, `patch_mask` (blank: no sticker), `patches` (0 or 1)
    and `patch_fraction`. Images and masks that a person struck out are left out, and so are images
    that the step segment could not read.

    Raises:
        PrepareError: a step before this one has not been run.
    """
    resized = Report(folder / "reports" / "resize.csv", RESIZE_COLUMNS).rows()
    masks = Report(folder / "reports" / "segment.csv", MASK_COLUMNS).rows()
    table = usable(find_metadata(folder, options), [])
    out, no_mask = struck(folder)
    ok = [name for name in table["isic_id"]
          if resized.get(name, {}).get("status") == "ok" and name not in out]  # fmt: skip
    missing = [name for name in ok if name not in masks]
    if not ok or missing:
        step = "segment" if ok else "resize"
        raise PrepareError(f"{len(missing)} images are not segmented; run the step {step} first")
    skipped = {name for name in ok if masks[name]["status"] == "skipped"}
    if skipped:
        log.warning("%d images left out: reports/segment.csv says why", len(skipped))
    table = table[table["isic_id"].isin({*ok} - skipped)].copy()
    has = [masks[name]["status"] == "mask" and name not in no_mask for name in table["isic_id"]]
    table["file"] = table["benign_malignant"] + "/" + table["isic_id"] + ".jpg"
    table["patch_mask"] = np.where(has, "patch_masks/" + table["isic_id"] + ".png", "")
    table["patches"] = np.array(has, dtype=int)
    fractions = [float(masks[name]["fraction"] or 0) for name in table["isic_id"]]
    table["patch_fraction"] = np.where(has, fractions, 0.0)
    write_table(folder / "metadata.csv", table.sort_values("isic_id"))
    return table.sort_values("isic_id").reset_index(drop=True)


def groups_of(table: pd.DataFrame, columns: list[str]) -> NDArray[np.int64]:
    """Number the groups: images that agree in one of the columns get the same number, `[N]`."""
    group = np.arange(len(table))
    while True:  # two images may be linked by others: patient A – lesion 1 – patient B
        before = group.copy()
        for column in columns:
            if column in table:
                known = table[column].notna() & (table[column].astype(str) != "")
                least = pd.Series(group[known]).groupby(table.loc[known, column].values)
                group[known] = least.transform("min")
        if (group == before).all():
            return np.unique(group, return_inverse=True)[1]


def divide(
    strata: NDArray[np.int64], groups: NDArray[np.int64], shares: list[float], seed: int
) -> NDArray[np.int64]:
    """Divide images into parts: groups stay whole, strata come as near to the shares as they can.

    Groups are taken largest first, in random order among equals. Each goes to the part that misses
    most of the strata it holds, among the parts that have room for it; where none has, the part
    that it overfills least takes it.

    Args:
        strata: `[N]`, number of each image's stratum, from 0.
        groups: `[N]`, number of each image's group, from 0.
        shares: of the parts; they sum to 1.
        seed: of the order of the groups.

    Returns:
        `[N]`, number of each image's part, from 0.
    """
    content = np.zeros((groups.max() + 1, strata.max() + 1))
    np.add.at(content, (groups, strata), 1)
    rng = np.random.default_rng(seed)
    total = content.sum(0)
    missing = np.outer(shares, total)  # [part, stratum]
    part_of = np.empty(len(content), dtype=np.int64)
    order = rng.permutation(len(content))
    # Rare strata first among groups of one size: the common ones can still make up for them.
    rarity = (content / total).sum(1)
    order = order[np.lexsort((-rarity[order], -content.sum(1)[order]))]
    for group in order:
        need = (missing / total * content[group]).sum(1) / np.asarray(shares)
        too_many = (content[group] - missing.clip(0)).clip(0).sum(1)
        need[too_many > too_many.min() + SLACK] = -np.inf
        best = np.flatnonzero(need >= need.max() - 1e-9)
        part = int(rng.choice(best))
        part_of[group] = part
        missing[part] -= content[group]
    return part_of[groups]


def warn_of_shares(
    kind: str,
    parts: NDArray[np.int64],
    names: Sequence[object],
    shares: Sequence[float],
    strata: NDArray[np.str_],
    groups: NDArray[np.int64],
) -> None:
    """Log where a part holds far less or more of a stratum than its share, as groups stay whole.

    Args:
        kind: what a part is called, such as "split".
        parts: `[N]`, number of each image's part.
        names, shares: of the parts.
        strata: `[N]`, name of each image's stratum.
        groups: `[N]`, number of each image's group.
    """
    missed = []
    for stratum in np.unique(strata):
        total = int((strata == stratum).sum())
        for number, (name, share) in enumerate(zip(names, shares, strict=True)):
            count, wanted = int(((strata == stratum) & (parts == number)).sum()), share * total
            if abs(count - wanted) > max(NOTICEABLE * wanted, 1):
                missed.append(f"{kind} {name} holds {count} of {total} {stratum} images instead of "
                              f"{wanted:.0f}")  # fmt: skip
    if missed:
        largest = int(np.bincount(groups).max())
        log.warning("%s; images of one patient or lesion stay together, and the largest such group "
                    "has %d of %d images", "; ".join(missed), largest, len(parts))  # fmt: skip


def assign(table: pd.DataFrame, options: Splits) -> pd.DataFrame:
    """Give each image a split and a fold; shares that cannot be kept are logged.

    Args:
        table: the columns of metadata.csv.
        options: shares, folds, seed, and the columns that keep images together.

    Returns:
        Columns isic_id, split and fold.

    Raises:
        PrepareError: shares that do not sum to 1, or a split without an image of some class.
    """
    shares = list(options.shares.values())
    if abs(sum(shares) - 1) > 1e-6 or min(shares) <= 0 or options.folds < 2:
        raise PrepareError(
            f"splits.shares={dict(options.shares)}, folds={options.folds}; the shares must be "
            "above 0 and sum to 1, and there must be 2 folds or more"
        )
    labels = table["benign_malignant"]
    strata = np.unique(labels + table["patches"].astype(str), return_inverse=True)[1]
    groups = groups_of(table, list(options.groups))
    names, equal = list(options.shares), [1 / options.folds] * options.folds
    split = divide(strata, groups, shares, options.seed)
    fold = divide(strata, groups, equal, options.seed)
    result = table[["isic_id"]].assign(split=np.array(names)[split], fold=fold)
    label_names = labels.to_numpy(str)
    warn_of_shares("split", split, names, shares, label_names, groups)
    warn_of_shares("fold", fold, range(options.folds), equal, label_names, groups)
    counts = result.assign(label=labels, patches=table["patches"])
    for column, parts in (("split", names), ("fold", range(options.folds))):
        for part in parts:
            for label in ("benign", "malignant"):
                if not ((counts[column] == part) & (labels == label)).any():
                    have = int((labels == label).sum())
                    raise PrepareError(
                        f"{column} {part} has no {label} image ({have} of {len(table)} images are "
                        f"{label}, in {len(set(groups[labels == label]))} groups); add images, or "
                        "choose other shares, fewer folds or other splits.groups"
                    )
    return result


def splits(folder: Path, resize: Resize, options: Splits) -> pd.DataFrame:
    """Write metadata.csv and splits.csv (isic_id, split, fold).

    Raises:
        PrepareError: as `assign`.
    """
    table = collect(folder, resize)
    result = assign(table, options)
    write_table(folder / "splits.csv", result)
    counts = result.assign(label=table["benign_malignant"], patches=table["patches"])
    print(counts.groupby(["split", "label", "patches"]).size().unstack("split").to_string())
    groups = groups_of(table, list(options.groups)).max() + 1
    print(f"splits: {len(table)} images in {groups} groups (metadata.csv, splits.csv)")
    return result
