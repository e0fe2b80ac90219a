"""ColorMNIST: in training the colour gives the digit away, afterwards it misleads."""

from __future__ import annotations

import colorsys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cdep_run.datasets.annotation import SampledPixels
from cdep_run.datasets.base import Annotation, Bunch, TensorSplit, fingerprint
from cdep_run.datasets.mnist import NAMES, Images, hold_out, load
from cdep_run.datasets.projections import Facts, annotated, group_name

RED, PURPLE = (0.0, 1.0, 0.5), (0.83333, 1.0, 128 / 255 / 2)  # hue, saturation, lightness


class ColourSplit(TensorSplit):
    """Grey images uint8 `[N, 28, 28]`, coloured by label and standardised when asked for.

    An input is grey / 255 · colour of the label, minus `mean`, divided by `std`.

    Args:
        part: grey images and labels.
        palette: the colour of each label, `[10, 3]` float64, red, green, blue in [0, 1].
        mean, std: per channel, `[3]` float64.
        annotation: as in `TensorSplit`.
    """

    def __init__(
        self,
        part: Images,
        palette: Tensor,
        mean: Tensor,
        std: Tensor,
        annotation: Annotation | None,
    ) -> None:
        super().__init__(part.images, part.labels, annotation)
        self.scale = (palette / (255 * std)).float()[:, :, None, None]  # [10, 3, 1, 1]
        self.offset = -(mean / std).float()[:, None, None]  # [3, 1, 1]

    def prepare(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Standardised colour images, float `[n, 3, 28, 28]`."""
        return (inputs[:, None].float() * self.scale[labels]).add_(self.offset)


def color_mnist(
    data_dir: str | Path,
    source: str,
    download: bool,
    seed: int,
    val_size: int,
    groups: Any,
    pixels: int,
    train_size: int | None = None,
) -> Bunch:
    """ColorMNIST, and the same on Fashion-MNIST: see `colour` for splits, colours and groups.

    Args:
        data_dir: folder that holds `<source>/raw/`, as torchvision lays it out.
        source: "MNIST" or "FashionMNIST".
        download: fetch the files when absent.
        seed: of the division into train and val.
        val_size: number of training images held out.
        groups: what must not matter: "pixels", "chroma" or another map, see
            `projections.annotated`.
        pixels: number of pixels a batch that must not matter.
        train_size: use only so many training images; None: all of them.

    Raises:
        DataError: files absent or damaged, sizes that do not fit, or groups that images lack.
    """
    train_part, test = load(data_dir, source, download)
    generator = torch.Generator().manual_seed(seed)
    train, val = hold_out(train_part, val_size, train_size, generator)
    return colour(f"color_{NAMES[source]}", train, val, test, groups, pixels)


def colour(name: str, train: Images, val: Images, test: Images, groups: Any, pixels: int) -> Bunch:
    """Colour each image by its label.

    Splits: train; val and test with inverted colours (label d gets colour 9 - d); test_same, the
    test images with the training colours, where the shortcut still works. Standardised per channel
    with the training mean and standard deviation. Groups: `pixels` single pixels a batch, drawn
    from the distribution of non-zero training pixels; or a linear map of the image, such as its
    colour. λ is chosen on val.
    Source: Rieger et al. 2019 (arXiv:1909.13584), Table 2 and Fig. S5, and its published code.
    """
    shades = palette()
    mean, std = moments(train, shades)
    drawn = SampledPixels((train.images > 0).sum(0, dtype=torch.int32).double(), pixels)
    annotation = annotated(groups, "pixels", drawn, Facts((3, 28, 28), std))
    inverted = shades.flip(0)
    splits: dict[str, TensorSplit] = {
        "train": ColourSplit(train, shades, mean, std, annotation),
        "val": ColourSplit(val, inverted, mean, std, annotation),
        "test": ColourSplit(test, inverted, mean, std, annotation),
        "test_same": ColourSplit(test, shades, mean, std, annotation),
    }

    def display(inputs: Tensor) -> Tensor:
        images = inputs.cpu() * std.float()[:, None, None] + mean.float()[:, None, None]
        return images.clamp(0, 1)

    names = group_name(annotation)
    data = (name, splits, 10, (3, 28, 28), "val", fingerprint(splits), display)
    return Bunch(*data, group_names=names)


def palette() -> Tensor:
    """Ten colours evenly spaced in HSL from red to purple: `[10, 3]` float64, RGB in [0, 1]."""
    steps = [[a + (b - a) * k / 9 for a, b in zip(RED, PURPLE, strict=True)] for k in range(10)]
    return torch.tensor(
        [colorsys.hls_to_rgb(hue, light, saturation) for hue, saturation, light in steps],
        dtype=torch.float64,
    )


def moments(part: Images, palette: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel of the coloured images, each `[3]` float64.

    From whole-number counts per label, so that they are the same on every machine.
    """
    histogram = torch.stack(  # [label, grey level], number of pixels
        [part.images[part.labels == label].flatten().bincount(minlength=256) for label in range(10)]
    ).double()
    levels = torch.arange(256, dtype=torch.float64)
    sums, squares = histogram @ levels, histogram @ levels**2
    mean = (sums[:, None] * palette).sum(0) / 255 / part.images.numel()
    mean_square = (squares[:, None] * palette**2).sum(0) / 255**2 / part.images.numel()
    return mean, (mean_square - mean**2).sqrt()
