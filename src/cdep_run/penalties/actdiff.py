"""ActDiff: the last hidden activations must not change when the group does.

Source: Viviano, Simpson, Dutil, Bengio, Cohen, "Saliency is a Possible Red Herring When Diagnosing
Poor Generalization", ICLR 2021.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from cdep_run.attribution import features, logits_of
from cdep_run.batch import Batch
from cdep_run.penalties.base import PenaltyError, groups_of, mean_annotated, option
from cdep_run.penalties.counterfactual import changed, outputs_alike
from cdep_run.variants import CHANGES


class ActDiff:
    """‖h(x) − h(x̃)‖², h what the last linear layer gets, x̃ the input with one group changed.

    Summed over units and groups, mean over annotated examples. Dropout drops the same units in
    both. The paper compares with images whose background is blacked out, `change: remove`.

    Args:
        change: what takes the group's place, one of `CHANGES`.

    Raises:
        PenaltyError: `change` is unknown, or the model runs no `nn.Linear`.
    """

    needs_groups = True

    def __init__(self, change: str = "exchange"):
        self.change = option("penalty.change", change, CHANGES)

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits `[N, C]` and the penalty, a scalar in squared activations, λ not applied."""
        groups = groups_of(batch, self)
        function, inputs = features(model, batch.inputs)
        others = changed(groups, inputs, self.change)
        hidden = _with_hidden(model, function)
        (logits, first), rest = outputs_alike(model, hidden, inputs, others)
        values = [(first - other).square().flatten(1).sum(1) for _, other in rest]
        return logits, mean_annotated(sum(values, logits.new_zeros(len(logits))), groups)


def _with_hidden(
    model: nn.Module, function: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """A function from inputs to logits `[N, C]` and what the last linear layer to run got."""

    def both(inputs: Tensor) -> tuple[Tensor, Tensor]:
        entered: list[Tensor] = []
        layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
        hooks = [m.register_forward_pre_hook(lambda _, got: entered.append(got[0])) for m in layers]
        try:
            logits = logits_of(function(inputs))
        finally:
            for hook in hooks:
                hook.remove()
        if not entered:
            raise PenaltyError("ActDiff compares what the last nn.Linear gets, and none ran")
        return logits, entered[-1]

    return both
