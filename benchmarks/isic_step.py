"""Time and memory of a training step on photographs, a frozen trunk inside, under each penalty.

    python benchmarks/isic_step.py --model efficientnet_lite0 --batch 16

The trunk is frozen but its features are not kept, as RRR and EG need the images themselves. Images
and weights are random: time and memory do not depend on them. Variants alternate in one process;
the ratios are medians over rounds. EG by the published code takes 200 samples a step: `--samples`.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from step import kept_for_backward, seconds, trainer

from cdep_run.batch import Batch, Groups
from cdep_run.models.frozen import frozen_trunk
from cdep_run.penalties.cdep import CDEP
from cdep_run.penalties.eg import ExpectedGradients
from cdep_run.penalties.none import NoPenalty
from cdep_run.penalties.rrr import RRR


def photographs(count: int, size: int) -> Batch:
    """Random images with a patch in the corner of every second one."""
    mask = torch.zeros(count, 1, 1, size, size, dtype=torch.bool)
    mask[::2, ..., : size // 3, : size // 3] = True
    groups = Groups(mask, annotated=mask.flatten(1).any(1))
    return Batch(torch.rand(count, 3, size, size) * 2 - 1, torch.arange(count) % 2, groups)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="efficientnet_lite0", help="or vgg16")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=299)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=1, help="of EG")
    chosen = parser.parse_args()
    batch = photographs(chosen.batch, chosen.size)
    shape = tuple(batch.inputs.shape[1:])
    model = frozen_trunk(shape, 2, chosen.model, None, [0.5] * 3, [0.5] * 3)
    runs = {
        "none": trainer(model, NoPenalty()),
        "CDEP": trainer(model, CDEP("centred", {"relu": "symmetric"})),
        "RRR": trainer(model, RRR()),
        f"EG, {chosen.samples} samples": trainer(model, ExpectedGradients(chosen.samples)),
    }
    rounds = [
        {name: seconds(run, batch, 1) for name, run in runs.items()}
        for _ in range(chosen.rounds + 1)
    ][1:]  # the first one warms up
    memory = {name: kept_for_backward(run, batch) for name, run in runs.items()}
    threads = torch.get_num_threads()
    print(f"{chosen.model}, {chosen.batch} images of {chosen.size} pixels, {threads} threads")
    print(f"{'':16}{'s/step':>8}{'ratio':>7}{'MB kept for backward':>22}")
    for name in runs:
        time = statistics.median(r[name] for r in rounds)
        ratio = statistics.median(r[name] / r["none"] for r in rounds)
        print(f"{name:16}{time:8.2f}{ratio:7.1f}{memory[name] / 1e6:22.0f}")


if __name__ == "__main__":
    main()
