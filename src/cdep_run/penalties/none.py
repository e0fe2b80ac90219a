"""No penalty: the plain classifier, for comparison."""

from __future__ import annotations

from torch import Tensor, nn

from cdep_run.batch import Batch


class NoPenalty:
    """Cross-entropy alone; the value is 0 whatever the model does."""

    needs_groups = False
    works_on_features = True

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits `[N, C]` of an ordinary forward pass, and a scalar 0."""
        logits = model(batch.inputs)
        return logits, logits.new_zeros(())
