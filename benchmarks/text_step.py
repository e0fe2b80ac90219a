"""Time of a CDEP training step of an LSTM as a ratio to no penalty: part of `make bench`.

Sentences have the lengths of SST's (of its training trees if `--data-dir` holds them), and batches
are of similar lengths. Word vectors are random: only sizes matter. The unpenalised side calls the
fused `nn.LSTM` on the padded batch; the optimiser is fused on both sides, as the data sets' is. One
word a sentence is in the group, at a random place, as the decoy words are. The variants alternate,
batch by batch, in one process; reported is the median over batches of the ratio.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from step import trainer
from torch import Tensor

from cdep_run.batch import Batch, Groups
from cdep_run.models.lstm import RecurrentClassifier
from cdep_run.penalties.cdep import CDEP
from cdep_run.penalties.none import NoPenalty

BATCH, VOCABULARY, PAD = 64, 17_000, 0
TARGETS = {300: 2.0, 50: 4.0}
"""Highest ratio by the width of the word vectors."""


def sentence_lengths(data_dir: Path | None) -> Tensor:
    """Words in each training sentence; without data drawn so that mean and range are SST's."""
    trees = data_dir and data_dir / "sst" / "trees" / "train.txt"
    if trees and trees.exists():
        return torch.tensor([tree.count(") ") + 1 for tree in trees.read_text().splitlines()])
    return (torch.randn(8_000) * 9.3 + 19).round().clamp(2, 52).long()


def batches(data_dir: Path | None) -> list[Batch]:
    """Batches of similar lengths, in random order."""
    lengths = sentence_lengths(data_dir).sort()[0]
    made = []
    for own in lengths[: len(lengths) // BATCH * BATCH].view(-1, BATCH):
        ids = torch.randint(1, VOCABULARY, (BATCH, int(own.max())))
        places = torch.arange(ids.shape[1])
        ids[places >= own[:, None]] = PAD
        mask = places == (torch.rand(BATCH) * own).long()[:, None]
        made.append(Batch(ids, torch.randint(2, (BATCH,)), Groups(mask[:, None])))
    return [made[i] for i in torch.randperm(len(made))]


def measure(width: int, data: list[Batch], budget: float) -> bool:
    """Measure and print one width of vectors; whether CDEP keeps to its target."""
    vectors = torch.randn(VOCABULARY, width)
    runs = [
        trainer(RecurrentClassifier((0,), 2, vectors), penalty, fused=True)
        for penalty in (NoPenalty(), CDEP("pair_true_class"))
    ]
    rounds: list[list[float]] = []
    deadline = time.perf_counter() + budget
    while len(rounds) < 10 or time.perf_counter() < deadline:
        batch = data[len(rounds) % len(data)]
        times = []
        for run in runs:
            start = time.perf_counter()
            run.train_step(batch)
            times.append(time.perf_counter() - start)
        rounds.append(times)
    none, cdep = (1000 * statistics.median(r[k] for r in rounds[3:]) for k in range(2))
    ratio = statistics.median(r[1] / r[0] for r in rounds[3:])
    passed = ratio <= TARGETS[width]
    print(
        f"{width:3}d vectors: none {none:5.1f} ms/step, CDEP {cdep:5.1f}, ratio {ratio:.2f}, "
        f"≤ {TARGETS[width]:g}: {'pass' if passed else 'FAIL'} ({len(rounds)} batches)"
    )
    return passed


def main(arguments: Iterable[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, help="folder that holds sst/trees/train.txt")
    parser.add_argument("--seconds", type=float, default=10, help="time for each width")
    chosen = parser.parse_args(arguments)
    torch.manual_seed(0)
    data = batches(chosen.data_dir)
    mean = sum(float((batch.inputs != PAD).sum()) for batch in data) / BATCH / len(data)
    print(f"LSTM, batch {BATCH}, {mean:.1f} words a sentence, {torch.get_num_threads()} threads")
    passed = [measure(width, data, chosen.seconds) for width in TARGETS]
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
