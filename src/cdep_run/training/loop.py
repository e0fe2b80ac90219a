"""The training loop: task loss + strength · penalty, step by step, resumable at any of them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel
from tqdm.contrib.logging import logging_redirect_tqdm

from cdep_run.batch import Batch
from cdep_run.config.schemas import Training
from cdep_run.datasets.base import Bunch, TensorSplit
from cdep_run.datasets.counterfactual import WORST, worst
from cdep_run.errors import TrainingError
from cdep_run.metrics import LOWER_IS_BETTER, Predictions, scores, subset_scores
from cdep_run.training.balance import balanced_order
from cdep_run.training.pace import Pace
from cdep_run.training.schedule import tested_weights
from cdep_run.training.signals import Interrupted

Penalty = Callable[[nn.Module, Batch], tuple[Tensor, Tensor]]
Row = dict[str, float | int | None]

SUMMED = ("loss", "penalty", "accuracy", "mean_logit")
"""What is summed over the examples of an epoch; `loss` is the task loss alone."""


@dataclass
class Progress:
    """Where training stands, besides weights and optimiser: all that a resumed run must know."""

    epoch: int = 0  # epochs finished
    step: int = 0  # steps done in the epoch under way
    examples: int = 0  # examples summed in the epoch under way
    sums: list[float] = field(default_factory=lambda: [0.0] * len(SUMMED))
    seconds: float = 0.0  # spent training in the epoch under way
    counted: int = 0  # batches so far that hold what the penalty asks for
    best_epoch: int = 0
    best_value: float | None = None  # of what `training.monitor` names, in the best epoch
    history: list[Row] = field(default_factory=list)  # one row for each finished epoch

    def column(self, name: str) -> list[float]:
        """One number of every finished epoch."""
        return [value for row in self.history if (value := row[name]) is not None]


def reseed(*counters: int) -> None:
    """Seed torch on every device from counters alone, so that resuming needs no generator state."""
    digest = hashlib.blake2b(repr(counters).encode(), digest_size=8).digest()
    seed = int.from_bytes(digest, "big") >> 1
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:  # 50 times as fast: torch.manual_seed keeps a stack trace for a GPU that may turn up
        torch.default_generator.manual_seed(seed)


class Trainer:
    """Fits `model` to `bunch`, both on one device, and remembers how far it got.

    Args:
        model: returns logits `[N, C]`.
        optimizer: over the model's parameters.
        penalty: `penalty(model, batch) -> (logits, value)`; not called where `strength` is 0.
        strength: λ.
        every: k, the penalty is taken of every k-th batch, with the weight k·λ.
        bunch: the data; trains on `train`, stops early by `val`, evaluates every split.
        training: see `configs/train.yaml`.
        seed: with epoch and step it seeds everything drawn.
        autocast: makes the context of a forward pass.
        save: called with `state()` when a checkpoint is due.
        report: called with `progress.history` after each epoch, whose row is the last one.
        stop: asked at each step; True writes a checkpoint and raises `Interrupted`.
        class_weights: `[C]`, how much an example of each class counts in the task loss.
        scheduler: of the learning rate; stepped after each step.
        average: of the weights over the steps; judged in the model's place once it holds any.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        penalty: Penalty,
        strength: float,
        bunch: Bunch,
        training: Training,
        seed: int,
        autocast: Callable[[], AbstractContextManager[Any]],
        save: Callable[[dict[str, Any]], None],
        report: Callable[[list[Row]], None],
        stop: Callable[[], bool],
        class_weights: Tensor | None = None,
        scheduler: LRScheduler | None = None,
        average: AveragedModel | None = None,
        every: int = 1,
    ) -> None:
        self.model, self.optimizer = model, optimizer
        self.penalty, self.strength, self.every = penalty, strength, every
        self.bunch, self.training, self.seed, self.autocast = bunch, training, seed, autocast
        self.save, self.report, self.stop = save, report, stop
        self.class_weights, self.scheduler, self.average = class_weights, scheduler, average
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.progress = Progress()
        self.best: dict[str, Tensor] | None = None  # weights of the best epoch, if they are wanted
        self.pending: list[tuple[int, Tensor]] = []  # examples and summands of unread steps

    def fit(self) -> None:
        """Train until the last epoch or until patience runs out; may start anywhere in between."""
        progress, training = self.progress, self.training
        steps = math.ceil(len(self.bunch.splits["train"]) / training.batch_size)
        done = steps * progress.epoch + progress.step
        pace = Pace(steps * training.epochs, done, training.checkpoint_seconds)
        with pace.bar, logging_redirect_tqdm():
            while progress.epoch < training.epochs and not self.out_of_patience():
                self.train_epoch(pace)
                self.end_epoch()
        self.model.load_state_dict(tested_weights(self.state(), training.restore_best))
        self.average = None  # what is tested stands in the model now

    def out_of_patience(self) -> bool:
        """Whether more than `patience` epochs in a row brought no better value of the monitor."""
        patience = self.training.patience
        return patience is not None and self.progress.epoch - self.progress.best_epoch > patience

    def train_epoch(self, pace: Pace) -> None:
        """Take the steps that are left of the epoch under way."""
        progress, training, split = self.progress, self.training, self.bunch.splits["train"]
        pace.start_epoch(f"epoch {progress.epoch + 1}/{training.epochs}", progress.seconds)
        reseed(self.seed, progress.epoch)
        order = self.order()
        split.expect(order)
        self.model.train()
        for step in range(progress.step, len(order)):
            reseed(self.seed, progress.epoch, step)
            penalised = self.penalty_is_due(order[step])
            batch = (split.batch if penalised else split.batch_without_groups)(order[step])
            self.pending.append((len(order[step]), self.train_step(batch, penalised)))
            progress.step = step + 1
            self.after_step(pace)
        self.read_pending()
        progress.seconds = pace.seconds()
        self.check_weights()

    def penalty_is_due(self, index: Tensor) -> bool:
        """Whether the step on this batch pays the penalty: every k-th batch that can.

        A batch without any annotated example, where the data can tell that beforehand, has no
        penalty and does not count. Lazy regularisation: Karras et al. 2020 (StyleGAN2), Sec. 3.1.
        """
        if self.strength == 0:
            return False
        asks = getattr(self.penalty, "needs_groups", True)
        if asks and not self.bunch.splits["train"].annotates(index):
            return False
        self.progress.counted += 1
        return (self.progress.counted - 1) % self.every == 0

    def order(self) -> list[Tensor]:
        """The index of each batch of the epoch under way."""
        if self.training.sampling == "balanced":
            return balanced_order(self.bunch, self.training.batch_size)
        return self.bunch.splits["train"].order(self.training.batch_size, shuffle=True)

    def after_step(self, pace: Pace) -> None:
        """Look at the loss, show it, save or stop, each when it is due.

        Raises:
            Interrupted: a stop was asked for; a checkpoint is written.
        """
        self.progress.seconds = pace.seconds()
        pace.bar.update()
        if pace.display_due():
            self.read_pending()
            pace.display(self.means())
        if len(self.pending) >= self.training.check_every:
            self.read_pending()
        if self.stop():
            self.checkpoint()
            raise Interrupted
        if pace.checkpoint_due():
            with pace.writing():
                self.checkpoint()

    def train_step(self, batch: Batch, penalised: bool = True) -> Tensor:
        """One optimiser step; the summands named in `SUMMED` `[4]`, left on the device.

        `penalised`: whether it pays the penalty, which then counts `every` times, for the steps
        that do not; the mean of the summands over all steps stays an estimate of the penalty.
        """
        penalised = penalised and self.strength != 0
        with self.autocast():
            if penalised:
                logits, value = self.penalty(self.model, batch)
                value = value * self.every if self.every > 1 else value
            else:
                logits = self.model(batch.inputs)
                value = logits.new_zeros(())
        logits = logits.float()
        task_loss = F.cross_entropy(
            logits,
            batch.labels,
            self.class_weights,
            label_smoothing=self.training.label_smoothing,
        )
        loss = task_loss + self.strength * value if penalised else task_loss
        self.optimizer.zero_grad()
        if penalised:  # not into inputs: penalties that take their gradient would pay twice
            loss.backward(inputs=self.trained)
        else:  # re-entrant checkpointing refuses a backward pass into chosen tensors
            loss.backward()
        self.move()
        accuracy = (logits.argmax(1) == batch.labels).float().mean()
        return torch.stack((task_loss, value.float(), accuracy, logits.mean())).detach()

    def move(self) -> None:
        """Change the weights by their gradients, then learning rate and averaged weights."""
        training = self.training
        if training.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.trained, training.clip_norm)
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        if self.average is not None and self.progress.epoch + 1 >= training.average_from:
            self.average.update_parameters(self.model)

    def read_pending(self) -> None:
        """Fetch what the device computed since the last look, and stop if it is not finite."""
        progress = self.progress
        if not self.pending:
            return
        rows = torch.stack([row for _, row in self.pending]).tolist()
        counts, first = [n for n, _ in self.pending], progress.step - len(rows) + 1
        self.pending = []
        for step, (n, row) in enumerate(zip(counts, rows, strict=True), first):
            if not all(map(math.isfinite, row)):
                named = ", ".join(f"{k} {v}" for k, v in zip(SUMMED, row, strict=True))
                raise self.failure(f"not finite at step {step}: {named}")
            progress.sums = [s + n * value for s, value in zip(progress.sums, row, strict=True)]
            progress.examples += n

    def means(self) -> dict[str, float]:
        """Means over the examples of the epoch under way."""
        return {
            name: total / max(self.progress.examples, 1)
            for name, total in zip(SUMMED, self.progress.sums, strict=True)
        }

    def check_weights(self) -> None:
        """Refuse weights that are not finite: they are neither evaluated nor saved."""
        if not all(bool(weights.isfinite().all()) for weights in self.model.parameters()):
            raise self.failure(f"weights not finite after step {self.progress.step}")

    def failure(self, what: str) -> TrainingError:
        """The error that names the epoch, λ and learning rate, and what may help."""
        rate = self.optimizer.param_groups[0]["lr"]
        return TrainingError(
            f"epoch {self.progress.epoch + 1}, {what}; λ = {self.strength:g}, learning rate = "
            f"{rate:g}. The last good checkpoint is kept; try a smaller penalty.strength or "
            "optimizer.lr"
        )

    def end_epoch(self) -> None:
        """Evaluate every split, note the epoch, and write a checkpoint."""
        progress = self.progress
        row: Row = {"epoch": progress.epoch + 1, "seconds": progress.seconds}
        row |= {f"train/{name}": value for name, value in self.means().items()}
        row |= {f"{split}/{k}": v for split, s in self.evaluate().items() for k, v in s.items()}
        if self.scheduler is not None:
            row["learning_rate"] = self.optimizer.param_groups[0]["lr"]
        progress.history.append(row)
        progress.epoch += 1
        progress.step = progress.examples = 0
        progress.sums, progress.seconds = [0.0] * len(SUMMED), 0.0
        if self.is_better(value := row[self.training.monitor]):
            progress.best_epoch, progress.best_value = progress.epoch, value
            if self.training.restore_best:
                weights = self.judged().state_dict()
                self.best = {k: v.detach().clone() for k, v in weights.items()}
        self.report(progress.history)
        self.checkpoint()

    def is_better(self, value: float | None) -> bool:
        """Whether the epoch that ended is the best so far; one without a value is not."""
        best, mode = self.progress.best_value, self.training.monitor_mode
        if mode == "auto":
            mode = "min" if self.training.monitor.endswith(LOWER_IS_BETTER) else "max"
        if value is None or best is None:
            return value is not None and math.isfinite(value)
        return value < best if mode == "min" else value > best

    def judged(self) -> nn.Module:
        """What is evaluated: the averaged model once it holds weights, else the model."""
        started = self.average is not None and int(self.average.n_averaged) > 0
        return self.average.module if self.average is not None and started else self.model

    def evaluate(self) -> dict[str, dict[str, float | None]]:
        """`metrics.scores` of every split but `train`, and `subset_scores` where they are known."""
        weights = None if self.class_weights is None else self.class_weights.cpu()
        found = {}
        for name, split in self.bunch.splits.items():
            if name != "train":
                logits, labels = self.predict(split)
                found[name] = scores(logits, labels, weights)
                if split.present is not None:
                    found[name] |= subset_scores(logits, labels, split.present)
        if self.bunch.worst_of is not None:
            found[WORST] = worst(*(found[name] for name in self.bunch.worst_of))
        return found

    def predictions(self) -> dict[str, Predictions]:
        """What the model says of every split but `train`, of two classes."""
        found = {}
        for name, split in self.bunch.splits.items():
            if name != "train":
                logits, labels = self.predict(split)
                ids = split.ids or [str(i) for i in range(len(split))]
                log_odds = (logits[:, 1] - logits[:, 0]).double().numpy()
                found[name] = Predictions(labels.numpy(), log_odds, ids)
        return found

    @torch.inference_mode()
    def predict(self, split: TensorSplit) -> tuple[Tensor, Tensor]:
        """Logits float32 `[N, C]` and labels `[N]` of a split, on the CPU, in evaluation mode."""
        model = self.judged().eval()
        logits, labels = [], []
        for index in split.order(self.training.evaluation_batch_size, shuffle=False):
            batch = split.batch(index)
            with self.autocast():
                logits.append(model(batch.inputs).float())
            labels.append(batch.labels)
        return torch.cat(logits).cpu(), torch.cat(labels).cpu()

    def checkpoint(self) -> None:
        """Save, after a look at all that was not looked at yet."""
        self.read_pending()
        self.check_weights()
        self.save(self.state())

    def position(self) -> tuple[int, int]:
        """The epoch under way, counted from 1, and the steps done in it."""
        return self.progress.epoch + 1, self.progress.step

    def state(self) -> dict[str, Any]:
        """All that `load_state` needs to go on as if nothing had happened."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "best": self.best,
            "progress": asdict(self.progress),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go back to where `state` was taken."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.best, self.progress = state["best"], Progress(**state["progress"])
