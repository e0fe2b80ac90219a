"""RRR: penalise the input gradient inside the feature groups; of text, that of words' vectors.

Source: Ross, Hughes, Doshi-Velez, "Right for the Right Reasons", IJCAI 2017, Eq. 1.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from cdep_run.attribution import features, input_gradients, logits_of
from cdep_run.batch import Batch
from cdep_run.penalties.base import PenaltyError, groups_of, mean_annotated, option
from cdep_run.variants import FORMS


class RRR:
    """(A ⊙ ∂/∂x Σ_c log p_c)², summed over features and groups, mean over annotated examples.

    Of a group that is a linear map P of the inputs: ‖Pᵀ ∂/∂x Σ_c log p_c‖².

    Args:
        form: "paper", as above; where the inputs are features of a frozen trunk it is taken from
            the images of the annotated examples. "published", the CDEP code's variant: the gradient
            of the batch-mean negative log-likelihood, summed over channels before it is squared,
            and summed over examples. Its value shrinks as 1/N.

    Raises:
        PenaltyError: the form is unknown.
    """

    needs_groups = True

    def __init__(self, form: str = "paper"):
        self.form = option("penalty.form", form, FORMS["rrr"])
        self.works_on_features = form == "paper"  # the other one's value shrinks with the batch

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits `[N, C]` and the penalty, a scalar in (nats per input unit)², λ not applied."""
        if batch.images is not None:
            return logits_of(model(batch.inputs)), self(model, batch.images)[1]
        groups = groups_of(batch, self)

        def score(logits: Tensor) -> Tensor:
            if self.form == "paper":
                return F.log_softmax(logits, 1).sum()
            return F.cross_entropy(logits, batch.labels)

        if self.form == "published" and groups.projection is not None:
            raise PenaltyError(
                "penalty.form=published sums the gradient over an image's channels before the "
                f"group is looked at, and so knows no {groups.projection.name}; choose form=paper"
            )
        function, inputs = features(model, batch.inputs, groups.boxes)
        logits, gradient = input_gradients(function, inputs, score)
        if self.form == "published":  # over channels, or a word vector's entries
            gradient = gradient.sum(1 if inputs is batch.inputs else -1, keepdim=True)
        squared = groups.sensitivity(gradient).sum(1)
        if self.form == "published":
            return logits, mean_annotated(squared, groups) * len(squared)
        return logits, mean_annotated(squared, groups)
