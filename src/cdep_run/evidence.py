"""Does it still look at the patch? Trained nets judged by explainers and by changing the image.

    python -m cdep_run.evidence RUN_NONE RUN_CDEP --out FOLDER

A penalty that is graded by its own explainer grades itself: Grad-CAM, the input gradient and what
becomes of the prediction when the patch goes or comes judge it here, beside CD. The folders hold
finished runs on images with masks, at any depth; runs that differ in the fold alone are one
setting, each run is judged on its own test images, and the first setting is what others are
compared with. FOLDER gets evidence.json, evidence.md, evidence.csv (every image) and evidence.png.
"""

from __future__ import annotations

import argparse
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from cdep_run import judges
from cdep_run.batch import Batch
from cdep_run.datasets.base import Bunch, TensorSplit
from cdep_run.errors import CdepError, ConfigError
from cdep_run.files import write_atomic, write_json
from cdep_run.metrics import CONFIDENCE
from cdep_run.plots import Column, draw
from cdep_run.pool import Setting, settings, table
from cdep_run.stickers import paste_sticker
from cdep_run.train import load

MEASURES = {
    "area": "patch's area",
    "cd_share": "CD share of the patch",
    "gradcam": "Grad-CAM inside it",
    "gradient": "gradient inside it",
    "painted_over": "log-odds, patch painted over",
    "pasted": "log-odds, sticker pasted",
    "pasted_relative": "… in standard deviations",
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
    """

    split: str = "test"
    limit: int | None = None
    avoid: Path | None = None
    seed: int = 0
    resamples: int = 1000
    relu: str = "symmetric"
    examples: int = 6


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


# --- Which images --------------------------------------------------------------------------------


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


def spread(places: list[int], limit: int | None) -> list[int]:
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


# --- What is measured ----------------------------------------------------------------------------


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
    shown = spread(chosen, options.examples)
    for names, batch in portions(split, chosen):
        with_patch(setting, model, bunch, names, batch, options, found)
        bar.update()
    for names, batch in portions(split, shown):
        picture(setting, model, bunch, names, batch, found)
    if why := no_pasting(bunch):
        found.left_out["pasted"] = found.left_out["pasted_relative"] = why
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
    return judges.log_odds(model(inputs), classes)


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
    painted = torch.stack(
        [judges.painted_over(image, where) for image, where in zip(inputs, mask, strict=True)]
    )
    classes = explained(bunch, labels)
    measured: dict[str, Callable[[], Tensor]] = {
        "area": lambda: mask.float().mean((1, 2)),
        "cd_share": lambda: judges.cd_share(
            judges.without_last_bias(model, bunch.num_classes), inputs, mask[:, None], options.relu
        ),
        "gradcam": lambda: judges.inside(judges.gradcam(model, inputs, labels), mask),
        "gradient": lambda: judges.inside(judges.gradient(model, inputs, labels), mask),
        "painted_over": lambda: odds(model, painted, classes) - odds(model, inputs, classes),
    }
    for measure, value in measured.items():
        try:
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
        heat = judges.gradcam(model, batch.inputs, batch.labels)
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


# --- Over all images -----------------------------------------------------------------------------


def summarise(found: Found, order: list[str], options: Options) -> dict[str, dict[str, Any]]:
    """Means over images by setting and measure, each compared with the first setting's.

    Returns:
        `images` (how many have a value), `mean` and `interval`; and, of the images that the first
        setting has, too, `ratio` of the means and `ratio_interval`.
    """
    frame = pd.DataFrame(found.rows, columns=["setting", "id", "measure", "value"])
    wide = {
        str(measure): rows.pivot(index="id", columns="setting", values="value")
        for measure, rows in frame.groupby("measure")
    }
    if "pasted" in wide:
        wide["pasted_relative"] = wide["pasted"] / wide.pop("before").std()
    summary: dict[str, dict[str, Any]] = {setting: {} for setting in order}
    for measure in (name for name in MEASURES if name in wide):
        for setting in (name for name in order if name in wide[measure]):
            own = wide[measure][setting].dropna().to_numpy()
            mean, interval = bootstrap_means(own[None], np.mean, options)
            one = {"images": len(own), "mean": mean, "interval": interval}
            if setting != order[0] and order[0] in wide[measure]:
                pair = wide[measure][[order[0], setting]].dropna().to_numpy().T
                one["ratio"], one["ratio_interval"] = bootstrap_means(pair, ratio, options)
            summary[setting][measure] = one
    return summary


def ratio(first: NDArray[Any], second: NDArray[Any], axis: int = -1) -> NDArray[Any]:
    """Mean of the second over mean of the first."""
    return second.mean(axis) / first.mean(axis)


def bootstrap_means(
    values: NDArray[np.float64], statistic: Callable[..., Any], options: Options
) -> tuple[float, list[float] | None]:
    """A statistic of `[K, images]` and its 95 % percentile interval; None with fewer than two."""
    from scipy.stats import bootstrap

    if values.shape[1] < 2:
        return float(statistic(*values, axis=-1)) if values.size else float("nan"), None
    ends = bootstrap(
        tuple(values),
        statistic,
        paired=True,
        vectorized=True,
        n_resamples=options.resamples,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(options.seed),
    ).confidence_interval
    return float(statistic(*values, axis=-1)), [float(ends.low), float(ends.high)]


def markdown(report: dict[str, Any]) -> str:
    """The means of every measure, and their ratio to the first setting's, as a Markdown table."""
    names = list(report["settings"])
    rows = [["mean over images", "images", *names]]
    ratios = [["ratio to the first", "", *names[1:]]]
    for measure, title in MEASURES.items():
        cells = [report["settings"][name]["measures"].get(measure) for name in names]
        if cells[0] is None:
            continue
        shown = [number(c and c["mean"], c and c["interval"]) for c in cells]
        rows.append([title, str(cells[0]["images"]), *shown])
        if measure != "area":
            shown = [number(c and c["ratio"], c and c["ratio_interval"]) for c in cells[1:]]
            ratios.append([title, str(cells[0]["images"]), *shown])
    lines = table(rows) + (["", *table(ratios)] if len(names) > 1 else [])
    notes = [f"Left out: {MEASURES[m]}: {why}." for m, why in report["left_out"].items()]
    return "\n".join([*lines, *([""] if notes else []), *notes]) + "\n"


def number(value: float | None, interval: list[float] | None) -> str:
    """As "0.85 [0.80, 0.89]"."""
    if value is None:
        return ""
    return f"{value:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def figure(found: Found, order: list[str], file: Path) -> None:
    """Image, patch and Grad-CAM of each setting, as Figure 3 of Rieger et al. 2019."""
    names = [n for n in found.images if all((setting, n) in found.pictures for setting in order)]
    if not names:
        return
    columns = [
        Column("image", np.stack([found.images[name][0] for name in names])),
        Column("patch", np.stack([found.images[name][1] for name in names])),
    ]
    for setting in order:
        pictures = [found.pictures[setting, name] for name in names]
        title = setting.replace(", ", "\n")
        columns.append(Column(title, np.stack([p for p, _ in pictures]), [c for _, c in pictures]))
    draw(columns, "Grad-CAM of the true class", file)


# --- The command ---------------------------------------------------------------------------------


def write(folders: list[Path], out: Path, options: Options) -> dict[str, Any]:
    """Judge the runs below `folders`, and write what came of it to `out`.

    Returns:
        What evidence.json holds.

    Raises:
        CdepError: no finished run, or one whose images cannot be judged.
    """
    chosen = settings(folders)
    out.mkdir(parents=True, exist_ok=True)
    order, found = [setting.name for setting in chosen], Found()
    with tqdm(desc="evidence", unit=" portions", disable=not sys.stderr.isatty()) as bar:
        for setting in chosen:
            for folder in setting.folders:
                judge(setting.name, folder, options, found, bar)
    report = {
        "split": options.split,
        "limit": options.limit,
        "seed": options.seed,
        "resamples": options.resamples,
        "relu": options.relu,
        "settings": described(chosen, summarise(found, order, options)),
        "left_out": found.left_out,
    }
    rows = pd.DataFrame(found.rows, columns=["setting", "id", "measure", "value"])
    write_atomic(out / "evidence.csv", rows.to_csv(index=False).encode())
    write_atomic(out / "evidence.md", markdown(report).encode())
    figure(found, order, out / "evidence.png")
    write_json(out / "evidence.json", report)
    return report


def described(chosen: list[Setting], summary: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The measures of each setting, with how many runs they come from and of which code."""
    return {
        one.name: {
            "runs": len(one.folders), "commits": one.commits, "measures": summary[one.name]
        }
        for one in chosen
    }  # fmt: skip


def main() -> None:
    """Judge finished runs and print the table."""
    standard = Options()
    parser = argparse.ArgumentParser(
        prog="python -m cdep_run.evidence", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("folders", type=Path, nargs="+", help="with finished runs, at any depth")
    parser.add_argument("--out", type=Path, required=True, help="folder for what is found")
    parser.add_argument("--split", default=standard.split, help="images to judge on (test)")
    parser.add_argument("--limit", type=int, help="at most so many images of each kind and run")
    parser.add_argument("--avoid", type=Path, help="masks <id>.png that stickers must not cover")
    parser.add_argument("--seed", type=int, default=standard.seed, help="of stickers and bootstrap")
    parser.add_argument("--resamples", type=int, default=standard.resamples, help="of bootstrap")
    parser.add_argument("--relu", default=standard.relu, choices=("symmetric", "asymmetric"))
    parser.add_argument("--examples", type=int, default=standard.examples, help="in the figure (6)")
    arguments = vars(parser.parse_args())
    folders, out = arguments.pop("folders"), arguments.pop("out")
    try:
        for name, least in {"limit": 1, "resamples": 1, "examples": 0, "seed": 0}.items():
            if arguments[name] is not None and arguments[name] < least:
                raise ConfigError(f"--{name} is {arguments[name]}; accepted: {least} or more")
        print(markdown(write(folders, out, Options(**arguments))), end="")
    except (CdepError, OSError) as error:
        sys.exit(f"cdep_run.evidence: error: {error}")


if __name__ == "__main__":
    main()
