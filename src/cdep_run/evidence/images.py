"""Evidence from images: explainers inside the patch, the patch painted over, and pasted."""

from __future__ import annotations

import zlib
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cdep_run.batch import Batch
from cdep_run.datasets.base import Bunch, TensorSplit
from cdep_run.errors import CdepError, ConfigError
from cdep_run.evidence import explainers
from cdep_run.evidence.measure import (
    Found,
    Options,
    changed,
    explained,
    measure_each,
    odds,
    portions,
    spread,
)
from cdep_run.isic_prep.stickers import paste_sticker


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


def judge_images(
    setting: str, model: nn.Module, bunch: Bunch, options: Options, found: Found
) -> None:
    """Add what is measured of one net's images to `found`.

    Raises:
        ConfigError: no image of the split shows the feature.
    """
    split = bunch.splits[options.split]
    patched, plain = with_and_without(split)
    if not patched:
        raise ConfigError(f"{bunch.name}: no image of split {options.split} has a mask")
    chosen = spread(patched, options.limit)
    shown = spread(chosen, options.examples if "gradcam" in options.measures else 0)
    for names, batch in portions(split, chosen) if {*options.measures} - {"pasted"} else ():
        with_patch(setting, model, bunch, names, batch, options, found)
    for names, batch in portions(split, shown):
        picture(setting, model, bunch, names, batch, found)
    targets = spread(
        [place for place in plain if bunch.positive is None or split.labels[place] == 1],
        options.limit,
    )
    for names, batch in portions(split, targets):
        if {"cutout", "cutout_changed"} & {*options.measures}:
            donors = split.batch(donors_of(names, patched, options.seed))
            with_cutout(setting, model, bunch, names, batch, donors, options, found)
    if "pasted" not in options.measures:
        return
    if why := no_pasting(bunch):
        found.left_out["pasted"] = why
        return
    for names, batch in portions(split, targets):
        with_sticker(setting, model, bunch, names, batch, options, found)


def with_cutout(
    setting: str,
    model: nn.Module,
    bunch: Bunch,
    names: list[str],
    batch: Batch,
    donors: Batch,
    options: Options,
    found: Found,
) -> None:
    """Judge images without the patch by pasting those of `donors`, each at its own place."""
    after = torch.where(union(donors)[:, None], donors.inputs, batch.inputs)
    classes = explained(bunch, batch.labels)
    measured = {
        "cutout": lambda: odds(model, after, classes) - odds(model, batch.inputs, classes),
        "cutout_changed": lambda: changed(model, batch.inputs, after),
    }
    measure_each(setting, names, measured, options, found)


def donors_of(names: list[str], patched: list[int], seed: int) -> Tensor:
    """Return a place among `patched` for each name, which the name and the seed decide."""
    return torch.tensor([patched[zlib.crc32(f"{seed} {n}".encode()) % len(patched)] for n in names])


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

    @cache
    def painted() -> Tensor:
        each = zip(inputs, mask, strict=True)
        return torch.stack([explainers.painted_over(image, where) for image, where in each])

    share_of = explainers.without_last_bias
    measured = {
        "area": lambda: mask.float().mean((1, 2)),
        "cd_share": lambda: explainers.cd_share(
            share_of(model, bunch.num_classes), inputs, mask[:, None], options.relu
        ),
        "gradcam": lambda: explainers.inside(explainers.gradcam(model, inputs, labels), mask),
        "gradient": lambda: explainers.inside(explainers.gradient(model, inputs, labels), mask),
        "painted_over": lambda: odds(model, painted(), classes) - odds(model, inputs, classes),
        "painted_changed": lambda: changed(model, inputs, painted()),
    }
    measure_each(setting, names, measured, options, found)


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
