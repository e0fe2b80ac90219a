"""Grad-CAM penalty: no heat inside the group's region at the last convolution.

Source: Schramowski et al., "Making deep neural networks right for the right scientific reasons by
interacting with their explanations", Nature Machine Intelligence 2020 (RRR on Grad-CAM, "RRR-G");
heat by Selvaraju et al., ICCV 2017.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdep_run.attribution import logits_of
from cdep_run.batch import Batch
from cdep_run.penalties.base import PenaltyError, groups_of, mean_annotated, region


class GradCAM:
    """Σ h² over the cells of the map that a group touches, mean over annotated examples.

    h = ReLU(Σ_k w_k A_k), A `[N, K, h, w]` the output of `layer`, w_k the mean over h and w of
    ∂z/∂A_k, z the true class's logit minus the mean of all classes' logits.

    Args:
        layer: name of the module whose output is the map; null: the last `nn.Conv2d` that runs.

    Raises:
        PenaltyError: the model has no such module, or its output is no map.
    """

    needs_groups = True

    def __init__(self, layer: str | None = None):
        self.layer = layer

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits `[N, C]` and the penalty, a scalar in squared logits, λ not applied."""
        groups = groups_of(batch, self)
        mask = region(groups, self)
        logits, maps = self._maps(model, batch.inputs)
        chosen = logits.gather(1, batch.labels[:, None]).squeeze(1) - logits.mean(1)
        (slope,) = torch.autograd.grad(chosen.sum(), maps, create_graph=True, allow_unused=True)
        if slope is None:
            raise PenaltyError("the logits do not depend on the map; name another penalty.layer")
        heat = (slope.mean((2, 3), keepdim=True) * maps).sum(1).relu()
        inside = mask.expand(*mask.shape[:-2], *batch.inputs.shape[-2:]).any(2).to(heat.dtype)
        touched = F.adaptive_max_pool2d(inside, heat.shape[-2:])  # [N or 1, G, h, w]
        values = (heat.square().unsqueeze(1) * touched).flatten(1).sum(1)
        return logits, mean_annotated(values, groups)

    def _maps(self, model: nn.Module, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Logits `[N, C]` of one pass, and the map `[N, K, h, w]` that they were computed from."""
        modules = dict(model.named_modules())
        if self.layer is not None and self.layer not in modules:
            raise PenaltyError(
                f"penalty.layer is {self.layer!r}; the model's modules are "
                f"{', '.join(name for name in modules if name)}"
            )
        watched = [m for m in modules.values() if isinstance(m, nn.Conv2d)]
        if self.layer is not None:
            watched = [modules[self.layer]]
        outputs: list[Tensor] = []
        hooks = [m.register_forward_hook(lambda *call: outputs.append(call[2])) for m in watched]
        try:
            with torch.enable_grad():
                logits = logits_of(model(inputs))
        finally:
            for hook in hooks:
                hook.remove()
        if not outputs or not isinstance(outputs[-1], Tensor) or outputs[-1].dim() != 4:
            what = f"module {self.layer!r} yields none" if self.layer else "no nn.Conv2d ran"
            raise PenaltyError(f"Grad-CAM needs a map [N, K, h, w], and {what}; set penalty.layer")
        return logits, outputs[-1]
