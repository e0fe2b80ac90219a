"""What is measured of each image under each trained net, and of which images."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from cdep_run.batch import Batch
from cdep_run.datasets.base import Bunch, TensorSplit
from cdep_run.errors import CdepError, ConfigError
from cdep_run.evidence import explainers
from cdep_run.isic_prep.stickers import paste_sticker
from cdep_run.results.load import load

MEASURES = {
    "area": "patch's area",
    "cd_share": "CD share of the patch",
    "gradcam": "Grad-CAM inside it",
    "gradient": "gradient inside it",
    "painted_over": "log-odds, patch painted over",
    "pasted": "log-odds, sticker pasted",
}
"""What is measured of each image, and its title in tables; see `docs/evidence.md`."""

PORTION = 8
"""Images judged together."""


@dataclass(frozen=True)
class Options:
    """What is judged, and how.

    Attributes:
        split: of which images.
        limit: judge at most so many images with a patch, and so many without, of each run, spread
            evenly; None: all.
        avoid: folder with masks `<id>.png` of what a pasted sticker should not cover, or None.
        seed: of the pasted stickers and the bootstrap.
        resamples: of the bootstrap.
        relu: CD's rule for ReLU, the same for all nets.
        examples: images in the figure.
        measures: what is measured; names of `MEASURES`.
    """

    split: str = "test"
    limit: int | None = None
    avoid: Path | None = None
    seed: int = 0
    resamples: int = 1000
    relu: str = "symmetric"
    examples: int = 6
    measures: tuple[str, ...] = tuple(MEASURES)


@dataclass
class Found:
    """What came of one or more runs: rows (setting, id, measure, value), pictures, what lacks."""

    rows: list[tuple[str, str, str, float]] = field(default_factory=list)
    pictures: dict[tuple[str, str], tuple[NDArray[Any], str]] = field(default_factory=dict)
    images: dict[str, tuple[NDArray[Any], NDArray[np.bool_]]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def add(self, setting: str, ids: list[str], measure: str, values: Tensor) -> None:
        """Note a value of each image."""
        rows = zip(ids, values.tolist(), strict=True)
        self.rows += [(setting, name, measure, value) for name, value in rows]


def union(batch: Batch) -> Tensor:
    """Where any group of each image lies, bool `[N, H, W]`; nowhere in one not annotated."""
    height, width = batch.inputs.shape[-2:]
    if batch.groups is None:
        return torch.zeros(len(batch.inputs), height, width, dtype=torch.bool)
    mask = batch.groups.mask.any(1).any(1).expand(len(batch.inputs), height, width)
    known = batch.groups.annotated
    return mask if known is None else mask & known[:, None, None]


def with_and_without(split: TensorSplit) -> tuple[list[int], list[int]]:
    """The places of images with a patch, and of those without."""
    patched: list[int] = []
    for index in split.order(64, shuffle=False):
        there = union(split.batch(index)).flatten(1).any(1)
        patched += index[there].tolist()
    return patched, sorted({*range(len(split))} - {*patched})


def spread(places: list[Any], limit: int | None) -> list[Any]:
    """At most `limit` of them, evenly spread."""
    count = len(places) if limit is None else min(limit, len(places))
    return [places[i * len(places) // count] for i in range(count)]


def portions(split: TensorSplit, places: list[int]) -> Iterator[tuple[list[str], Batch]]:
    """Names and examples at `places`, a few at a time."""
    for index in torch.tensor(places, dtype=torch.int64).split(PORTION):
        if len(index):
            names = [split.ids[i] if split.ids else str(i) for i in index.tolist()]
            yield names, split.batch(index)


def check(folder: Path, bunch: Bunch, split: str) -> None:
    """Refuse data of which nothing can be judged.

    Raises:
        ConfigError: no images, no such split, or no image with a mask in it.
    """
    if bunch.display is None or len(bunch.input_shape) != 3:
        raise ConfigError(f"{folder}: the examples of {bunch.name} are no images")
    if split not in bunch.splits:
        raise ConfigError(f"--split is {split}; {bunch.name} has {', '.join(bunch.splits)}")


def judge(setting: str, folder: Path, options: Options, found: Found, bar: tqdm) -> None:
    """Add what is measured of one run's images to `found`.

    Raises:
        ConfigError: as `check` and `load`.
    """
    model, bunch = load(folder)
    check(folder, bunch, options.split)
    split = bunch.splits[options.split]
    patched, plain = with_and_without(split)
    if not patched:
        raise ConfigError(f"{folder}: no image of split {options.split} has a patch with a mask")
    chosen = spread(patched, options.limit)
    shown = spread(chosen, options.examples if "gradcam" in options.measures else 0)
    for names, batch in portions(split, chosen) if {*options.measures} - {"pasted"} else ():
        with_patch(setting, model, bunch, names, batch, options, found)
        bar.update()
    for names, batch in portions(split, shown):
        picture(setting, model, bunch, names, batch, found)
    if "pasted" not in options.measures:
        return
    if why := no_pasting(bunch):
        found.left_out["pasted"] = why
        return
    positive = [place for place in plain if split.labels[place] == 1]
    for names, batch in portions(split, spread(positive, options.limit)):
        with_sticker(setting, model, bunch, names, batch, options, found)
        bar.update()


def explained(bunch: Bunch, labels: Tensor) -> Tensor:
    """The class whose log-odds are followed: the one to be found, else the true one."""
    return labels if bunch.positive is None else torch.ones_like(labels)


@torch.no_grad()
def odds(model: nn.Module, inputs: Tensor, classes: Tensor) -> Tensor:
    """Log-odds of each of `classes`, `[N]`."""
    return explainers.log_odds(model(inputs), classes)


def with_patch(
    setting: str,
    model: nn.Module,
    bunch: Bunch,
    names: list[str],
    batch: Batch,
    options: Options,
    found: Found,
) -> None:
    """Judge images that show a patch; what cannot be had of this net is named in `left_out`."""
    inputs, labels, mask = batch.inputs, batch.labels, union(batch)
    classes = explained(bunch, labels)

    def painted() -> Tensor:
        each = zip(inputs, mask, strict=True)
        return torch.stack([explainers.painted_over(image, where) for image, where in each])

    measured: dict[str, Callable[[], Tensor]] = {
        "area": lambda: mask.float().mean((1, 2)),
        "cd_share": lambda: explainers.cd_share(
            explainers.without_last_bias(model, bunch.num_classes),
            inputs,
            mask[:, None],
            options.relu,
        ),
        "gradcam": lambda: explainers.inside(explainers.gradcam(model, inputs, labels), mask),
        "gradient": lambda: explainers.inside(explainers.gradient(model, inputs, labels), mask),
        "painted_over": lambda: odds(model, painted(), classes) - odds(model, inputs, classes),
    }
    for measure, value in measured.items():
        try:
            if measure in options.measures:
                found.add(setting, names, measure, value())
        except (CdepError, NotImplementedError) as error:
            found.left_out[measure] = str(error)


def picture(
    setting: str, model: nn.Module, bunch: Bunch, names: list[str], batch: Batch, found: Found
) -> None:
    """Keep Grad-CAM maps over the images, for the figure."""
    from matplotlib import colormaps

    assert bunch.display is not None
    images = bunch.display(batch.inputs).expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
    try:
        heat = explainers.gradcam(model, batch.inputs, batch.labels)
    except CdepError:  # named in left_out
        return
    heat = heat / heat.amax((1, 2), keepdim=True).clamp_min(torch.finfo(heat.dtype).tiny)
    over = 0.35 * images.mean(-1, keepdims=True) + 0.65 * colormaps["magma"](heat.numpy())[..., :3]
    with torch.no_grad():
        p = model(batch.inputs).softmax(1).gather(1, batch.labels[:, None])[:, 0]
    masks = union(batch).numpy()
    for row, name in enumerate(names):
        found.pictures[setting, name] = over[row], f"p(true) {p[row]:.2f}"
        found.images[name] = images[row], masks[row]


def with_sticker(
    setting: str,
    model: nn.Module,
    bunch: Bunch,
    names: list[str],
    batch: Batch,
    options: Options,
    found: Found,
) -> None:
    """Judge images of class 1 without a patch by pasting a sticker onto them."""
    assert bunch.display is not None
    images = (bunch.display(batch.inputs) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    pasted = np.stack([paste(image, name, options) for image, name in zip(images, names)])  # noqa: B905
    change = torch.from_numpy(pasted.astype(np.float32) - images).permute(0, 3, 1, 2) / 255
    classes = explained(bunch, batch.labels)
    before = odds(model, batch.inputs, classes)
    after = odds(model, batch.inputs + change / scale(bunch), classes)
    found.add(setting, names, "pasted", after - before)
    found.add(setting, names, "before", before)


def paste(image: NDArray[np.uint8], name: str, options: Options) -> NDArray[np.uint8]:
    """The image with a sticker that its name and the seed decide."""
    from PIL import Image

    avoid = None
    if options.avoid is not None:
        file = options.avoid / f"{name}.png"
        if not file.is_file():
            raise ConfigError(f"--avoid {options.avoid}: there is no {file.name}")
        size = image.shape[1], image.shape[0]
        avoid = np.asarray(Image.open(file).convert("L").resize(size, Image.Resampling.NEAREST)) > 0
    return paste_sticker(image, zlib.crc32(f"{options.seed} {name}".encode()), avoid=avoid)[0]


def scale(bunch: Bunch) -> Tensor:
    """How much brighter a pixel of a figure is where the input is greater by 1; `[3, 1, 1]`."""
    assert bunch.display is not None
    ends = torch.stack([torch.zeros(bunch.input_shape), torch.full(bunch.input_shape, 0.01)])
    low, high = bunch.display(ends).double()
    return ((high - low) / 0.01)[:, :1, :1].float()


def no_pasting(bunch: Bunch) -> str | None:
    """Why stickers cannot be pasted onto these images, or None."""
    if bunch.positive is None:
        return f"{bunch.name} has no class to be found"
    if bunch.input_shape[0] != 3:
        return f"the images of {bunch.name} have no colours"
    return None
