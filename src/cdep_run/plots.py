"""Figures made from trained models: which inputs they get, and where each of them looks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdep_run.attribution import input_gradients
from cdep_run.datasets.base import Bunch


def sensitivity(model: nn.Module, inputs: Tensor, classes: Tensor) -> Tensor:
    """|∂ log p_y/∂x|, summed over channels: how strongly each pixel moves the prediction.

    Args:
        model: maps `[N, C, H, W]` to logits.
        inputs: `[N, C, H, W]`.
        classes: y, int64 `[N]`.

    Returns:
        `[N, H, W]`, each example divided by its largest value; no unit, in [0, 1].
    """
    _, gradient = input_gradients(
        model, inputs, lambda logits: -F.cross_entropy(logits, classes, reduction="sum")
    )
    heat = gradient.detach().abs().sum(1)
    return heat / heat.amax((1, 2), keepdim=True).clamp_min(torch.finfo(heat.dtype).tiny)


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
    import matplotlib

    matplotlib.use("Agg")  # no display needed
    from matplotlib import pyplot as plt

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
    figure, axes = plt.subplots(
        examples, 2 + len(models), figsize=(1.6 * (2 + len(models)), 1.6 * examples), squeeze=False
    )
    columns = [("image", images.permute(0, 2, 3, 1)), ("must not matter", mask)]
    predictions = {}
    for title, model in models.items():
        with torch.no_grad():
            predictions[title] = model(batch.inputs).argmax(1)
        columns.append((title, sensitivity(model, batch.inputs, predictions[title])))
    for column, (title, pictures) in enumerate(columns):
        for row in range(examples):
            axis = axes[row, column]
            axis.imshow(
                pictures[row].numpy(), cmap="gray" if column < 2 else "magma", vmin=0, vmax=1
            )
            axis.set(xticks=[], yticks=[])
            if title in predictions:
                found, truth = int(predictions[title][row]), int(batch.labels[row])
                axis.set_xlabel(f"says {found}" + ("" if found == truth else f", is {truth}"))
        axes[0, column].set_title(title)
    figure.suptitle("Where each model looks: |∂ log p / ∂x| of its prediction, brighter is more")
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    plt.close(figure)
