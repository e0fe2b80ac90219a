"""What every data set is: named splits of tensors on one device, and a fingerprint of them."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cdep_run.batch import Batch, Groups
from cdep_run.errors import CdepError

Annotation = Callable[[Tensor], Groups]
"""From the examples' index (int64 `[n]`) to what is known about them."""


class DataError(CdepError):
    """The data set cannot be built from the given files or arguments."""


class TensorSplit:
    """One split, stored as tensors: a batch is an indexing operation, with no wait for the host.

    Args:
        inputs: `[N, ...]`, as stored; a subclass may store them smaller and override `prepare`.
        labels: `[N]` int64.
        annotation: gives the groups of a batch from its index, or None where nothing is known.

    Attributes:
        ids: what to call each example in predictions.csv; None: its number.
        present: bool `[N]`, whether an example shows a feature that must not matter; accuracies
            with and without it and the worst one of class × presence are then reported. None: not
            known.
    """

    ids: list[str] | None = None
    present: Tensor | None = None

    def __init__(
        self, inputs: Tensor, labels: Tensor, annotation: Annotation | None = None
    ) -> None:
        self.inputs = inputs
        self.labels = labels
        self.annotation = annotation

    def __len__(self) -> int:
        return len(self.labels)

    def prepare(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """The model's inputs `[n, ...]` from the stored ones of a batch and their labels."""
        return inputs

    def batch(self, index: Tensor) -> Batch:
        """The examples at `index`, int64 `[n]` on the split's device."""
        labels = self.labels[index]
        groups = self.annotation(index) if self.annotation else None
        return Batch(self.prepare(self.inputs[index], labels), labels, groups)

    def batch_without_groups(self, index: Tensor) -> Batch:
        """As `batch`, for a step that asks for no groups: a subclass may spare making them."""
        return self.batch(index)

    def annotates(self, index: Tensor) -> bool:
        """Whether any of these examples has groups; True where only their batch can tell."""
        holds = getattr(self.annotation, "holds", None)
        return holds is None or holds(index)

    def check(self) -> None:
        """Refuse inputs that turn out to be unreadable only when asked for; tensors never are."""

    def order(self, batch_size: int, shuffle: bool) -> list[Tensor]:
        """The index of each batch of one epoch; the last one may be short.

        `shuffle` draws from torch's global CPU generator, so that the order is the same on every
        device.
        """
        index = torch.randperm(len(self)) if shuffle else torch.arange(len(self))
        return list(index.to(self.labels.device).split(batch_size))

    def expect(self, order: list[Tensor]) -> None:
        """Hear which batches will be asked for one after another; who reads files reads ahead."""

    def to(self, device: torch.device | str) -> TensorSplit:
        """A copy with all its tensors on `device`."""
        moved = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(moved, name, value.to(device))
        return moved


class KeyedImages(TensorSplit):
    """Images that are named by what they hold, so that a frozen trunk's features can be kept.

    Attributes:
        image_keys: the name of each image's content.
        mask_keys: the name of each image's masks, all groups together; "": it has none.
        patched: bool `[N]`, which images have a mask that marks something.
        knows_groups: whether batches hold groups.
        group_count: how many groups.
        pixels_key: how pixels become inputs, where the names above do not decide it.
    """

    image_keys: list[str]
    mask_keys: list[str]
    patched: Tensor
    knows_groups: bool
    group_count: int = 1
    pixels_key: str = ""

    def check(self, places: Sequence[int] | None = None) -> None:
        """Refuse images, or those at `places`, that cannot be decoded."""


@dataclass
class Bunch:
    """A data set, ready to train on.

    Attributes:
        name: as in the configuration.
        splits: "train", "val" (early stopping), "test", and further named ones; every split is
            evaluated.
        num_classes: number of classes.
        input_shape: of one example, as the model gets it.
        selection_split: the split on which λ is chosen; never a test split.
        fingerprint: `fingerprint(splits)`.
        display: inputs `[N, ...]` to images `[N, 1 or 3, H, W]` in [0, 1] on the CPU, for figures;
            None: the inputs are not images.
        class_weights: float `[C]`, how much an example of each class counts in the task loss; None:
            all the same.
        cache_dir: where the features that a frozen trunk makes of the inputs are kept; None: they
            are made anew each time.
        vectors: float `[V, D]`, of text: what the embedding of each token starts from.
        vocabulary: of text: the words or sub-words, V of them, by their token ids.
        padding: of text: the token id that fills up short sentences.
        worst_of: two splits; the worse of their metrics are those of "val_worst", which may be the
            selection split. None: there is no such pair.
        selection_metric: by which λ is chosen on `selection_split`; one of `metrics.scores`.
        positive: of two classes, what class 1 is called where the task is to find it: a run then
            keeps its predictions and judges them by `metrics.detection`, with intervals on the
            splits whose names start with "test". None: classes are on a par.
        classes: what each class is called, C of them; None: by its number.
        preprocessing: how raw examples become inputs, in strings, numbers, lists and dicts, with
            `kind` ("images", "text", "table") first: a finished run predicts by it without its
            data. None: the data set cannot say.
        group_names: what each feature group that must not matter is called, in the masks' order;
            None: they have no names.
    """

    name: str
    splits: dict[str, TensorSplit]
    num_classes: int
    input_shape: tuple[int, ...]
    selection_split: str
    fingerprint: str
    display: Callable[[Tensor], Tensor] | None = None
    class_weights: Tensor | None = None
    cache_dir: Path | None = None
    vectors: Tensor | None = None
    vocabulary: list[str] | None = None
    padding: int = 0
    selection_metric: str = "accuracy"
    positive: str | None = None
    classes: list[str] | None = None
    preprocessing: dict[str, Any] | None = None
    group_names: list[str] | None = None
    worst_of: tuple[str, str] | None = None

    def to(self, device: torch.device | str) -> Bunch:
        """A copy with all splits on `device`."""
        weights = None if self.class_weights is None else self.class_weights.to(device)
        splits = {name: s.to(device) for name, s in self.splits.items()}
        return replace(self, splits=splits, class_weights=weights)


def fingerprint(splits: Mapping[str, object]) -> str:
    """SHA-256 over every tensor of the splits, masks included: name, dtype, shape and bytes.

    Other objects with tensors may stand among the splits, such as an embedding.
    """
    digest = hashlib.sha256()
    for split_name, split in splits.items():
        for name, tensor in _tensors(split):
            digest.update(f"{split_name}.{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.cpu().contiguous().numpy().data)
    return digest.hexdigest()


def _tensors(part: Any) -> Iterator[tuple[str, Tensor]]:
    """Names and values of the tensors among an object's attributes, at any depth."""
    for name, value in vars(part).items():
        if isinstance(value, Tensor):
            yield name, value
        elif hasattr(value, "__dict__"):
            yield from ((f"{name}.{inner}", tensor) for inner, tensor in _tensors(value))
