"""Cost of a training step under each penalty on a GPU, as a ratio to no penalty: `make bench-gpu`.

For nets of four sizes in float32 and in bfloat16 autocast: time, kernels launched and peak memory
of one step of the training loop. The variants alternate in one process; times are medians over
rounds, between CUDA events, so that a GPU that waits for Python counts as busy. "graph" is the same
step captured once as a CUDA graph and replayed with new inputs, which launches nothing one by one;
"compiled" is the model under torch.compile. "whole planes" is CDEP without the boxes around the
groups: fewer and larger kernels. Prints Markdown and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

import torch
import torchvision
from step import trainer
from torch import Tensor, nn

from cdep_run.batch import Batch, Groups
from cdep_run.datasets.annotation import corners
from cdep_run.models.cnn import MnistCNN
from cdep_run.models.lstm import RecurrentClassifier
from cdep_run.penalties.cdep import CDEP
from cdep_run.penalties.eg import ExpectedGradients
from cdep_run.penalties.none import NoPenalty
from cdep_run.penalties.rrr import RRR
from cdep_run.training.loop import Trainer

NONE, CDEP_STEP, WHOLE, GRAPH, COMPILED = "none", "CDEP", "CDEP, whole planes", "graph", "compiled"
PRECISIONS = {"float32": False, "bf16": True}
VOCABULARY, WORDS, WIDTH = 17_000, 20, 300


@dataclass(frozen=True)
class Workload:
    """A net, a batch and what is measured of them.

    Attributes:
        model, batch: make them, on the GPU.
        form: of CDEP.
        graphs: the variants of which a CUDA graph is tried.
        compiled: whether `torch.compile` is tried.
        goal: highest time of a CDEP step as a ratio to no penalty, in float32.
    """

    name: str
    model: Callable[[], nn.Module]
    batch: Callable[[], Batch]
    form: CDEP
    graphs: tuple[str, ...] = (NONE, CDEP_STEP)
    compiled: bool = False
    goal: float | None = None


def decoys() -> Batch:
    """64 images in the shape of DecoyMNIST's; the four corners must not matter."""
    groups = corners(5, 28, 28)
    groups = Groups(groups.mask.cuda(), groups.boxes)
    return Batch(torch.randn(64, 1, 28, 28).cuda(), torch.randint(10, (64,)).cuda(), groups)


def masked(count: int, size: int) -> Batch:
    """Images with a random dense mask each, half of the pixels."""
    mask = torch.rand(count, 1, 1, size, size) > 0.5
    inputs, labels = torch.randn(count, 3, size, size), torch.randint(10, (count,))
    return Batch(inputs.cuda(), labels.cuda(), Groups(mask.cuda()))


def sentences() -> Batch:
    """64 sentences of 20 words, one of which must not matter."""
    ids = torch.randint(1, VOCABULARY, (64, WORDS))
    mask = (torch.arange(WORDS) == torch.randint(WORDS, (64, 1)))[:, None]
    return Batch(ids.cuda(), torch.randint(2, (64,)).cuda(), Groups(mask.cuda()))


def lstm() -> nn.Module:
    """The paper's classifier of sentences, with 300 numbers a word."""
    return RecurrentClassifier((WORDS,), 2, torch.randn(VOCABULARY, WIDTH)).cuda()


def resnet(name: str) -> nn.Module:
    """A fresh net of torchvision for ten classes."""
    return torchvision.models.get_model(name, num_classes=10).cuda()


IMAGES, TEXT = CDEP("centred", "symmetric"), CDEP("text")
WORKLOADS = [
    Workload(
        "MnistCNN, 28 px, batch 64, four corners", lambda: MnistCNN().cuda(), decoys, IMAGES,
        graphs=(NONE, CDEP_STEP, WHOLE, "RRR", "EG"), compiled=True, goal=1.5,
    ),
    Workload("LSTM, 300 numbers a word, 20 words, batch 64", lstm, sentences, TEXT),
    Workload(
        "ResNet-18, 224 px, batch 32, dense masks", lambda: resnet("resnet18"),
        lambda: masked(32, 224), IMAGES,
    ),
    Workload(
        "ResNet-50, 224 px, batch 32, dense masks", lambda: resnet("resnet50"),
        lambda: masked(32, 224), IMAGES, goal=2.2,
    ),
]  # fmt: skip


