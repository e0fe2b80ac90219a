"""Steps and rules on devices that are not there: "meta", and "cuda" with fake tensors.

Their tensors hold no numbers. Whoever reads a number there, or lets a tensor of the CPU meet one of
the device, gets an error. So these tests find on any machine what would make a GPU wait or fail.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from cdep_run.batch import Batch
from cdep_run.cd import decompose
from steps import CASES, PENALTIES, first_batch, trainer
from test_rules import ACTIVATIONS, OPS, inputs, model_of


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", PENALTIES)
def test_a_step_reads_no_number_and_stays_on_the_device(name, case, monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())
    split, model = CASES[case].split().to("meta"), CASES[case].model().to("meta")
    run = trainer(model, PENALTIES[name])
    row = run.train_step(split.batch(first_batch(split)))
    assert row.is_meta and all(p.grad.is_meta for p in model.parameters() if p.grad is not None)


NO_KERNEL = {"empty", "empty_like", "empty_strided", "new_empty", "detach", "alias", "_unsafe_view"}


class Operations(TorchDispatchMode):
    """Counts the operations that start at least one kernel: neither views nor mere allocations."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = [returned.alias_info for returned in func._schema.returns]
        is_view = any(alias is not None and not alias.is_write for alias in results)
        self.count += not is_view and func._opname not in NO_KERNEL
        return func(*args, **(kwargs or {}))


MOST_OPERATIONS = {
    ("cnn, corners", "none"): 40,
    ("cnn, corners", "cdep symmetric"): 400,
    ("cnn, corners", "rrr paper"): 165,
    ("cnn, corners", "eg paper"): 220,
    ("resnet18", "none"): 185,
    ("resnet18", "cdep symmetric"): 2100,
}
"""Of a step's forward and backward pass. On a GPU a small net takes about as long as its operations
take to be started one by one, whatever they compute; fewer is better."""


@pytest.mark.parametrize(("case", "name"), MOST_OPERATIONS)
def test_a_step_starts_no_more_operations_than_it_did(
    case: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())
    split, model = CASES[case].split().to("meta"), CASES[case].model().to("meta")
    run, batch = trainer(model, PENALTIES[name]), split.batch(first_batch(split))
    monkeypatch.setattr(run.optimizer, "step", lambda: None)  # the same for every penalty
    run.train_step(batch)  # fills what the engine keeps from step to step
    with Operations() as operations:
        run.train_step(batch)
    assert operations.count <= MOST_OPERATIONS[case, name]


FAKE = FakeTensorMode()  # one for all tests: the engine keeps small tensors from step to step
FAKE_CASES = [case for case in CASES if case not in ("mlp", "lstm", "gru")]
"""Left out: what needs a driver (cuDNN's recurrent nets) or a number of the CPU (GELU at 0)."""


def on_fake_cuda(model: nn.Module, batch: Batch) -> Batch:
    """Move the model, in place, and a copy of the batch to the device."""

    def fake(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else FAKE.from_tensor(tensor).to("cuda:0")

    for module in model.modules():
        for name, weight in module._parameters.items():
            module._parameters[name] = None if weight is None else nn.Parameter(fake(weight))
        for name, buffer in module._buffers.items():
            module._buffers[name] = fake(buffer)
    groups = replace(
        batch.groups, mask=fake(batch.groups.mask), annotated=fake(batch.groups.annotated)
    )
    return Batch(fake(batch.inputs), fake(batch.labels), groups)


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests/test_gpu.py does it in earnest")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", FAKE_CASES)
@pytest.mark.parametrize("name", ["none", "cdep pair", "cdep centred"])
def test_logits_and_penalty_have_the_device_and_dtype_that_autocast_says(
    name: str, case: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda *_: True)
    split, model = CASES[case].split(), CASES[case].model()
    batch = split.batch(first_batch(split))
    with FAKE, torch.autocast("cuda", torch.bfloat16, enabled=dtype == torch.bfloat16):
        batch = on_fake_cuda(model, batch)
        logits, value = PENALTIES[name](model, batch)
    assert logits.device == value.device == torch.device("cuda:0")
    assert logits.dtype == dtype
    assert value.dtype in (dtype, torch.float32)


CONSTANTS_ON_THE_CPU = {"baddbmm", "keywords"}
"""The plain op takes them as they are; sharing them out as biases does not."""


def test_rules_read_no_number_and_stay_on_the_device():
    """Of every op whose plain forward does so, too."""
    x, mask = (t.to("meta") for t in inputs())
    tried, failed = 0, {}
    for name in [*OPS, *ACTIVATIONS]:
        model = model_of(name).to("meta")
        with contextlib.suppress(RuntimeError, NotImplementedError):
            model(x)
            tried += 1
            try:
                decompose(model, x, mask).relevant.sum().backward()
            except RuntimeError as error:
                failed[name] = str(error)
    assert failed.keys() == CONSTANTS_ON_THE_CPU, failed
    assert tried > 80
