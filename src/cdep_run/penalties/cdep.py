"""CDEP: penalise what contextual decomposition says the feature groups contributed.

Source: Rieger et al. 2019 (arXiv:1909.13584), Eq. 5, and its published code.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdep_run.attribution import features, logits_of
from cdep_run.batch import Batch, Groups, covering
from cdep_run.cd import Decomposition, decompose
from cdep_run.penalties.base import PenaltyError, groups_of, mean_annotated


def pair(relevant: Tensor, irrelevant: Tensor, targets: Tensor, labels: Tensor) -> Tensor:
    """|share − target|, share = β's entry of softmax(β_k, γ_k); mean over classes k.

    The published code's form (target 0). Not invariant to a constant added to all logits.
    """
    return (torch.sigmoid(relevant - irrelevant) - targets[:, None]).abs().mean(-1)


def centred(relevant: Tensor, irrelevant: Tensor, targets: Tensor, labels: Tensor) -> Tensor:
    """‖β − mean_k β‖², summed over the classes k, in squared logits: only what tells classes apart.

    Ours. Invariant to a constant added to all of β. Being squared it lets small contributions pass
    and so does not stop a fresh net from learning, where an absolute value does.
    """
    return (relevant - relevant.mean(-1, keepdim=True)).square().sum(-1)


def classwise(relevant: Tensor, irrelevant: Tensor, targets: Tensor, labels: Tensor) -> Tensor:
    """‖softmax_k(β) − target‖₁, Eq. 5 of the paper, with 1/classes as the target that says nothing.

    Invariant to a constant added to all logits.
    """
    return (F.softmax(relevant, -1) - 1 / relevant.shape[-1]).abs().sum(-1)


def text(relevant: Tensor, irrelevant: Tensor, targets: Tensor, labels: Tensor) -> Tensor:
    """−log of γ's entry of softmax(β_y, γ_y) at the true class y: the published code for text."""
    index = labels[:, None, None].expand(-1, relevant.shape[1], 1)
    return F.softplus((relevant - irrelevant).gather(-1, index)).squeeze(-1)


FORMS = {"pair": pair, "centred": centred, "classwise": classwise, "text": text}


class CDEP:
    """Contextual decomposition explanation penalty: sum over groups, mean over annotated examples.

    Args:
        form: how a group's contribution is measured, one of `FORMS`.
        relu: the CD rule for ReLU, "asymmetric" (ACD, published code), "symmetric" or "last".
        recurrent_bias: where the biases of a recurrent net belong to the group: "inside", or
            "before_last", all its positions but the last (published code).
        lstm_gates: whether what an LSTM's gate of one part does to the other part's content is
            irrelevant ("published") or "shared", which closes a way out and takes longer.
        detach_vectors: the penalty does not train word vectors (published code); costs a second
            pass.

    Raises:
        PenaltyError: the form is unknown, or gets targets that it cannot use.
    """

    needs_groups = True
    works_on_features = True

    def __init__(
        self,
        form: str = "pair",
        relu: str = "asymmetric",
        recurrent_bias: str = "inside",
        lstm_gates: str = "published",
        detach_vectors: bool = False,
    ):
        if form not in FORMS:
            raise PenaltyError(f"penalty.form is {form!r}; choose one of {', '.join(FORMS)}")
        self.form, self.detach_vectors = form, detach_vectors
        self.rules = {
            "relu": relu,
            "recurrent_bias": recurrent_bias,
            "lstm_gates": lstm_gates,
            "embedding": "detached" if detach_vectors else "trained",
        }

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits `[N, C]` and the penalty, a scalar (λ not applied; unit: see the form)."""
        groups = groups_of(batch, self)
        parts = self._decompose(model, batch.inputs, groups)
        logits_of(parts.total)
        targets = groups.targets
        if targets is None:
            targets = parts.relevant.new_zeros(parts.relevant.shape[1])
        elif self.form != "pair":
            raise PenaltyError(f"form {self.form} knows no wanted share but 'must not matter'")
        values = FORMS[self.form](parts.relevant, parts.irrelevant, targets, batch.labels)
        logits = model(batch.inputs) if self.detach_vectors else parts.total
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
        x = x.detach() if self.detach_vectors else x
        mask, relevant = covering(groups.mask, x), groups.project(x)
        return decompose(function, x, mask, rules=self.rules, relevant=relevant)  # type: ignore[arg-type]
