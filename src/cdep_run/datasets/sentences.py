"""Sentences as padded token ids: splits that batch similar lengths, and groups of positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from cdep_run.batch import Batch, Groups
from cdep_run.datasets.base import TensorSplit

POOL = 100
"""Batches whose examples are sorted by length together: short enough to stay in random order."""


@dataclass
class Sentences:
    """Padded sentences: tokens int64 `[N, T]`, lengths and labels int64 `[N]`."""

    tokens: Tensor
    lengths: Tensor
    labels: Tensor

    def at(self, index: Tensor) -> Sentences:
        """The sentences at `index`, int64 or bool `[n]`."""
        return Sentences(self.tokens[index], self.lengths[index], self.labels[index])

    def holding(self, words: Tensor) -> Tensor:
        """Bool `[N]`: which sentences hold one of the words int64 `[K]`."""
        return torch.isin(self.tokens, words).any(1)


class TokenGroups:
    """The positions of each group in each sentence; a sentence without any is not annotated.

    Args:
        mask: bool `[N, G, T]`; `[N, T]` is one group.
    """

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask
        self.marked = mask.flatten(1).any(1).numpy()  # on the host: asking does not wait

    def holds(self, index: Tensor) -> bool:
        """Whether any of the sentences at `index`, best on the CPU, has a group."""
        return bool(self.marked[index.cpu().numpy()].any())

    def __call__(self, index: Tensor) -> Groups:
        """Groups with a mask `[n, G, T]`."""
        if self.mask.device != index.device:
            self.mask = self.mask.to(index.device)
        mask = self.mask[index]
        grouped = mask if mask.dim() == 3 else mask[:, None]
        return Groups(grouped, annotated=mask.flatten(1).any(1))


class TextSplit(TensorSplit):
    """Sentences whose batches are of similar length and are padded to their own longest one.

    Lengths are kept on the host too, so that cutting a batch does not wait for the device.

    Attributes:
        texts: the sentences as they were written, where the data set keeps them.
    """

    def __init__(
        self,
        sentences: Sentences,
        annotation: TokenGroups | None = None,
        texts: Sequence[str] | None = None,
    ) -> None:
        super().__init__(sentences.tokens.int(), sentences.labels, annotation)
        self.lengths = sentences.lengths.numpy()
        self.texts = texts

    def batch(self, index: Tensor) -> Batch:
        """The sentences at `index`, int64 `[n]`, best on the CPU; inputs int64 `[n, T]`."""
        longest = int(self.lengths[index.cpu().numpy()].max())
        index = index.to(self.labels.device, non_blocking=True)
        groups = self.annotation(index) if self.annotation else None
        if groups is not None:
            groups = replace(groups, mask=groups.mask[..., :longest])
        return Batch(self.inputs[index, :longest].long(), self.labels[index], groups)

    def order(self, batch_size: int, shuffle: bool) -> list[Tensor]:
        """Batches of similar lengths, on the CPU; shuffled: examples within pools, then batches."""
        if not shuffle:
            return list(torch.from_numpy(np.argsort(self.lengths, kind="stable")).split(batch_size))
        drawn = torch.randperm(len(self)).numpy()
        pool = np.arange(len(self)) // (POOL * batch_size)
        by_length = np.lexsort((self.lengths[drawn], pool))
        batches = torch.from_numpy(drawn[by_length]).split(batch_size)
        return [batches[i] for i in torch.randperm(len(batches)).tolist()]
