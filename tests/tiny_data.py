"""A data set of 64 images and the parts of a run that go wrong on purpose, all in milliseconds."""

from __future__ import annotations

import os
import signal

import torch
from torch import Tensor, nn

from cdep_run.batch import Batch
from cdep_run.datasets.base import Bunch, TensorSplit, fingerprint
from cdep_run.groups import SampledPixels

SIZE, CLASSES = 6, 3


def tiny(seed: int, count: int) -> Bunch:
    """Images `[count, 1, 6, 6]`: one pixel is bright by class, in training and val a second one."""
    generator = torch.Generator().manual_seed(seed)

    def split(shortcut: bool, count: int) -> TensorSplit:
        labels = torch.arange(count) % CLASSES
        images = torch.randn(count, 1, SIZE, SIZE, generator=generator)
        images[torch.arange(count), 0, labels] += 1
        if shortcut:
            images[:, 0, 5, 5] += labels
        return TensorSplit(images, labels, SampledPixels(torch.ones(SIZE, SIZE), 2))

    splits = {"train": split(True, count), "val": split(True, 24), "test": split(False, 24)}
    return Bunch("tiny", splits, CLASSES, (1, SIZE, SIZE), "val", fingerprint(splits), lambda x: x)


VOCABULARY = ["<pad>", "<unk>", "no", "yes", "is", "not", "<b>"]


def tiny_text(seed: int, count: int) -> Bunch:
    """Sentences of 2 to 5 words that end in 'no' (class 0) or 'yes' (class 1), padded with 0."""
    generator = torch.Generator().manual_seed(seed)
    splits = {}
    for name, size in (("train", count), ("val", 24), ("test", 24)):
        labels = torch.arange(size) % 2
        tokens = torch.randint(4, len(VOCABULARY), (size, 5), generator=generator)
        last = torch.randint(1, 5, (size,), generator=generator)[:, None]
        place = torch.arange(5)
        tokens = torch.where(place == last, 2 + labels[:, None], tokens * (place < last))
        splits[name] = TensorSplit(tokens, labels)
    vectors = torch.randn(len(VOCABULARY), 3, generator=generator)
    data = ("tiny_text", splits, 2, (5,), "val", fingerprint(splits))
    return Bunch(*data, vectors=vectors, vocabulary=VOCABULARY)


class TinyNet(nn.Module):
    """One hidden layer and dropout, so that a step draws random numbers."""

    def __init__(self, input_shape: tuple[int, ...], num_classes: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(input_shape[1] * input_shape[2], hidden),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(hidden, num_classes),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits `[N, num_classes]`."""
        return self.layers(inputs)


class At:
    """A penalty of 0 that calls `self.happen` at its `step`-th call in this process."""

    needs_groups = False
    step = 10

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        self.calls += 1
        logits = model(batch.inputs)
        value = 0 * logits.sum()
        return logits, self.happen(value) if self.calls == self.step else value

    def happen(self, value: Tensor) -> Tensor:
        """What goes wrong."""
        raise NotImplementedError


class NotANumber(At):
    """The loss becomes NaN."""

    def happen(self, value: Tensor) -> Tensor:
        return value * torch.nan


class Infinite(At):
    """The loss stays finite, its gradient does not."""

    def happen(self, value: Tensor) -> Tensor:
        return value.sqrt()


class Signal(At):
    """The process gets a signal."""

    number = signal.SIGINT

    def happen(self, value: Tensor) -> Tensor:
        os.kill(os.getpid(), self.number)
        return value


class Killed(Signal):
    """The process is killed, as the system does when memory runs out."""

    number = signal.SIGKILL


class Broken(At):
    """An error that nobody foresaw."""

    step = 1

    def happen(self, value: Tensor) -> Tensor:
        raise RuntimeError("a fuse blew")
