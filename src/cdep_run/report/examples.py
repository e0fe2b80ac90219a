"""Examples for the report: inputs, what must not matter, and where each trained net looks."""

from __future__ import annotations

import base64
import io
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdep_run.errors import CdepError, ConfigError
from cdep_run.report.collect import Report, Run

if TYPE_CHECKING:
    from torch import nn

    from cdep_run.datasets.base import Bunch, TensorSplit

LARGEST = 160  # pixels: larger pictures are made smaller
LOOKED_AT = 16  # times as many images as are shown: among them those with a mask come first


def add_examples(report: Report, count: int) -> None:
    """Add `count` test images of every data set of which trained nets are there.

    Of each setting the net with the chosen λ and the lowest seed is shown. Runs of which only the
    record is there are left out; a data set of which nothing can be shown is named in `problems`.
    """
    nets: dict[str, dict[str, Run]] = defaultdict(dict)
    by_id = {run.id: run for run in report.runs}
    for cell in report.cells:
        if not cell.chosen:
            continue
        for run in sorted((by_id[i] for i in cell.runs), key=lambda run: run.seed):
            if (Path(run.path).parent / "checkpoints").is_dir():
                strength = "" if run.penalty == "none" else f", λ = {run.strength:g}"
                nets[run.dataset][run.label + strength] = run
                break
    sets = list(dict.fromkeys(run.dataset for run in report.runs))
    bare = [dataset for dataset in sets if dataset not in nets]
    if bare:
        report.problems.append(
            f"{', '.join(bare)}: no pictures of where nets look, as the runs with the chosen λ "
            "have no checkpoints here (records alone hold no weights)"
        )
    for dataset, runs in nets.items():
        try:
            report.examples.append(drawn(dataset, runs, count, report.problems))
        except (CdepError, OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
            message = str(error).partition("\n")[0]
            report.problems.append(
                f"{dataset}: no pictures of where nets look: {type(error).__name__}: {message}"
            )


def drawn(dataset: str, runs: dict[str, Run], count: int, problems: list[str]) -> dict[str, Any]:
    """Return examples of a data set as its trained nets see them.

    A net that cannot be loaded is named in `problems`; the others are drawn without it.

    Raises:
        CdepError: none of the nets can be loaded.
    """
    from cdep_run.results.load import load

    loaded = {}
    for title, run in runs.items():
        try:
            loaded[title] = load(Path(run.path).parent)
        except (CdepError, OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
            message = str(error).partition("\n")[0]
            problems.append(f"{dataset}: {title} is not among the pictures: {message}")
    if not loaded:
        raise ConfigError("none of its nets can be loaded")
    _, bunch = next(iter(loaded.values()))
    models = {title: model for title, (model, _) in loaded.items()}
    draw = pictures if bunch.vocabulary is None else sentences
    commands = [run.command for run in runs.values()]
    return {"dataset": dataset, "commands": commands, **draw(models, bunch, count)}


def pictures(models: dict[str, nn.Module], bunch: Bunch, count: int) -> dict[str, Any]:
    """Test images, those with a mask first: columns of pictures as data URIs, with captions."""
    import torch

    from cdep_run.evidence.explainers import sensitivity

    split = bunch.splits["test"]
    labels = split.labels.tolist()
    order = sorted(range(len(labels)), key=lambda i: (labels[:i].count(labels[i]), labels[i]))
    if bunch.display is None:
        raise ValueError("its examples are no images")
    index = torch.tensor(order[: LOOKED_AT * count])
    groups = split.batch(index).groups
    if groups is not None and groups.annotated is not None:
        index = index[(~groups.annotated).int().argsort(stable=True)]
    batch = split.batch(index[:count])
    images = bunch.display(batch.inputs)
    truth = batch.labels.tolist()
    rows: list[list[dict[str, str]]] = [
        [{"src": picture(image), "caption": f"class {label}"}]
        for image, label in zip(images, truth, strict=True)
    ]
    columns = ["image"]
    if batch.groups is not None:
        columns.append("must not matter")
        mask = batch.groups.mask.any(1).any(1).expand(len(images), *images.shape[-2:])
        for row, one in zip(rows, mask, strict=True):
            row.append({"src": picture(one[None].float()), "caption": ""})
    for title, model in models.items():
        columns.append(title)
        with torch.no_grad():
            says = model(batch.inputs).argmax(1)
        heat = colour(sensitivity(model, batch.inputs, says))
        for row, one, said, label in zip(rows, heat, says.tolist(), truth, strict=True):
            caption = f"says {said}" + ("" if said == label else f", is {label}")
            row.append({"src": picture(one), "caption": caption})
    return {"columns": columns, "rows": rows}


def sentences(models: dict[str, nn.Module], bunch: Bunch, count: int) -> dict[str, Any]:
    """Training sentences with the word that must not matter, then test sentences, word by word."""
    from cdep_run.evidence.words import read
    from cdep_run.evidence.words_page import CLASSES

    found = []
    for name, several in (("train", count - count // 2), ("test", count // 2)):
        split = bunch.splits[name]
        places = range(0, len(split), max(1, len(split) // max(several, 1)))
        for place in list(places)[:several]:
            tokens, masked, label = sentence(split, place)
            readings = [read(model, tokens, {}) for model in models.values()]
            found.append(
                {
                    "split": name,
                    "truth": CLASSES[label],
                    "words": [bunch.vocabulary[i] for i in tokens],  # type: ignore[index]
                    "masked": masked,
                    "scores": [[round(score, 3) for score in one.words] for one in readings],
                    "positive": [round(one.probability, 3) for one in readings],
                }
            )
    return {"columns": list(models), "sentences": found}


def sentence(split: TensorSplit, place: int) -> tuple[list[int], list[bool], int]:
    """Token ids of a sentence without padding, which of them must not matter, and its label."""
    import torch

    batch = split.batch(torch.tensor([place]))
    there = batch.inputs[0] != 0
    mask = torch.zeros_like(there) if batch.groups is None else batch.groups.mask[0].any(0)
    tokens = batch.inputs[0][there].tolist()
    return tokens, mask.expand_as(there)[there].tolist(), int(batch.labels[0])


def colour(heat: Any) -> Any:
    """`[N, H, W]` in [0, 1] to `[N, 3, H, W]`, from dark to bright (matplotlib's magma)."""
    import torch
    from matplotlib import colormaps

    return torch.from_numpy(colormaps["magma"](heat.numpy())[..., :3]).permute(0, 3, 1, 2)


def picture(image: Any) -> str:
    """`[1 or 3, H, W]` in [0, 1] as a data URI of at most `LARGEST` pixels a side."""
    from PIL import Image

    grey = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    drawn = Image.fromarray(grey[..., 0] if grey.shape[-1] == 1 else grey)
    small = max(drawn.size) <= LARGEST
    drawn.thumbnail((LARGEST, LARGEST))
    file = io.BytesIO()
    drawn.save(file, "WEBP", lossless=small and max(drawn.size) <= 64, quality=80)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
