"""Check images of one's own: files, masks, copies, and whether what must not matter gives away."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cdep_run.check.association import associate
from cdep_run.check.findings import CheckReport, Picture, add_counts, add_duplicates, same
from cdep_run.datasets.base import DataError
from cdep_run.datasets.image_cache import Decoded, ImageCache
from cdep_run.datasets.image_files import divided
from cdep_run.datasets.images import Gathered, check_options, gather

EXAMPLES = 6
"""So many images of each class, with and without the feature, are shown."""

THUMB = 96
"""Width of a thumbnail in pixels."""


def inspect(node: dict[str, Any]) -> CheckReport:
    """Look at all images and masks of a `dataset=images`.

    Args:
        node: the settings of the data set.

    Raises:
        DataError: folder, table or masks cannot be read at all.
    """
    check_options(node["size"], node["fit"], node["unmasked"])
    cache = ImageCache(Path(node["cache_dir"]), node["size"], node["fit"])
    keys = ("root", "table", "columns", "masks", "encoding", "delimiter")
    found = gather(**{key: node[key] for key in keys}, cache=cache)
    report = CheckReport(node["name"])
    report.add_faults("files and masks", found.faults)
    usable = [place for place, known in enumerate(found.decoded) if known is not None]
    labels = [str(label) for label in found.files.table["label"]]
    try:
        classes = found.files.classes(node["positive"])
        splits = divided(found.files, node["shares"], node["seed"]).tolist()
    except DataError as error:
        report.add("fault", "classes and splits", found.files.base.name, str(error))
        classes, splits = sorted(set(labels)), ["all"] * len(labels)
    look = Thumbnails(found)
    add_counts(report, [labels[p] for p in usable], [splits[p] for p in usable], classes)
    _copies(report, found, usable, labels, splits, look)
    _sizes(report, found, usable)
    for group, masks in found.masks.items():
        _group(report, found, group, masks, labels, usable, look, node["unmasked"])
    for label in classes:
        places = [p for p in usable if labels[p] == label][:EXAMPLES]
        report.pictures[f"class {label}"] = [look(place) for place in places]
    if found.files.ignored:
        report.add(
            "note",
            "files",
            f"{len(found.files.ignored)} files",
            f"are no pictures by their names ({', '.join(found.files.ignored[:3])})",
        )
    return report


class Thumbnails:
    """Makes small pictures of images, what their masks mark in red."""

    def __init__(self, found: Gathered) -> None:
        self.found, self.names = found, found.files.table["id"].tolist()

    def __call__(self, place: int) -> Picture:
        """The thumbnail of the image at `place`."""
        cache, known = self.found.cache, self.found.decoded[place]
        assert known is not None
        size = cache.size
        row = cache.pixels.index[known.key]
        pixels = cache.pixels.read([row])[0].reshape(3, size, size).transpose(1, 2, 0).copy()
        for masks in self.found.masks.values():
            if (mask := masks[place]) is not None:
                marked = cache.masks_of([cache.masks.index[mask.key]])[0]
                pixels[marked] = pixels[marked] // 2 + np.array([127, 0, 0], np.uint8)
        buffer = io.BytesIO()
        image = Image.fromarray(pixels)
        image.thumbnail((THUMB, THUMB))
        image.save(buffer, "JPEG", quality=80)
        label = self.found.files.table["label"].iloc[place]
        return Picture(buffer.getvalue(), f"{self.names[place]} · {label}")


def _copies(
    report: CheckReport,
    found: Gathered,
    usable: Sequence[int],
    labels: Sequence[str],
    splits: Sequence[str],
    look: Thumbnails,
) -> None:
    """Images with the very same pixels, whatever their files' kind."""
    store = found.cache.pixels
    rows = [store.index[known.key] for known in found.decoded if known is not None]
    copies = []
    for places in same(store.sums[row] for row in rows):
        content = [store.read([rows[place]])[0].tobytes() for place in places]  # sums can collide
        copies += [[usable[places[k]] for k in equal] for equal in same(content)]
    pictures = {place: look(place) for places in copies[:20] for place in places[:8]}
    add_duplicates(report, copies, look.names, splits, labels, pictures)


def _sizes(report: CheckReport, found: Gathered, usable: Sequence[int]) -> None:
    """Whether the images have one size, and one shape."""
    known = [d for d in found.decoded if d is not None]
    if not known:
        return
    sizes = sorted({(d.width, d.height) for d in known}, key=lambda size: size[0] * size[1])
    shapes = np.array([d.width / d.height for d in known])
    least, most = ("×".join(map(str, size)) for size in (sizes[0], sizes[-1]))
    if len(sizes) > 1:
        report.add(
            "note",
            "sizes",
            f"{len(known)} images",
            f"have {len(sizes)} sizes, from {least} to {most}",
        )
    if shapes.max() > 1.25 * shapes.min():
        report.add(
            "warning",
            "sizes",
            f"{len(known)} images",
            f"are {shapes.min():.2f} to {shapes.max():.2f} times as wide as high: squashing "
            "distorts them differently; dataset.fit=crop keeps shapes",
        )


def _group(
    report: CheckReport,
    found: Gathered,
    group: str,
    masks: Sequence[Decoded | None],
    labels: Sequence[str],
    usable: Sequence[int],
    look: Thumbnails,
    unmasked: str,
) -> None:
    """Masks of one group: how many, how large, and of which class."""
    shares = {p: mask.share for p, mask in enumerate(masks) if mask is not None}
    empty = [look.names[place] for place, share in shares.items() if share == 0]
    marked = {place for place, share in shares.items() if share > 0}
    if empty:
        report.add(
            "warning",
            "masks",
            group,
            f"{len(empty)} masks mark nothing: these images "
            f"count as without it ({', '.join(empty[:5])})",
        )
    if not marked:
        report.add("fault", "masks", group, "no image has a mask that marks something")
        return
    values = np.array([shares[place] for place in marked])
    report.add(
        "note",
        "masks",
        group,
        f"{len(marked)} of {len(usable)} images have a mask; it "
        f"marks {values.min():.1%} to {values.max():.1%}, median {np.median(values):.1%}",
    )
    without = found.groups[group].without_image
    if without and not found.files.whole:
        report.add(
            "note",
            "masks",
            group,
            f"{len(without)} masks are of images that the table "
            f"does not name ({', '.join(without[:3])})",
        )
    presence = ["with" if place in marked else "without" for place in usable]
    result = associate(group, presence, [labels[place] for place in usable])
    if result is None:
        report.add(
            "note",
            "shortcut",
            group,
            "every image has a mask: presence tells nothing, but what stands inside may",
        )
        return
    report.associations.append(result)
    counted = "" if unmasked == "clean" else " (images without a mask counted as without it)"
    level = "warning" if result.is_one else "note"
    shown = [look(place) for place in sorted(marked)[:EXAMPLES]]
    report.add(level, "shortcut", group, result.sentence() + counted, shown)