@dataclass
class Measured:
    """One variant: its step, and what was found."""

    step: Callable[[], Tensor]
    kernels: int = 0
    busy: float = 0.0  # milliseconds of kernels in a step
    peak: int = 0  # bytes
    times: list[float] = field(default_factory=list)  # milliseconds a step
    note: str = ""


def run_of(workload: Workload, penalty: Any, bf16: bool, weights: dict[str, Tensor]) -> Trainer:
    """The loop around one variant, with the same initial weights as the others."""
    model = workload.model()
    model.load_state_dict(weights)
    run = trainer(model, penalty)
    run.autocast = lambda: torch.autocast("cuda", torch.bfloat16, enabled=bf16)
    return run


def graphed(run: Trainer, batch: Batch) -> Callable[[], Tensor]:
    """The run's step as a replayed graph; each call copies the batch in, as a new one would be."""
    run.optimizer = torch.optim.Adam(run.trained, lr=1e-3, weight_decay=1e-3, capturable=True)
    fixed = replace(batch, inputs=batch.inputs.clone(), labels=batch.labels.clone())
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run.train_step(fixed)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        row = run.train_step(fixed)

    def step() -> Tensor:
        fixed.inputs.copy_(batch.inputs)
        fixed.labels.copy_(batch.labels)
        graph.replay()
        return row

    return step


def largest_change_by_graph(workload: Workload, penalty: Any, bf16: bool) -> float:
    """Largest difference of a weight after 10 steps with and without a graph; 0: the same bits."""
    torch.manual_seed(3)
    weights, batch = workload.model().state_dict(), workload.batch()
    ends = []
    for with_graph in (False, True):
        run = run_of(workload, penalty, bf16, weights)
        run.optimizer = torch.optim.Adam(run.trained, lr=1e-3, weight_decay=1e-3, capturable=True)
        # Capturing takes three steps, on a batch that is the same for both.
        step = graphed(run, batch) if with_graph else lambda run=run: run.train_step(batch)
        for _ in range(7 if with_graph else 10):
            step()
        ends.append([weight.detach().clone() for weight in run.trained])
    return max((a - b).abs().max().item() for a, b in zip(*ends, strict=True))


def variants(workload: Workload, bf16: bool) -> Iterator[tuple[str, Callable[[], Measured]]]:
    """Names of the variants and what makes each ready."""
    weights, batch = workload.model().state_dict(), workload.batch()
    penalties = {
        NONE: NoPenalty(), CDEP_STEP: workload.form, "RRR": RRR(), "EG": ExpectedGradients()
    }  # fmt: skip
    batches = dict.fromkeys(penalties, batch)
    if batch.groups is not None and batch.groups.boxes is not None:
        penalties[WHOLE] = workload.form
        batches[WHOLE] = replace(batch, groups=replace(batch.groups, boxes=None))

    def plain(name: str) -> Measured:
        run = run_of(workload, penalties[name], bf16, weights)
        return Measured(lambda: run.train_step(batches[name]))

    def as_graph(name: str) -> Measured:
        run = run_of(workload, penalties[name], bf16, weights)
        change = largest_change_by_graph(workload, penalties[name], bf16)
        note = "same bits" if change == 0 else f"weights differ by {change:.1g} after 10 steps"
        return Measured(graphed(run, batches[name]), note="" if name == "EG" else note)

    def compiled() -> Measured:
        run = run_of(workload, penalties[NONE], bf16, weights)
        run.model.compile()
        return Measured(lambda: run.train_step(batch))

    for name in penalties:
        yield name, lambda name=name: plain(name)
    for name in workload.graphs:
        yield f"{name}, {GRAPH}", lambda name=name: as_graph(name)
    if workload.compiled:
        yield f"{NONE}, {COMPILED}", compiled


def look_at(one: Measured) -> None:
    """Count the kernels of a step, and its peak of memory above what was there before."""
    for _ in range(3):
        one.step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    one.step()
    torch.cuda.synchronize()
    one.peak = torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        one.step()
        torch.cuda.synchronize()
    kernels = [
        event
        for event in profile.profiler.kineto_results.events()
        if event.device_type() == torch.autograd.DeviceType.CUDA
        and not event.is_user_annotation()
        and not event.name().startswith(("Memcpy", "Memset"))
    ]
    one.kernels = len(kernels)
    one.busy = sum(kernel.duration_ns() for kernel in kernels) / 1e6


