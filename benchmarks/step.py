"""Time and memory of one training step under each penalty, as ratios to no penalty: `make bench`.

The variants alternate in one process and start every round from the same weights, so that a slow
moment of the machine hits all of them; reported is the median over rounds of the ratio within a
round, on a CPU of the processor time of one thread. Data are random: only shapes, masks and boxes
are those of DecoyMNIST and ColorMNIST.

The three-convolution way is contextual decomposition as the published code runs it: an ordinary
forward pass, and for each group and layer one pass of β, one of γ, and one of a zero input to read
the bias. It is written here from the formulas and shares no code with the package.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdep_run.batch import Batch, Box, Groups
from cdep_run.config.schemas import Training
from cdep_run.datasets.annotation import boxes_mask, corners
from cdep_run.models.cnn import MnistCNN
from cdep_run.penalties.cdep import CDEP
from cdep_run.penalties.eg import ExpectedGradients
from cdep_run.penalties.none import NoPenalty
from cdep_run.penalties.rrr import RRR
from cdep_run.training.device import keep_freed_memory
from cdep_run.training.loop import Trainer

# --- The three-convolution way -------------------------------------------------------------------


def three_passes(layer: nn.Module, relevant: Tensor, irrelevant: Tensor) -> tuple[Tensor, Tensor]:
    """β' = Wβ + b|Wβ| / (|Wβ| + |Wγ|), γ' the rest; where both are 0 the bias belongs to γ."""
    bias = layer(torch.zeros_like(relevant))
    relevant, irrelevant = layer(relevant) - bias, layer(irrelevant) - bias
    size = relevant.abs() + irrelevant.abs()
    share = bias * relevant.abs() / size.masked_fill(size == 0, 1)
    return relevant + share, irrelevant + (bias - share)


def relu(relevant: Tensor, irrelevant: Tensor) -> tuple[Tensor, Tensor]:
    part = F.relu(relevant)
    return part, F.relu(relevant + irrelevant) - part


def max_pool(relevant: Tensor, irrelevant: Tensor) -> tuple[Tensor, Tensor]:
    """Both parts at the positions that the total chooses."""
    _, index = F.max_pool2d(relevant + irrelevant, 2, return_indices=True)
    flat = index.flatten(2)
    return (
        relevant.flatten(2).gather(2, flat).view_as(index),
        irrelevant.flatten(2).gather(2, flat).view_as(index),
    )


def three_convolutions(model: MnistCNN, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits and the CDEP penalty in its pair form, group by group."""
    logits = model(batch.inputs)
    value = logits.new_zeros(())
    for mask in batch.groups.mask.unbind(1):
        relevant, irrelevant = batch.inputs * mask, batch.inputs * ~mask
        for convolution in (model.conv1, model.conv2):
            relevant, irrelevant = three_passes(convolution, relevant, irrelevant)
            relevant, irrelevant = relu(*max_pool(relevant, irrelevant))
        relevant, irrelevant = relevant.flatten(1), irrelevant.flatten(1)
        relevant, irrelevant = relu(*three_passes(model.fc1, relevant, irrelevant))
        relevant, irrelevant = three_passes(model.fc2, relevant, irrelevant)
        value = value + torch.stack((relevant, irrelevant), -1).softmax(-1)[..., 0].mean()
    return logits, value


# --- What is measured ----------------------------------------------------------------------------

NONE, THREE = "none", "three convolutions"
CDEP_STEP, PAIR = "CDEP", "CDEP, published form"
PENALTIES: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    NONE: NoPenalty(),
    CDEP_STEP: CDEP("centred", {"relu": "symmetric"}),  # as the DecoyMNIST experiment is configured
    PAIR: CDEP(),
    "RRR": RRR(),
    "EG, 1 sample": ExpectedGradients(samples=1),
    THREE: three_convolutions,
}


EVERY = 8
LAZY = {f"{name}, every {EVERY}th": name for name in (CDEP_STEP, "RRR", "EG, 1 sample")}
"""Penalties paid at every 8th step alone, `penalty.every=8`; the mean step of 8 is timed."""


@dataclass(frozen=True)
class Workload:
    """Shapes and groups of one experiment, and the ratios that a step must keep to.

    Attributes:
        steps: steps of one variant in one round.
        slower: highest step time as a ratio to none, by variant.
        faster: how many times faster than the three-convolution way CDEP must be, at least.
        memory: highest memory of a CDEP step as a ratio to none.
    """

    name: str
    batch_size: int
    channels: int
    groups: Groups
    steps: int
    slower: dict[str, float]
    faster: float
    memory: float | None = None


def pixels(count: int) -> Groups:
    """`count` groups of one pixel each where digits are, as ColorMNIST draws them."""
    generator = torch.Generator().manual_seed(0)
    places = torch.randint(6, 22, (count, 2), generator=generator).tolist()
    boxes: tuple[tuple[Box, ...], ...] = tuple(((r, r + 1, c, c + 1),) for r, c in places)
    return Groups(boxes_mask(boxes, 28, 28), boxes)


WORKLOADS = [
    Workload(
        name="DecoyMNIST, batch 64, four corners",
        batch_size=64,
        channels=1,
        groups=corners(5, 28, 28),
        steps=4,
        slower={
            **{CDEP_STEP: 1.6, PAIR: 1.6, "RRR": 2.1, "EG, 1 sample": 3.0},
            **dict(zip(LAZY, (1.15, 1.2, 1.3), strict=True)),
        },
        faster=3.0,
        memory=2.2,
    ),
    Workload(
        name="ColorMNIST, batch 256, 8 pixels",
        batch_size=256,
        channels=3,
        groups=pixels(8),
        steps=1,
        slower={},
        faster=8.0,
    ),
]


