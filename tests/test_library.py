"""Engine and penalties in anybody's own code: the documented examples, DDP, interactions."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cdep_run.batch import Batch, Groups
from cdep_run.cd import decompose, interaction
from cdep_run.penalties.cdep import CDEP

EXAMPLES = re.findall(
    r"## (.+?)\n.*?```python\n(.*?)```",
    (Path(__file__).parents[1] / "docs" / "library.md").read_text(),
    re.DOTALL,
)


@pytest.mark.parametrize(("title", "code"), EXAMPLES, ids=[title for title, _ in EXAMPLES])
def test_the_documented_example_runs(title, code):
    torch.manual_seed(0)
    exec(compile(code, f"docs/library.md: {title}", "exec"), {})


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(8, 6, generator=generator, dtype=torch.float64)
    mask = torch.zeros(1, 1, 6, dtype=torch.bool)
    mask[..., :2] = True
    return Batch(x, torch.arange(8) % 3, Groups(mask))


def gradients(model: nn.Module, part: Batch) -> list[torch.Tensor]:
    logits, value = CDEP()(model, part)
    (F.cross_entropy(logits, part.labels) + 10 * value).backward()
    return [parameter.grad for parameter in model.parameters()]


def one_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    whole = batch()
    half = slice(4 * rank, 4 * rank + 4)
    part = Batch(whole.inputs[half], whole.labels[half], whole.groups)
    torch.save(gradients(DistributedDataParallel(net()), part), f"{folder}/{rank}.pt")
    torch.distributed.barrier()  # neither leaves while the other still talks to it
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_processes_get_the_gradients_of_the_whole_batch(tmp_path):
    torch.multiprocessing.spawn(one_process, (str(tmp_path),), nprocs=2)
    expected = gradients(net(), batch())
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), expected)


def test_groups_of_a_linear_model_do_not_interact():
    model = nn.Linear(6, 3, bias=False).double()
    a, b = torch.zeros(2, 1, 6, dtype=torch.bool)
    a[:, 0], b[:, 4] = True, True
    torch.testing.assert_close(
        interaction(model, batch().inputs, a, b), torch.zeros(8, 3, dtype=torch.float64)
    )


def test_an_interaction_is_what_three_decompositions_say():
    model, x = net(), batch().inputs
    a, b = torch.zeros(2, 1, 2, 6, dtype=torch.bool)
    a[:, 0, 0], b[:, 0, 4], a[:, 1, 1:3], b[:, 1, 5] = True, True, True, True
    wanted = [decompose(model, x, mask).relevant for mask in (a | b, a, b)]
    ours = interaction(model, x, a, b)
    torch.testing.assert_close(ours, wanted[0] - wanted[1] - wanted[2])
    alone = interaction(model, x, a[:, 1], b[:, 1])
    torch.testing.assert_close(alone, ours[:, 1])
    ours.abs().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
