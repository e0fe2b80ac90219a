"""What keeping the features of a frozen trunk costs: time of the sticker's part, steps, memory.

    python benchmarks/isic_cache.py relevant --model efficientnet_lite0
    python benchmarks/isic_cache.py step --model vgg16
    python benchmarks/isic_cache.py memory --model vgg16 --count 32
    python benchmarks/isic_cache.py memory --model wide --count 4000

Images and weights are random. `relevant`: processor time of CD through the trunk, less that of the
plain features, which come with it, as a ratio to the latter; a sticker in a corner, one image at a
time. `step`: a training step of the head from features, CDEP to none, a fifth of the images with a
sticker. `memory`: highest resident memory after each quarter of so many images, all of them the
same picture under different names; "wide" makes as many features as VGG16 does at no cost.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from PIL import Image
from step import seconds, trainer
from torch import nn

from cdep_run.batch import Batch, Groups
from cdep_run.cd import decompose
from cdep_run.datasets.isic import ImageSplit
from cdep_run.features import Cache
from cdep_run.models.frozen import FrozenTrunk, frozen_trunk
from cdep_run.penalties.cdep import CDEP
from cdep_run.penalties.none import NoPenalty
from cdep_run.rows import Rows

RULES = {"relu": "symmetric"}


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
        for rule in ("symmetric", "asymmetric"):
            ratios = []
            for _ in range(rounds + 1):
                plain = clock(lambda: trunk(image))
                both = clock(lambda: decompose(trunk, image, mask, rules={"relu": rule}))  # noqa: B023
                ratios.append(both / plain - 1)
            ratio = statistics.median(ratios[1:])  # the first one warms up
            print(f"{name}, sticker on {share:.0%} of the image, {rule}: {ratio:.2f}", flush=True)


def step(name: str, size: int, rounds: int) -> None:
    """Print the time of a step from features, batch 32, SGD with momentum."""
    model = built(name, size)
    there = torch.arange(32) % 5 == 0
    part = torch.rand(32, 1, model.features) * there[:, None, None]
    groups = Groups(there[:, None, None], annotated=there, relevant=part)
    batch = Batch(torch.rand(32, model.features), torch.arange(32) % 2, groups)
    runs = [trainer(model, penalty) for penalty in (NoPenalty(), CDEP("centred", "symmetric"))]
    optimizer = torch.optim.SGD(model.head.parameters(), 1e-6, momentum=0.9)
    for run in runs:
        run.optimizer = optimizer
    times = [[seconds(run, batch, 1) for run in runs] for _ in range(rounds + 3)][3:]
    none, cdep = (1000 * statistics.median(pair[k] for pair in times) for k in (0, 1))
    ratio = statistics.median(pair[1] / pair[0] for pair in times)
    print(f"{name}: none {none:.1f} ms/step, CDEP {cdep:.1f}, ratio {ratio:.2f}")


def memory(name: str, size: int, count: int) -> None:
    """Print the highest resident memory while features of so many images are computed."""
    model = built(name, size)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        Image.effect_noise((size, size), 50).convert("RGB").save(folder / "image.jpg")
        mask = Image.new("1", (size, size))
        mask.paste(1, (0, 0, size // 3, size // 3))
        mask.save(folder / "mask.png")
        rows = [
            {
                "isic_id": f"ISIC_{n:07d}",
                "path": folder / "image.jpg",
                "mask_path": None if n % 2 else folder / "mask.png",
                "image_key": f"{n:064d}",
                "mask_key": "" if n % 2 else f"{n:064d}",
                "label": n % 2,
            }
            for n in range(count)
        ]
        files = (Rows(folder / part, model.features, write=True) for part in ("all", "relevant"))
        cache = Cache(model, RULES, "float32", *files)
        for quarter in range(1, 5):
            cache.complete([ImageSplit(pd.DataFrame(rows[: quarter * count // 4]), size)])
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
            print(f"{name}, {quarter * count // 4} images: {peak:.2f} GB", flush=True)


def main() -> None:
    """Measure one of the three."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["relevant", "step", "memory"])
    parser.add_argument("--model", default="efficientnet_lite0", help="vgg16, or another")
    parser.add_argument("--size", type=int, default=299)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=1000, help="of images, for memory")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.what == "memory":
        memory(chosen.model, chosen.size, chosen.count)
    else:
        {"relevant": relevant, "step": step}[chosen.what](chosen.model, chosen.size, chosen.rounds)


if __name__ == "__main__":
    main()
