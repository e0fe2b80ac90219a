"""What keeping the features of a frozen trunk costs: time of the sticker's part, steps, memory.

    python benchmarks/isic_cache.py relevant --model efficientnet_lite0
    python benchmarks/isic_cache.py step --model vgg16
    python benchmarks/isic_cache.py memory --model vgg16 --count 32
    python benchmarks/isic_cache.py memory --model wide --count 4000

Images and weights are random. `relevant`: processor time of CD through the trunk, less that of the
plain features, which come with it, as a ratio to the latter; a sticker in a corner, one image at a
time. `step`: processor time of a training step of the head as the loop takes it, from files of
features, CDEP to none by the defaults of `dataset=isic`, a fifth of the images with a sticker.
`memory`: highest resident memory after each quarter of so many images, all of them the same picture
under different names; "wide" makes as many features as VGG16 does at no cost.
"""

from __future__ import annotations

import argparse
import math
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from PIL import Image
from step import trainer
from torch import nn

from cdep_run.cd import decompose
from cdep_run.datasets.base import Bunch
from cdep_run.datasets.isic import ImageSplit
from cdep_run.features.cache import Cache, FeatureSplit, pair_keys
from cdep_run.features.store import RowStore
from cdep_run.models.frozen import FrozenTrunk, frozen_trunk
from cdep_run.penalties.cdep import CDEP
from cdep_run.penalties.none import NoPenalty
from cdep_run.training.loop import Progress, Trainer
from cdep_run.training.pace import Pace

RULES = {"relu": "last"}


def built(name: str, size: int) -> FrozenTrunk:
    """The model with random weights; "wide": pooling and one convolution, 25,088 features."""
    if name != "wide":
        return frozen_trunk((3, size, size), 2, name, None, [0.5] * 3, [0.5] * 3)
    trunk = nn.Sequential(nn.AdaptiveAvgPool2d(7), nn.Conv2d(3, 512, 1), nn.Flatten(1))
    return FrozenTrunk(trunk, nn.Linear(25088, 2), (3, size, size))


def clock(function: Callable[[], object]) -> float:
    """Processor seconds of one call."""
    start = time.process_time()
    function()
    return time.process_time() - start


@torch.no_grad()
def relevant(name: str, size: int, rounds: int) -> None:
    """Print the ratio for stickers of several sizes and both rules for ReLU."""
    trunk, image = built(name, size).trunk, torch.rand(1, 3, size, size) * 2 - 1
    for share in (0.05, 0.1, 0.2):
        side = round(share**0.5 * size)
        mask = torch.zeros(1, 1, size, size, dtype=torch.bool)
        mask[..., :side, -side:] = True
        for rule in ("last", "symmetric", "asymmetric"):
            ratios = []
            for _ in range(rounds + 1):
                plain = clock(lambda: trunk(image))
                both = clock(lambda: decompose(trunk, image, mask, rules={"relu": rule}))  # noqa: B023
                ratios.append(both / plain - 1)
            ratio = statistics.median(ratios[1:])  # the first one warms up
            print(f"{name}, sticker on {share:.0%} of the image, {rule}: {ratio:.2f}", flush=True)


def step(name: str, size: int, rounds: int, count: int) -> None:
    """Print the processor time of a step, mean over epochs of `count` images that alternate."""
    model = built(name, size)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        split = ImageSplit(table(folder, count, 5), size)
        features, relevant, no_rows = (
            RowStore(folder / part, model.features, write=True)
            for part in ("all", "relevant", "none")
        )
        features.add(split.image_keys, torch.rand(count, model.features))
        keys = [key for key, there in zip(pair_keys(split), split.patched, strict=True) if there]
        relevant.add(keys, torch.rand(len(keys), model.features))
        runs = [
            head_trainer(model, NoPenalty(), FeatureSplit(split, features, no_rows)),
            head_trainer(
                model, CDEP("centred", {"relu": "last"}), FeatureSplit(split, features, relevant)
            ),
        ]
        times = [[clock(partial(epoch, run)) for run in runs] for _ in range(rounds + 1)][1:]
        bare = [[clock(partial(alone, run)) for run in runs] for _ in range(rounds + 1)][1:]
    steps = math.ceil(count / 32)
    none, cdep = (1000 / steps * statistics.median(pair[k] for pair in times) for k in (0, 1))
    ratio, inner = (statistics.median(p[1] / p[0] for p in pairs) for pairs in (times, bare))
    print(f"{name}: none {none:.2f} ms/step, CDEP {cdep:.2f}, ratio {ratio:.2f}")
    print(f"forward, backward and optimiser alone: ratio {inner:.2f}")


def alone(run: Trainer) -> None:
    """As many steps as an epoch has, on one batch that is there already."""
    split = run.bunch.splits["train"]
    batch = split.batch(torch.arange(32))
    for _ in range(math.ceil(len(split) / 32)):
        run.train_step(batch)


def head_trainer(model: FrozenTrunk, penalty: Any, split: FeatureSplit) -> Trainer:
    """The loop around one variant, batch 32, Adam, that writes nothing."""
    run = trainer(model, penalty)
    run.optimizer = torch.optim.Adam(model.head.parameters())
    run.bunch = Bunch("isic", {"train": split}, 2, (model.features,), "train", "")
    run.training = replace(
        run.training, batch_size=32, epochs=1, check_every=50, sampling="shuffle"
    )
    return run


def epoch(run: Trainer) -> None:
    """The first epoch, with the weights as they are."""
    run.progress = Progress()
    run.train_epoch(Pace(0, 0, checkpoint_seconds=300))


def table(folder: Path, count: int, every: int) -> pd.DataFrame:
    """So many images under names of their own, of which every `every`th has a sticker."""
    rows = [
        {
            "isic_id": f"ISIC_{n:07d}",
            "path": folder / "image.jpg",
            "mask_path": None if n % every else folder / "mask.png",
            "image_key": f"{n:064d}",
            "mask_key": "" if n % every else f"{n:064d}",
            "label": n % 2,
        }
        for n in range(count)
    ]
    return pd.DataFrame(rows)


def memory(name: str, size: int, count: int) -> None:
    """Print the highest resident memory while features of so many images are computed."""
    model = built(name, size)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        Image.effect_noise((size, size), 50).convert("RGB").save(folder / "image.jpg")
        mask = Image.new("1", (size, size))
        mask.paste(1, (0, 0, size // 3, size // 3))
        mask.save(folder / "mask.png")
        images = table(folder, count, 2)
        files = (
            RowStore(folder / part, model.features, write=True) for part in ("all", "relevant")
        )
        cache = Cache(model, RULES, "float32", *files)
        for quarter in range(1, 5):
            cache.complete([ImageSplit(images[: quarter * count // 4], size)])
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
            print(f"{name}, {quarter * count // 4} images: {peak:.2f} GB", flush=True)


def main() -> None:
    """Measure one of the three."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["relevant", "step", "memory"])
    parser.add_argument("--model", default="efficientnet_lite0", help="vgg16, or another")
    parser.add_argument("--size", type=int, default=299)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=512, help="of images, for memory and step")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.what == "memory":
        memory(chosen.model, chosen.size, chosen.count)
    elif chosen.what == "step":
        step(chosen.model, chosen.size, chosen.rounds, chosen.count)
    else:
        relevant(chosen.model, chosen.size, chosen.rounds)


if __name__ == "__main__":
    main()
