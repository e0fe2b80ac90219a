"""Step `splits`: metadata of the usable images, divided by patient or lesion, label and patch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cdep_run.isic_prep.images import COLUMNS as RESIZE_COLUMNS
from cdep_run.isic_prep.images import PrepareError, find_metadata, usable
from cdep_run.isic_prep.masks import COLUMNS as MASK_COLUMNS
from cdep_run.isic_prep.masks import struck
from cdep_run.isic_prep.settings import Resize, Splits
from cdep_run.isic_prep.step_report import Report, write_table


def collect(folder: Path, options: Resize) -> pd.DataFrame:
    """One row for each usable image, written as metadata.csv.

    The archive's columns, then `file`, `patch_mask` (blank: no sticker), `patches` (0 or 1) and
    `patch_fraction`. Images and masks that a person struck out are left out.

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
    table = table[table["isic_id"].isin(ok)].copy()
    has = [masks[name]["status"] == "mask" and name not in no_mask for name in table["isic_id"]]
    table["file"] = table["benign_malignant"] + "/" + table["isic_id"] + ".jpg"
    table["patch_mask"] = np.where(has, "patch_masks/" + table["isic_id"] + ".png", "")
    table["patches"] = np.array(has, dtype=int)
    fractions = [float(masks[name]["fraction"] or 0) for name in table["isic_id"]]
    table["patch_fraction"] = np.where(has, fractions, 0.0)
    write_table(folder / "metadata.csv", table.sort_values("isic_id"))
    return table.sort_values("isic_id").reset_index(drop=True)


def groups_of(table: pd.DataFrame, columns: list[str]) -> NDArray[np.int64]:
    """A number for each image; those that agree in any of the columns have the same one."""
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
    """The part of each image: whole groups, each stratum as near to the shares as they allow.

    Groups are taken largest first, in random order among equals, and go where the strata they hold
    are missing most.

    Args:
        strata: `[N]`, number of each image's stratum, from 0.
        groups: `[N]`, number of each image's group, from 0.
        shares: of the parts; they sum to 1.
        seed: of the order of the groups.
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
        best = np.flatnonzero(need >= need.max() - 1e-9)
        part = int(rng.choice(best))
        part_of[group] = part
        missing[part] -= content[group]
    return part_of[groups]


def assign(table: pd.DataFrame, options: Splits) -> pd.DataFrame:
    """Columns isic_id, split and fold for each image of `table`, which has metadata.csv's columns.

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
    names = np.array(list(options.shares))
    result = table[["isic_id"]].assign(
        split=names[divide(strata, groups, shares, options.seed)],
        fold=divide(strata, groups, [1 / options.folds] * options.folds, options.seed),
    )
    counts = result.assign(label=labels, patches=table["patches"])
    for column, parts in (("split", names), ("fold", np.arange(options.folds))):
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