def trainer(
    model: nn.Module, penalty: Callable[..., Any], fused: bool = False, every: int = 1
) -> Trainer:
    """The loop around one variant; only its `train_step` is used."""
    adam = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-3, fused=fused)
    return Trainer(
        model,
        adam,
        penalty,
        strength=float(not isinstance(penalty, NoPenalty)),
        bunch=None,  # type: ignore[arg-type]
        training=Training(label_smoothing=0.0, clip_norm=None),
        seed=0,
        autocast=contextlib.nullcontext,
        save=print,
        report=print,
        stop=bool,
        every=every,
    )


def seconds(run: Trainer, batch: Batch, steps: int) -> float:
    """Time of a training step: on a GPU until they are finished, on a CPU processor time.

    The mean over `steps` of them, or over as many as lie from one penalty to the next.
    """
    steps = max(steps, run.every)
    wait = torch.cuda.synchronize if batch.inputs.is_cuda else lambda: None
    clock = time.perf_counter if batch.inputs.is_cuda else time.process_time
    wait()
    start = clock()
    for step in range(steps):
        run.train_step(batch, penalised=step % run.every == 0)
    wait()
    return (clock() - start) / steps


def step_times(
    runs: dict[str, Trainer], batch: Batch, steps: int, budget: float
) -> list[dict[str, float]]:
    """Seconds a step of each variant, for each of the rounds that fit into `budget` seconds."""
    start = {name: value.clone() for name, value in runs[NONE].model.state_dict().items()}
    rounds: list[dict[str, float]] = []
    deadline = time.perf_counter() + budget
    while len(rounds) < 3 or time.perf_counter() < deadline:
        for run in runs.values():
            run.model.load_state_dict(start)
        rounds.append({name: seconds(run, batch, steps) for name, run in runs.items()})
    return rounds[1:]  # the first one warms up


def kept_for_backward(run: Trainer, batch: Batch) -> int:
    """Memory of one step, in bytes.

    On a GPU the highest allocation above what is there before. On a CPU the distinct storages that
    autograd keeps for the backward pass, parameters left out.
    """
    if batch.inputs.is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run.train_step(batch)
        return torch.cuda.max_memory_allocated() - before
    parameters = {p.untyped_storage().data_ptr() for p in run.model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}  # held, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run.train_step(batch)
    return sum(storage.nbytes() for storage in kept.values())


# --- The table -----------------------------------------------------------------------------------


def verdict(value: float, limit: float, at_most: bool = True) -> tuple[str, bool]:
    passed = value <= limit if at_most else value >= limit
    return f"{'≤' if at_most else '≥'} {limit:g}: {'pass' if passed else 'FAIL'}", passed


def measure(workload: Workload, device: str, budget: float) -> bool:
    """Measure and print one workload; whether it keeps to all its targets."""
    torch.manual_seed(0)
    groups = Groups(workload.groups.mask.to(device), workload.groups.boxes)
    inputs = torch.randn(workload.batch_size, workload.channels, 28, 28, device=device)
    batch = Batch(inputs, torch.randint(10, (workload.batch_size,), device=device), groups)
    model = MnistCNN(input_shape=(workload.channels, 28, 28)).to(device)
    weights = model.state_dict()

    runs = {}
    for name, penalty in PENALTIES.items():
        copy = MnistCNN(input_shape=(workload.channels, 28, 28)).to(device)
        copy.load_state_dict(weights)
        runs[name] = trainer(copy, penalty)
    for name, of in LAZY.items():
        copy = MnistCNN(input_shape=(workload.channels, 28, 28)).to(device)
        copy.load_state_dict(weights)
        runs[name] = trainer(copy, PENALTIES[of], every=EVERY)
    mine, published = CDEP()(model, batch)[1], three_convolutions(model, batch)[1]
    torch.testing.assert_close(mine, published, rtol=1e-4, atol=1e-4)

    rounds = step_times(runs, batch, workload.steps, budget)
    memory = {name: kept_for_backward(run, batch) for name, run in runs.items()}

    def ratio(name: str, to: str) -> float:
        return statistics.median(r[name] / r[to] for r in rounds)

    kind = "peak" if inputs.is_cuda else "kept for backward"
    print(f"\n{workload.name}; {device}, {torch.get_num_threads()} threads, {len(rounds)} rounds")
    print(f"{'':24}{'ms/step':>9}{'ratio':>8}  {'target':14}{'MB ' + kind:>21}{'ratio':>8}")
    results = []
    for name in runs:
        time_target = memory_target = ""
        if name in workload.slower:
            time_target, passed = verdict(ratio(name, NONE), workload.slower[name])
            results.append(passed)
        if name == CDEP_STEP and workload.memory:
            memory_target, passed = verdict(memory[name] / memory[NONE], workload.memory)
            results.append(passed)
        milliseconds = 1000 * statistics.median(r[name] for r in rounds)
        print(
            f"{name:24}{milliseconds:9.1f}{ratio(name, NONE):8.2f}  {time_target:14}"
            f"{memory[name] / 1e6:21.1f}{memory[name] / memory[NONE]:8.2f}  {memory_target}"
        )
    for name in (CDEP_STEP, PAIR):
        times_faster = ratio(THREE, name)
        target, passed = verdict(times_faster, workload.faster, at_most=False)
        results.append(passed)
        print(f"{name} is {times_faster:.1f} times faster than three convolutions, {target}")
    return all(results)


def main(arguments: Iterable[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=30, help="time for each of two workloads")
    chosen = parser.parse_args(arguments)
    if chosen.device == "cpu":
        torch.set_num_threads(1)
        keep_freed_memory()  # as in a run
    passed = [measure(workload, chosen.device, chosen.seconds) for workload in WORKLOADS]
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