def milliseconds(step: Callable[[], Tensor], steps: int) -> float:
    """Time of one step, of `steps` in a row."""
    torch.cuda.synchronize()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(steps):
        step()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / steps


def measure(workload: Workload, bf16: bool, seconds: float) -> dict[str, Measured | str]:
    """Every variant of one workload in one precision; a string says why one failed."""
    torch.manual_seed(0)
    found: dict[str, Measured | str] = {}
    for name, make in variants(workload, bf16):
        try:
            one = make()
            look_at(one)
            found[name] = one
        except Exception as error:  # the others are still worth their numbers
            found[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:150]}"
    ready = {name: one for name, one in found.items() if isinstance(one, Measured)}
    steps = {name: max(1, round(20 / milliseconds(one.step, 3))) for name, one in ready.items()}
    rounds = max(5, min(40, round(1000 * seconds / (20 * len(ready)))))
    for _ in range(rounds):
        for name, one in ready.items():
            one.times.append(milliseconds(one.step, steps[name]))
    return found


def as_row(one: Measured, none: Measured) -> dict[str, Any]:
    """The numbers of one variant; ratios are medians over rounds of what alternated."""
    ratio = statistics.median(a / b for a, b in zip(one.times, none.times, strict=True))
    return {
        "milliseconds": statistics.median(one.times),
        "time_ratio": ratio,
        "kernels": one.kernels,
        "kernel_milliseconds": one.busy,
        "peak_bytes": one.peak,
        "peak_ratio": one.peak / none.peak if none.peak else None,
        "note": one.note,
    }


def table(rows: dict[str, dict[str, Any] | str]) -> str:
    """Rows as a Markdown table; memory of graphs is left out, as it lies in a pool of their own."""
    lines = [
        "| step | ms | ratio to none | kernels | ms in kernels | peak MB | ratio | |",
        "|---|--:|--:|--:|--:|--:|--:|---|",
    ]
    for name, row in rows.items():
        if isinstance(row, str):
            lines.append(f"| {name} | | | | | | | {row} |")
            continue
        memory = f"{row['peak_bytes'] / 1e6:.0f} | {row['peak_ratio']:.2f}"
        lines.append(
            f"| {name} | {row['milliseconds']:.2f} | {row['time_ratio']:.2f} | {row['kernels']} | "
            f"{row['kernel_milliseconds']:.2f} | {' | ' if GRAPH in name else memory} | "
            f"{row['note']} |"
        )
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """What the numbers belong to."""
    return {
        "card": torch.cuda.get_device_name(),
        "date": date.today().isoformat(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "python": platform.python_version(),
        "tf32": {
            "convolutions": torch.backends.cudnn.allow_tf32,
            "matrix products": torch.backends.cuda.matmul.allow_tf32,
        },
        "command": "make bench-gpu",
    }


def main(arguments: Iterable[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=4, help="time for each net and precision")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--only", default="", help="nets whose name holds this")
    chosen = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("bench-gpu needs a CUDA device: torch.cuda.is_available() is False")
        return 1
    facts, results, passed = machine(), {}, True
    card = facts["card"].replace(" ", "_").replace("/", "_")
    print(f"{facts['card']}, {facts['date']}, torch {facts['torch']}; `make bench-gpu`")
    for workload in WORKLOADS:
        for precision, bf16 in PRECISIONS.items():
            if chosen.only not in workload.name:
                continue
            found = measure(workload, bf16, chosen.seconds)
            none = found[NONE]
            rows = {
                name: one if isinstance(one, str) else as_row(one, none)
                for name, one in found.items()
            }
            results[f"{workload.name}, {precision}"] = rows
            print(f"\n{workload.name}, {precision}\n\n{table(rows)}", flush=True)
            if workload.goal is not None and not bf16:
                ratio = rows[CDEP_STEP]["time_ratio"]
                kept = ratio <= workload.goal
                passed &= kept
                print(f"\nCDEP {ratio:.2f} ≤ {workload.goal:g}: {'pass' if kept else 'FAIL'}")
            chosen.out.mkdir(parents=True, exist_ok=True)
            text = json.dumps({"machine": facts, "results": results}, indent=1)
            (chosen.out / f"gpu_{card}.json").write_text(text + "\n")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
