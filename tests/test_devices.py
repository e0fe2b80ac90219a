"""Steps and rules on the device "meta", whose tensors hold no numbers.

Whoever reads a number there, or lets a tensor of the CPU meet one of the device, gets an error. So
these tests find on any machine what would make a GPU wait or fail.
"""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn

from cdep_run.cd import decompose
from cdep_run.config.schemas import Training
from cdep_run.datasets.annotation import ConstantGroups, SampledPixels, corners
from cdep_run.datasets.base import TensorSplit
from cdep_run.datasets.sentences import Sentences, TextSplit, TokenGroups
from cdep_run.models.cnn import MnistCNN
from cdep_run.models.lstm import RecurrentClassifier
from cdep_run.penalties.cdep import CDEP, FORMS
from cdep_run.penalties.eg import ExpectedGradients
from cdep_run.penalties.none import NoPenalty
from cdep_run.penalties.rrr import RRR
from cdep_run.training.loop import Trainer
from test_rules import ACTIVATIONS, OPS, inputs, model_of
from tiny_data import OwnMasks

PENALTIES = {
    "none": NoPenalty(),
    **{f"cdep {form}": CDEP(form) for form in FORMS},
    "cdep symmetric": CDEP("centred", "symmetric"),
    **{f"rrr {form}": RRR(form) for form in ("paper", "code")},
    **{f"eg {form}": ExpectedGradients(2, form) for form in ("paper", "code")},
}
EXAMPLES = 16


def image_split(channels: int, annotation) -> tuple[TensorSplit, nn.Module]:
    images = torch.randn(EXAMPLES, channels, 28, 28)
    split = TensorSplit(images, torch.zeros(EXAMPLES, dtype=torch.long), annotation)
    return split, MnistCNN((channels, 28, 28), hidden=8)


def sentences() -> tuple[TensorSplit, nn.Module]:
    ids = torch.randint(1, 20, (EXAMPLES, 7))
    phrases = Sentences(ids, torch.full((EXAMPLES,), 7), torch.zeros(EXAMPLES, dtype=torch.long))
    split = TextSplit(phrases, TokenGroups((torch.arange(7) == 1).expand(EXAMPLES, 7)))
    return split, RecurrentClassifier((7,), 2, torch.randn(20, 5), hidden=4)


DATA = {
    "corners": lambda: image_split(1, ConstantGroups(corners(5, 28, 28))),
    "pixels": lambda: image_split(3, SampledPixels(torch.ones(28, 28), 8)),
    "own masks": lambda: image_split(3, OwnMasks(torch.ones(EXAMPLES, 28, 28) > 0)),
    "words": sentences,
}


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("name", PENALTIES)
def test_a_step_reads_no_number_and_stays_on_the_device(name, data, monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())
    split, model = DATA[data]()
    split = split.to("meta")
    if isinstance(split.annotation, OwnMasks):
        split.annotation = OwnMasks(split.annotation.masks.to("meta"))
    model.to("meta")
    run = Trainer(
        model,
        torch.optim.Adam(model.parameters()),
        PENALTIES[name],
        strength=0.0 if name == "none" else 1.0,
        bunch=None,
        training=Training(label_smoothing=0.0, clip_norm=None),
        seed=0,
        autocast=contextlib.nullcontext,
        save=print,
        report=print,
        stop=bool,
    )
    index = torch.arange(8, device="cpu" if data == "words" else "meta")
    row = run.train_step(split.batch(index))
    assert row.is_meta and all(p.grad.is_meta for p in model.parameters())


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
