"""Single training steps of every kind of model under every penalty, for the tests of devices."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer, resnet18

from cdep_run.config.schemas import Training
from cdep_run.datasets.annotation import ConstantGroups, SampledPixels, corners
from cdep_run.datasets.base import TensorSplit
from cdep_run.datasets.sentences import Sentences, TextSplit, TokenGroups
from cdep_run.models.cnn import MnistCNN
from cdep_run.models.lstm import RecurrentClassifier
from cdep_run.penalties.cdep import CDEP, MEASURES
from cdep_run.penalties.eg import ExpectedGradients
from cdep_run.penalties.none import NoPenalty
from cdep_run.penalties.rrr import RRR
from cdep_run.training.build import plain
from cdep_run.training.loop import Trainer
from running import composed
from tiny_data import OwnMasks

EXAMPLES, BATCH, WORDS = 16, 8, 7

PENALTIES = {
    "none": NoPenalty(),
    **{f"cdep {form}": CDEP(form) for form in MEASURES},
    "cdep symmetric": CDEP("centred", {"relu": "symmetric"}),
    **{f"rrr {form}": RRR(form) for form in ("paper", "published")},
    **{f"eg {form}": ExpectedGradients(2, form) for form in ("paper", "published")},
}


@dataclass(frozen=True)
class Case:
    """A model and data that it takes: both are made on the CPU, with torch's generator as it is."""

    split: Callable[[], TensorSplit]
    model: Callable[[], nn.Module]


def images(channels: int, size: int, annotation: Callable[[], object]) -> TensorSplit:
    """Random images, a dead patch in each: there CD's shares are 0/0."""
    inputs = torch.randn(EXAMPLES, channels, size, size)
    inputs[..., 8:16, 8:16] = 0
    return TensorSplit(inputs, torch.arange(EXAMPLES) % 2, annotation())


def own_masks(size: int) -> OwnMasks:
    """Another rectangle in every image, none in the first."""
    masks = torch.zeros(EXAMPLES, size, size, dtype=torch.bool)
    for i in range(1, EXAMPLES):
        masks[i, i % 5 : size // 2, : 2 + i % 7] = True
    return OwnMasks(masks)


def sentences() -> TensorSplit:
    """Sentences of four to seven words, the second one of each in the group."""
    lengths = 4 + torch.arange(EXAMPLES) % 4
    ids = torch.randint(1, 20, (EXAMPLES, WORDS))
    ids[torch.arange(WORDS) >= lengths[:, None]] = 0
    mask = (torch.arange(WORDS) == 1).expand(EXAMPLES, WORDS)
    phrases = Sentences(ids, lengths, torch.arange(EXAMPLES) % 2)
    return TextSplit(phrases, TokenGroups(mask.clone()))


def mlp() -> nn.Module:
    """A net without convolutions."""
    layers = (nn.Linear(784, 16), nn.Tanh(), nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 2))
    return nn.Sequential(nn.Flatten(), *layers)


def recurrent(cell: str) -> nn.Module:
    """The classifier of the text experiments with five numbers a word."""
    return RecurrentClassifier((WORDS,), 2, torch.randn(20, 5), hidden=4, cell=cell)


def transformer() -> nn.Module:
    """A small vision transformer, with a head that is not all zeros as a fresh one is."""
    model = VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=2)
    nn.init.normal_(model.heads.head.weight, std=0.1)
    return model


CASES = {
    "cnn, corners": Case(
        lambda: images(1, 28, lambda: ConstantGroups(corners(5, 28, 28))),
        lambda: MnistCNN((1, 28, 28), 2, hidden=8),
    ),
    "cnn, pixels": Case(
        lambda: images(3, 28, lambda: SampledPixels(torch.ones(28, 28), 8)),
        lambda: MnistCNN((3, 28, 28), 2, hidden=8),
    ),
    "cnn, own masks": Case(
        lambda: images(3, 28, lambda: own_masks(28)), lambda: MnistCNN((3, 28, 28), 2, hidden=8)
    ),
    "mlp": Case(lambda: images(1, 28, lambda: own_masks(28)), mlp),
    "lstm": Case(sentences, lambda: recurrent("lstm")),
    "gru": Case(sentences, lambda: recurrent("gru")),
    "resnet18": Case(lambda: images(3, 64, lambda: own_masks(64)), lambda: resnet18(num_classes=2)),
    "transformer": Case(lambda: images(3, 32, lambda: own_masks(32)), transformer),
}


def first_batch(split: TensorSplit) -> Tensor:
    """The index of a batch, where the split wants it."""
    device = "cpu" if isinstance(split, TextSplit) else split.labels.device
    return torch.arange(BATCH, device=device)


def trainer(
    model: nn.Module,
    penalty: Callable,
    autocast: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
) -> Trainer:
    """The loop around `train_step`, without the parts that a single step does not touch."""
    return Trainer(
        model,
        torch.optim.Adam(model.parameters()),
        penalty,
        strength=0.0 if isinstance(penalty, NoPenalty) else 1.0,
        bunch=None,  # type: ignore[arg-type]
        training=Training(**plain(composed())["training"]),
        seed=0,
        autocast=autocast,
        save=print,
        report=print,
        stop=bool,
    )
