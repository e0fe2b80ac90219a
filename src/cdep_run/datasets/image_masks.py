"""Where masks come from: pictures, labelme and COCO files, tables of boxes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cdep_run.datasets.base import DataError
from cdep_run.datasets.faults import Fault
from cdep_run.datasets.pictures import SUFFIXES, Shape
from cdep_run.datasets.table_file import as_text, numbers, read_table

BOXES = (("left", "top", "right", "bottom"), ("x", "y", "width", "height"))
"""What the columns of a table of boxes are called: either way, in pixels; right, bottom are out."""

LABELME = {"polygon": "polygon", "rectangle": "rectangle", "circle": "circle"}
"""Kinds of labelme's shapes that enclose something."""


@dataclass(frozen=True)
class MaskSource:
    """The mask of one image: a picture, or shapes.

    Attributes:
        where: what to call it in messages.
        path: of the picture; None: `shapes` are drawn.
        shapes: in pixels of the upright image; none of them: the image is known to have nothing.
    """

    where: str
    path: Path | None = None
    shapes: tuple[Shape, ...] = ()

    def drawn_key(self, size: tuple[int, int]) -> str:
        """What the drawn shapes depend on, as a name."""
        return hashlib.sha256(repr((self.shapes, size)).encode()).hexdigest()[:32]


@dataclass
class GroupMasks:
    """The masks of one named group.

    Attributes:
        name: of the group.
        by_image: the mask of each image that has one, by the image's id.
        faults: what cannot be used.
        without_image: masks that no image bears the name of.
    """

    name: str
    by_image: dict[str, MaskSource] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    without_image: list[str] = field(default_factory=list)


def mask_groups(masks: Any) -> dict[str, tuple[Path, str | None]]:
    """The groups that `dataset.masks` names: where each one's masks are, and which label counts.

    Args:
        masks: None; a path (the group is called "mask"); or, by name, a path or
            {path: …, label: …}.

    Raises:
        DataError: something else, or a path that does not exist.
    """
    if masks is None:
        return {}
    named = masks if isinstance(masks, Mapping) else {"mask": masks}
    found: dict[str, tuple[Path, str | None]] = {}
    for name, value in named.items():
        entry = value if isinstance(value, Mapping) else {"path": value}
        if not entry.get("path") or set(entry) - {"path", "label"}:
            raise DataError(
                f"dataset.masks.{name} is {value!r}; accepted: a path, or {{path: …, label: …}}"
            )
        path = Path(str(entry["path"])).expanduser()
        if not path.exists():
            raise DataError(f"dataset.masks.{name}: {path} does not exist")
        found[str(name)] = (path, entry.get("label"))
    return found


def read_masks(name: str, path: Path, label: str | None, ids: Sequence[str]) -> GroupMasks:
    """The masks of one group, by image; none of their pictures is opened yet.

    Args:
        name: of the group.
        path: a folder with a picture or a labelme file for each image, under its name or its path;
            a COCO file (.json); or a table of boxes with the columns path and left, top, right,
            bottom or x, y, width, height.
        label: of labelme, COCO and boxes (column label): only shapes of this label; None: all.
        ids: the images, as their paths are written.

    Raises:
        DataError: the file cannot be read at all.
    """
    group = GroupMasks(name)
    names = _Names(ids)
    if path.is_dir():
        _from_folder(group, path, label, names)
    elif path.suffix.lower() == ".json":
        _from_coco(group, path, label, names)
    else:
        _from_boxes(group, path, label, names)
    return group


class _Names:
    """Finds an image by its path, with or without the ending, or by the last parts of its path."""

    def __init__(self, ids: Iterable[str]) -> None:
        self.known: dict[str, set[str]] = {}
        self.whole: dict[str, set[str]] = {}
        for name in ids:
            suffix = Path(name).suffix
            for path in (name, name.removesuffix(suffix)):
                parts = path.split("/")
                self.whole.setdefault(path, set()).add(name)
                for start in range(len(parts)):
                    self.known.setdefault("/".join(parts[start:]), set()).add(name)

    def find(self, name: str) -> set[str]:
        """The images called so; several where folders hold the same name."""
        parts = Path(name).as_posix().split("/")
        longer = ("/".join(parts[start:]) for start in range(1, len(parts)))
        found = self.whole.get("/".join(parts)) or self.known.get("/".join(parts))
        return found or next((self.whole[path] for path in longer if path in self.whole), set())


def _add(group: GroupMasks, images: set[str], name: str, source: MaskSource) -> None:
    """Note a mask for the one image that it belongs to."""
    if not images:
        group.without_image.append(name)
    elif len(images) > 1:
        group.faults.append(
            Fault(source.where, f"belongs to {' or '.join(sorted(images)[:3])}: lay it in a folder "
                  "of the same name as the image's")
        )  # fmt: skip
    elif (image := next(iter(images))) in group.by_image:
        group.faults.append(
            Fault(source.where, f"{image} has another mask, {group.by_image[image].where}")
        )
    else:
        group.by_image[image] = source


