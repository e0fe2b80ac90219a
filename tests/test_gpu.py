"""Steps of every penalty and model on a GPU: equal to the CPU's, within their memory, no waiting.

`make test-gpu` runs them; without a GPU they are skipped. What needs no numbers is tested on any
machine by test_devices.py.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdep_run.batch import Batch
from cdep_run.datasets.annotation import ConstantGroups, corners
from cdep_run.datasets.base import TensorSplit
from cdep_run.models.cnn import MnistCNN
from cdep_run.penalties import eg
from cdep_run.penalties.eg import ExpectedGradients
from cdep_run.penalties.none import NoPenalty
from cdep_run.penalties.rrr import RRR
from cdep_run.training.device import prepare
from cdep_run.training.signals import Interrupted
from running import run
from steps import CASES, PENALTIES, first_batch, trainer
from test_checkpoint import EXACT, interrupt_at, outcome

DEVICE = "cuda"
pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device: torch.cuda.is_available() is False"
)

PRECISIONS = ["float32", "bf16"]
TOLERANCE = {"float32": 1e-3, "bf16": 0.05}
"""Of logits, penalty and gradient, each as one vector: the error relative to float64's norm."""
TIMES_AS_WRONG = 3
"""How many times the error of the CPU in the same precision is accepted beyond that: gradients of
CD through a deep net, or in bfloat16, depend on roundings."""


def autocast(precision: str, device: str = DEVICE) -> Callable[[], Any]:
    """The context of a forward pass, as a run makes it."""
    return lambda: torch.autocast(device, torch.bfloat16, enabled=precision == "bf16")


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """No TF32, and EG with the same references everywhere: each device draws its own."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    plain = eg.expected_gradients

    def with_fixed_draws(model, inputs, labels, references, alpha):
        neighbours = inputs.roll(1, 0)[None].expand_as(references)
        return plain(model, inputs, labels, neighbours, torch.full_like(alpha, 0.3))

    monkeypatch.setattr(eg, "expected_gradients", with_fixed_draws)


def results(
    name: str, model: nn.Module, batch: Batch, context: AbstractContextManager
) -> dict[str, Tensor]:
    """Logits, penalty and the gradient of the loss, as one vector, in float64 on the CPU."""
    with context:
        logits, value = PENALTIES[name](model, batch)
    at_least_single = torch.promote_types(logits.dtype, torch.float32)
    loss = F.cross_entropy(logits.to(at_least_single), batch.labels)
    (loss + value).backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    found = {"logits": logits, "value": value, "gradient": gradient}
    return {key: tensor.detach().cpu().double() for key, tensor in found.items()}


def in_dtype(batch: Batch, dtype: torch.dtype) -> Batch:
    """The batch with its inputs in another precision; token ids stay as they are."""
    inputs = batch.inputs.to(dtype) if batch.inputs.is_floating_point() else batch.inputs
    return Batch(inputs, batch.labels, batch.groups)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """‖actual − expected‖ / ‖expected‖; absolute where that is near 0; NaN where either is."""
    return ((actual - expected).norm() / expected.norm().clamp(min=1e-6)).item()


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", PENALTIES)
def test_values_and_gradients_equal_those_of_the_cpu(
    name: str, case: str, precision: str, record_property: Callable[[str, object], None]
) -> None:
    torch.manual_seed(0)
    split, model = CASES[case].split(), CASES[case].model()

    def on(device: str, dtype: torch.dtype, precision: str) -> dict[str, Tensor]:
        torch.manual_seed(2)  # pixels are drawn on the CPU, the same for all
        moved = split.to(device)
        batch, net = moved.batch(first_batch(moved)), copy.deepcopy(model).to(device, dtype)
        return results(name, net, in_dtype(batch, dtype), autocast(precision, device)())

    exact = on("cpu", torch.float64, "float32")
    expected, actual = (on(device, torch.float32, precision) for device in ("cpu", DEVICE))
    for key in exact:
        own, theirs = (relative_error(got[key], exact[key]) for got in (actual, expected))
        record_property(key, (own, theirs))
        assert own <= TOLERANCE[precision] + TIMES_AS_WRONG * theirs, (key, own, theirs)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", PENALTIES)
def test_a_step_never_waits_for_the_device(name: str, case: str, precision: str) -> None:
    split, model = CASES[case].split().to(DEVICE), CASES[case].model().to(DEVICE)
    one, index = trainer(model, PENALTIES[name], autocast(precision)), first_batch(split)
    one.train_step(split.batch(index))  # the first step sets up cuDNN and Adam
    torch.cuda.set_sync_debug_mode("error")
    try:
        row = one.train_step(split.batch(index))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert row.is_cuda and row.isfinite().all()
    assert all(weights.isfinite().all() for weights in model.parameters())


def decoys() -> TensorSplit:
    """Images in the shape of DecoyMNIST's."""
    torch.manual_seed(0)
    inputs, labels = torch.randn(64, 1, 28, 28), torch.randint(10, (64,))
    return TensorSplit(inputs, labels, ConstantGroups(corners(5, 28, 28))).to(DEVICE)


STEPS = {
    "none": NoPenalty(),
    "cdep": PENALTIES["cdep symmetric"],
    "rrr": RRR(),
    "eg": ExpectedGradients(),
}
MEMORY = {"cdep": 2.2, "rrr": 2.6, "eg": 3.2}
"""Highest peak of a step as a ratio to that of an unpenalised one, for the paper's net. The paper's
own, on another card: 2.5 for CDEP, 1.7 for RRR; its EG drew 200 samples."""


def test_steps_keep_to_their_memory(record_property: Callable[[str, object], None]) -> None:
    split, peak = decoys(), {}
    batch = split.batch(torch.arange(64, device=DEVICE))
    for name, penalty in STEPS.items():
        one = trainer(MnistCNN().to(DEVICE), penalty)
        one.train_step(batch)  # Adam's moments and cuDNN's workspace are there from now on
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        one.train_step(batch)
        peak[name] = torch.cuda.max_memory_allocated() - before
    ratios = {name: peak[name] / peak["none"] for name in MEMORY}
    record_property("memory", ratios)
    assert all(ratio <= MEMORY[name] for name, ratio in ratios.items()), ratios


@pytest.fixture
def deterministic() -> Iterator[None]:
    """The algorithms of a run, and afterwards those of before."""
    prepare(DEVICE, None)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("penalty", ["none", "cdep", "rrr", "eg"])
def test_an_interrupted_run_ends_with_the_same_bits(
    penalty: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [*EXACT, f"penalty={penalty}", f"device={DEVICE}"]
    expected = outcome(tmp_path / "whole", run(tmp_path / "whole", *settings))
    with monkeypatch.context() as patch:
        interrupt_at(patch, 10)
        with pytest.raises(Interrupted):
            run(tmp_path / "cut", *settings)
    assert outcome(tmp_path / "cut", run(tmp_path / "cut", *settings, "resume=true")) == expected
