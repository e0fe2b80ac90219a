"""Data sets of a few examples and parts of a run that go wrong on purpose, all in milliseconds."""

from __future__ import annotations

import os
import signal

import torch
from torch import Tensor, nn

from cdep_run.batch import Batch, Groups
from cdep_run.datasets.annotation import SampledPixels
from cdep_run.datasets.base import Bunch, TensorSplit, fingerprint
from cdep_run.datasets.sentences import TokenGroups

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


class OwnMasks:
    """The mask of each image that has one: bool `[N, H, W]`."""

    def __init__(self, masks: Tensor) -> None:
        self.masks = masks

    def __call__(self, index: Tensor) -> Groups:
        self.masks = self.masks.to(index.device)
        masks = self.masks[index]
        return Groups(masks[:, None, None], annotated=masks.any(2).any(1))


def tiny_spots(seed: int, count: int, fold: int) -> Bunch:
    """RGB images `[count, 3, 16, 16]`, bright in the middle in class 1; half of class 0 is patched.

    The patch is a blue square in the corner. test_patch_free: test without patched images.
    """
    generator = torch.Generator().manual_seed(seed + 100 * fold)

    def split(name: str, count: int, patches: bool = True) -> TensorSplit:
        number = torch.arange(count)
        labels = number % 2
        images = 0.5 + 0.1 * torch.randn(count, 3, 16, 16, generator=generator)
        images[:, :, 6:10, 6:10] += 0.1 * labels[:, None, None, None]
        masks = torch.zeros(count, 16, 16, dtype=torch.bool)
        masks[:, :5, :5] = ((number % 4 == 0) & patches)[:, None, None]
        blue = torch.tensor([0.0, 0.2, 1.0])[None, :, None, None]
        images = torch.where(masks[:, None], blue, images.clamp(0, 1))
        made = TensorSplit((images - MEAN) / STD, labels, OwnMasks(masks))
        made.ids = [f"{name}_{fold}_{i}" for i in range(count)]
        return made

    splits = {"train": split("train", count), "val": split("val", 24), "test": split("test", 24)}
    splits["test_patch_free"] = split("free", 24, patches=False)
    return Bunch(
        "tiny_spots",
        splits,
        2,
        (3, 16, 16),
        "val",
        fingerprint(splits),
        lambda x: x * STD + MEAN,
        positive="bright",
    )


MEAN, STD = 0.5, 0.25


class TinyConv(nn.Module):
    """One convolution, ReLU, mean over the image, a linear layer."""

    def __init__(self, input_shape: tuple[int, ...], num_classes: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(input_shape[0], channels, 3, padding=1)
        self.head = nn.Linear(channels, num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits `[N, num_classes]`."""
        return self.head(self.conv(inputs).relu().mean((2, 3)))


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
        splits[name] = TensorSplit(tokens, labels, TokenGroups(place == last))
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


class Terminated(Signal):
    """The process is asked to end."""

    number = signal.SIGTERM
