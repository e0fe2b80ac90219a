"""CDEP: penalise what contextual decomposition says the feature groups contributed.

Source: Rieger et al. 2019 (arXiv:1909.13584), Eq. 5, and its published code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdep_run.attribution import features, logits_of
from cdep_run.batch import Batch, Groups, covering
from cdep_run.cd import Decomposition, decompose
from cdep_run.penalties.base import PenaltyError, groups_of, mean_annotated, option
from cdep_run.variants import FORMS, VARIANTS, check_rules


def pair(relevant: Tensor, irrelevant: Tensor, labels: Tensor) -> Tensor:
    """β's entry of softmax(β_k, γ_k), mean over classes k; in [0, 1].

    The published code's form. Not invariant to a constant added to all logits.
    """
    return torch.sigmoid(relevant - irrelevant).mean(-1)


def centred(relevant: Tensor, irrelevant: Tensor, labels: Tensor) -> Tensor:
    """‖β − mean_k β‖², summed over the classes k, in squared logits: only what tells classes apart.

    Ours. Invariant to a constant added to all of β. Being squared it lets small contributions pass
    and so does not stop a fresh net from learning, where an absolute value does.
    """
    return (relevant - relevant.mean(-1, keepdim=True)).square().sum(-1)


def eq5(relevant: Tensor, irrelevant: Tensor, labels: Tensor) -> Tensor:
    """‖softmax_k(β) − 1/classes‖₁, the paper's Eq. 5 with the target that favours no class.

    Invariant to a constant added to all logits.
    """
    return (F.softmax(relevant, -1) - 1 / relevant.shape[-1]).abs().sum(-1)


def pair_true_class(relevant: Tensor, irrelevant: Tensor, labels: Tensor) -> Tensor:
    """−log of γ's entry of softmax(β_y, γ_y) at the true class y, in nats.

    The published code's form for text. Not invariant to a constant added to all logits.
    """
    index = labels[:, None, None].expand(-1, relevant.shape[1], 1)
    return F.softplus((relevant - irrelevant).gather(-1, index)).squeeze(-1)


MEASURES = {f.__name__: f for f in (pair, centred, eq5, pair_true_class)}
"""Functions of β, γ `[N, G, C]` and labels `[N]` to `[N, G]`, by the names in `FORMS["cdep"]`."""


class CDEP:
    """Contextual decomposition explanation penalty: sum over groups, mean over annotated examples.

    Args:
        form: how a group's contribution is measured, one of `FORMS["cdep"]`.
        rules: variants of CD's rules by name, as in `decompose`; `VARIANTS` lists them.
        next_positions: of token ids, how many positions after a group's belong to it, too. The
            published code takes 1.
        output_bias: whether the bias of the output layer is shared out to the parts like any bias;
            false leaves it out of both, as the published code for text does.

    Raises:
        PenaltyError: there is no such form, rule or variant; `next_positions` is below 0.
    """

    needs_groups = True
    works_on_features = True

    def __init__(
        self,
        form: str = "pair",
        rules: Mapping[str, str] | None = None,
        next_positions: int = 0,
        output_bias: bool = True,
    ):
        self.form = option("penalty.form", form, FORMS["cdep"])
        try:
            check_rules(rules or {}, "penalty.rules")
        except ValueError as error:
            raise PenaltyError(str(error)) from error
        if next_positions < 0:
            raise PenaltyError(f"penalty.next_positions is {next_positions}; it must be 0 or more")
        self.rules = {name: next(iter(VARIANTS[name])) for name in VARIANTS} | dict(rules or {})
        self.next_positions, self.output_bias = next_positions, output_bias

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits `[N, C]` and the penalty, a scalar (λ not applied; unit: see the form)."""
        groups = groups_of(batch, self)
        tokens = not batch.inputs.is_floating_point()
        if self.next_positions and tokens:
            groups = replace(groups, mask=extended(groups.mask, self.next_positions))
        with nullcontext() if self.output_bias else without_output_bias(model):
            parts = self._decompose(model, batch.inputs, groups)
        logits = logits_of(parts.total)
        if not self.output_bias or (tokens and self.rules["embedding"] == "detached"):
            logits = model(batch.inputs)
        values = MEASURES[self.form](parts.relevant, parts.irrelevant, batch.labels)
        return logits, mean_annotated(values.sum(1), groups)

    def _decompose(self, model: nn.Module, inputs: Tensor, groups: Groups) -> Decomposition:
        """What each group contributed to the logits; of projected groups CD starts from P x.

        Of token ids x are the words' vectors, and CD starts behind the embedding.
        """
        if groups.projection is None:
            return decompose(
                model,
                inputs,
                groups.mask,
                boxes=groups.boxes,
                rules=self.rules,
                relevant=groups.relevant,
            )
        function, x = features(model, inputs)
        x = x.detach() if self.rules["embedding"] == "detached" else x
        mask, relevant = covering(groups.mask, x), groups.project(x)
        return decompose(function, x, mask, rules=self.rules, relevant=relevant)  # type: ignore[arg-type]


def extended(mask: Tensor, count: int) -> Tensor:
    """A mask of tokens `[N, G, T]` that is True at the next `count` positions, too."""
    result = mask.clone()
    for shift in range(1, min(count, mask.shape[-1] - 1) + 1):
        result[..., shift:] |= mask[..., :-shift]
    return result


@contextmanager
def without_output_bias(model: nn.Module) -> Iterator[None]:
    """Take the bias off the model's last linear layer while the context lasts.

    Raises:
        PenaltyError: the model has no `nn.Linear`.
    """
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise PenaltyError("penalty.output_bias=false needs a model whose last layer is nn.Linear")
    bias, linear[-1].bias = linear[-1].bias, None  # type: ignore[assignment]
    try:
        yield
    finally:
        linear[-1].bias = bias