def _from_folder(group: GroupMasks, folder: Path, label: str | None, names: _Names) -> None:
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")):
        relative = path.relative_to(folder)
        where, stem = (
            f"{group.name} mask {relative.as_posix()}",
            relative.with_suffix("").as_posix(),
        )
        images = names.find(stem)
        if path.suffix.lower() == ".json":
            _from_labelme(group, path, where, label, images)
        elif path.suffix.lower() in SUFFIXES:
            _add(group, images, where, MaskSource(where, path))


def _from_labelme(
    group: GroupMasks, path: Path, where: str, label: str | None, images: set[str]
) -> None:
    """One file of labelme: {"shapes": [{"label", "shape_type", "points"}]}."""
    shapes: list[Shape] = []
    try:
        for shape in _json(path)["shapes"]:
            kind = shape.get("shape_type") or "polygon"
            if label is not None and shape["label"] != label:
                continue
            if kind not in LABELME:
                group.faults.append(
                    Fault(where, f"a {kind} encloses nothing; accepted: {', '.join(LABELME)}")
                )
                return
            shapes.append((LABELME[kind], tuple((float(x), float(y)) for x, y in shape["points"])))
    except (KeyError, TypeError, ValueError, AttributeError, DataError) as error:
        group.faults.append(Fault(where, f"is no labelme file: {_reason(error)}"))
        return
    _add(group, images, where, MaskSource(where, shapes=tuple(shapes)))


def _from_coco(group: GroupMasks, path: Path, label: str | None, names: _Names) -> None:
    """A COCO file: images, annotations with polygons or a box, categories."""
    try:
        content = _json(path)
        files = {image["id"]: image["file_name"] for image in content["images"]}
        categories = {c["id"]: c["name"] for c in content.get("categories", [])}
        annotations = list(content["annotations"])
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is no COCO file: {_reason(error)}") from error
    if label is not None and label not in categories.values():
        known = ", ".join(map(str, categories.values())) or "none"
        raise DataError(f"{path} has no category {label!r}; it has {known}")
    shapes: dict[str, list[Shape]] = {}
    for number, annotation in enumerate(annotations, 1):
        where = f"{path.name}, annotation {annotation.get('id', number)}"
        try:
            if label is not None and categories.get(annotation["category_id"]) != label:
                continue
            file = files[annotation["image_id"]]
            shapes.setdefault(file, []).extend(_coco_shapes(annotation))
        except (KeyError, TypeError, ValueError) as error:
            group.faults.append(Fault(where, _reason(error)))
    for file, drawn in shapes.items():
        where = f"{path.name}, {file}"
        _add(group, names.find(file), where, MaskSource(where, shapes=tuple(drawn)))


def _coco_shapes(annotation: Mapping[str, Any]) -> list[Shape]:
    """The shapes of one annotation: its polygons, else its box.

    Raises:
        ValueError: it has a run-length code.
    """
    outline = annotation.get("segmentation")
    if isinstance(outline, Mapping):
        raise ValueError("is run-length coded; write polygons, or a mask picture for each image")
    if outline:
        return [
            ("polygon", tuple(zip(map(float, line[::2]), map(float, line[1::2]), strict=True)))
            for line in outline
        ]
    left, top, width, height = map(float, annotation["bbox"])
    return [("rectangle", ((left, top), (left + width, top + height)))]


def _from_boxes(group: GroupMasks, path: Path, label: str | None, names: _Names) -> None:
    """A table with a row for each box."""
    table = read_table(path, ["path"])
    sides = next((side for side in BOXES if set(side) <= set(table)), None)
    if sides is None:
        either = " or ".join(", ".join(side) for side in BOXES)
        raise DataError(f"{path} has the columns {', '.join(table)}; needed: path and {either}")
    if label is not None:
        if "label" not in table:
            raise DataError(f"{path} has no column label, and dataset.masks asks for {label!r}")
        table = table[as_text(table["label"]) == label]
    values = [numbers(table[side])[0].tolist() for side in sides]
    shapes: dict[str, list[Shape]] = {}
    for row, file, *box in zip(table.index, as_text(table["path"]), *values, strict=True):
        left, top, right, bottom = box
        if sides == BOXES[1]:
            right, bottom = left + right, top + bottom
        if not (left < right and top < bottom):  # also where one is no number
            group.faults.append(
                Fault(f"{path.name}, row {row}", f"the box of {file} is {box}, {', '.join(sides)}")
            )
            continue
        shapes.setdefault(file, []).append(("rectangle", ((left, top), (right, bottom))))
    for file, drawn in shapes.items():
        where = f"{path.name}, {file}"
        _add(group, names.find(file), where, MaskSource(where, shapes=tuple(drawn)))


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise DataError(f"{path} is no JSON: {error}") from None


def _reason(error: BaseException) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)
