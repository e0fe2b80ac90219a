"""Pictures for the report: inputs, what must not matter, and where each trained net looks."""

from __future__ import annotations

import base64
import io
from collections import defaultdict
from pathlib import Path
from typing import Any

from cdep_run.errors import CdepError
from cdep_run.report.collect import Report, Run

LARGEST = 160  # pixels: larger pictures are made smaller


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
    for dataset in dict.fromkeys(run.dataset for run in report.runs):
        if dataset not in nets:
            report.problems.append(
                f"{dataset}: no pictures of where nets look, as its runs with the chosen λ have no "
                "checkpoints here (records alone hold no weights)"
            )
            continue
        try:
            report.examples.append(pictures(dataset, nets[dataset], count))
        except (CdepError, OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
            message = str(error).partition("\n")[0]
            report.problems.append(
                f"{dataset}: no pictures of where nets look: {type(error).__name__}: {message}"
            )


def pictures(dataset: str, runs: dict[str, Run], count: int) -> dict[str, Any]:
    """Columns of pictures as data URIs, each with a caption."""
    import torch

    from cdep_run.plots import sensitivity
    from cdep_run.train import load

    loaded = {title: load(Path(run.path).parent) for title, run in runs.items()}
    _, bunch = next(iter(loaded.values()))
    split = bunch.splits["test"]
    labels = split.labels.tolist()
    order = sorted(range(len(labels)), key=lambda i: (labels[:i].count(labels[i]), labels[i]))
    if bunch.display is None:
        raise ValueError("its examples are no images")
    batch = split.batch(torch.tensor(order[:count]))
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
    for title, (model, _) in loaded.items():
        columns.append(title)
        with torch.no_grad():
            says = model(batch.inputs).argmax(1)
        heat = colour(sensitivity(model, batch.inputs, says))
        for row, one, said, label in zip(rows, heat, says.tolist(), truth, strict=True):
            caption = f"says {said}" + ("" if said == label else f", is {label}")
            row.append({"src": picture(one), "caption": caption})
    commands = [run.command for run in runs.values()]
    return {"dataset": dataset, "columns": columns, "rows": rows, "commands": commands}


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
