"""Figures made from trained models: which inputs they get, and where each of them looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from cdep_run.datasets.base import Bunch
from cdep_run.evidence.explainers import sensitivity


def gallery(
    models: Mapping[str, nn.Module], bunch: Bunch, split: str, examples: int, file: Path
) -> None:
    """Draw images of a split, the features that must not matter, and where each model looks.

    Args:
        models: trained models by title, in evaluation mode on the CPU.
        bunch: the data they were trained on.
        split: the split the images come from, one of each class in turn.
        examples: how many images.
        file: where to write; the ending chooses the format (png, svg, pdf).
    """
    labels = bunch.splits[split].labels
    chosen = torch.stack(
        [
            torch.nonzero(labels == c % bunch.num_classes)[c // bunch.num_classes, 0]
            for c in range(examples)
        ]
    )
    batch = bunch.splits[split].batch(chosen)
    if batch.groups is None:
        raise ValueError(f"split {split} of {bunch.name} has no groups to draw")
    if bunch.display is None:
        raise ValueError(f"{bunch.name} has no images")
    images = bunch.display(batch.inputs)
    mask = batch.groups.mask.any(1).any(1).expand(examples, *images.shape[-2:])
    columns = [
        Column("image", images.permute(0, 2, 3, 1).numpy()),
        Column("must not matter", mask.numpy()),
    ]
    for title, model in models.items():
        with torch.no_grad():
            says = model(batch.inputs).argmax(1)
        captions = [
            f"says {found}" + ("" if found == truth else f", is {truth}")
            for found, truth in zip(says.tolist(), batch.labels.tolist(), strict=True)
        ]
        heat = sensitivity(model, batch.inputs, says)
        columns.append(Column(title, heat.numpy(), captions))
    heading = "Where each model looks: |∂ log p / ∂x| of its prediction, brighter is more"
    draw(columns, heading, file)


@dataclass(frozen=True)
class Column:
    """One column of a figure: its title, and a picture and caption a row.

    Attributes:
        pictures: `[N, H, W, 3 or 1]` images, bool `[N, H, W]` masks or `[N, H, W]` heat in [0, 1].
        captions: one below each picture, or none.
    """

    title: str
    pictures: NDArray[Any]
    captions: Sequence[str] = ()


def draw(columns: Sequence[Column], heading: str, file: Path) -> None:
    """Write a figure with these columns; the file's ending chooses the format (png, svg, pdf)."""
    import matplotlib

    matplotlib.use("Agg")  # no display needed
    from matplotlib import pyplot as plt

    rows = len(columns[0].pictures)
    size = (1.6 * len(columns), 1.6 * rows)
    figure, axes = plt.subplots(
        rows, len(columns), figsize=size, squeeze=False, layout="constrained"
    )
    for axis_column, column in zip(axes.T, columns, strict=True):
        heat = column.pictures.ndim == 3 and column.pictures.dtype != bool
        for row, axis in enumerate(axis_column):
            picture = column.pictures[row]
            axis.imshow(picture, cmap="magma" if heat else "gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
            if column.captions:
                axis.set_xlabel(column.captions[row])
        axis_column[0].set_title(column.title)
    figure.suptitle(heading)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    plt.close(figure)
