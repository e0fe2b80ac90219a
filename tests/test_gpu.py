"""One step of each penalty on a GPU: it equals the CPU, keeps to its memory and never waits."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
import torch.nn.functional as F

from cdep_run.datasets.annotation import ConstantGroups, SampledPixels, corners
from cdep_run.datasets.base import TensorSplit
from cdep_run.models.cnn import MnistCNN
from cdep_run.penalties import eg
from cdep_run.penalties.cdep import CDEP
from cdep_run.penalties.eg import ExpectedGradients
from cdep_run.penalties.none import NoPenalty
from cdep_run.penalties.rrr import RRR
from cdep_run.training.loop import Trainer

DEVICE = "cuda"
pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device: torch.cuda.is_available() is False"
)

PENALTIES = {
    "none": NoPenalty(),
    "cdep pair": CDEP(),
    "cdep centred": CDEP("centred"),
    "cdep classwise": CDEP("classwise"),
    "rrr": RRR(),
    "eg": ExpectedGradients(),
}
DATA = ["corners", "pixels"]


def split(data: str, examples: int = 64) -> TensorSplit:
    """Random images in the shapes of DecoyMNIST or ColorMNIST, on the GPU, a dead patch in each."""
    torch.manual_seed(0)
    inputs = torch.randn(examples, 1 if data == "corners" else 3, 28, 28)
    inputs[..., 8:16, 8:16] = 0
    annotation = (
        ConstantGroups(corners(5, 28, 28))
        if data == "corners"
        else SampledPixels(torch.ones(28, 28), 8)
    )
    return TensorSplit(inputs, torch.randint(10, (examples,)), annotation).to(DEVICE)


def trainer(data: TensorSplit, penalty, autocast=contextlib.nullcontext) -> Trainer:
    """The loop around the paper's net, without the parts that a single step does not touch."""
    torch.manual_seed(1)
    model = MnistCNN(input_shape=tuple(data.inputs.shape[1:])).to(DEVICE)
    return Trainer(
        model,
        torch.optim.Adam(model.parameters()),
        penalty,
        strength=0.0 if isinstance(penalty, NoPenalty) else 1.0,
        bunch=None,
        training=None,
        seed=0,
        autocast=autocast,
        save=print,
        report=print,
        stop=bool,
    )


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("name", PENALTIES)
def test_a_step_never_waits_for_the_device(name, data):
    examples = split(data)
    run = trainer(examples, PENALTIES[name])
    index = torch.arange(32, device=DEVICE)
    run.train_step(examples.batch(index))  # the first step sets up cuDNN and Adam
    torch.cuda.set_sync_debug_mode("error")
    try:
        row = run.train_step(examples.batch(index))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert row.is_cuda and row.isfinite().all()


@pytest.mark.parametrize("name", PENALTIES)
def test_a_step_in_bfloat16_stays_finite(name):
    examples = split("corners")
    run = trainer(examples, PENALTIES[name], lambda: torch.autocast("cuda", torch.bfloat16))
    row = run.train_step(examples.batch(torch.arange(64, device=DEVICE)))
    assert row.isfinite().all()
    assert all(p.isfinite().all() for p in run.model.parameters())


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("name", PENALTIES)
def test_values_and_gradients_equal_those_of_the_cpu(name, data, monkeypatch):
    plain = eg.expected_gradients

    def same_references(model, inputs, labels, references, alpha):
        """Each device draws its own references; here they are the neighbour in the batch."""
        neighbours = inputs.roll(1, 0)[None].expand_as(references)
        return plain(model, inputs, labels, neighbours, torch.full_like(alpha, 0.3))

    monkeypatch.setattr(eg, "expected_gradients", same_references)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    examples = split(data)
    model = trainer(examples, PENALTIES[name]).model
    results = []
    for device in (DEVICE, "cpu"):
        torch.manual_seed(2)  # the pixels are drawn on the CPU, the same for both
        moved = examples.to(device)
        batch = moved.batch(torch.arange(32, device=device))
        net = copy.deepcopy(model).to(device)
        logits, value = PENALTIES[name](net, batch)
        (F.cross_entropy(logits, batch.labels) + value).backward()
        results.append([logits, value, *(p.grad for p in net.parameters())])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual.detach().cpu(), expected.detach(), rtol=1e-3, atol=1e-4)


def test_a_cdep_step_keeps_to_its_memory():
    examples = split("corners")
    batch = examples.batch(torch.arange(64, device=DEVICE))
    peak = {}
    for name in ("none", "cdep pair"):
        run = trainer(examples, PENALTIES[name])
        run.train_step(batch)  # Adam's moments and cuDNN's workspace are there from now on
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run.train_step(batch)
        peak[name] = torch.cuda.max_memory_allocated() - before
    assert peak["cdep pair"] <= 2.2 * peak["none"]
