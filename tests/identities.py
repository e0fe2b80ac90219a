"""The identities that hold for any decomposable model, measured as numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cdep_run.cd import decompose


@dataclass(frozen=True)
class Errors:
    """How far a model's decomposition is from the identities; 0 is perfect.

    Attributes:
        total: largest |β + γ − model(x)|, relative to the largest |model(x)|.
        empty: largest |β| under a mask of zeros; must be 0 exactly.
        full: largest |γ| under a mask of ones, relative to the largest |model(x)|.
        finite: whether β, γ and all gradients were.
    """

    total: float
    empty: float
    full: float
    finite: bool

    def failures(self, tolerance: float = 1e-4) -> list[str]:
        """The names of the identities that do not hold."""
        checks = {
            "total": self.total <= tolerance,
            "empty": self.empty == 0,
            "full": self.full <= tolerance,
            "finite": self.finite,
        }
        return [name for name, good in checks.items() if not good]


def without_zeros(model: nn.Module) -> nn.Module:
    """The model with small random weights where all of them start as 0, such as in some heads.

    A head of zeros would make every identity true. Biases stay as they are: at units that a
    rectifier leaves dead they belong to γ, whatever the mask, and the full mask would not tell.
    """
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if not weight.any() and (weight.dim() > 1 or name.endswith("weight")):
                weight.normal_(std=0.02)
    return model


def measure(model: nn.Module, x: Tensor, mask: Tensor, gradients: bool = True, **inputs) -> Errors:
    """Decompose under `mask`, under zeros and under ones, and take gradients of the first."""
    with torch.no_grad():
        output = model(x, **inputs)
        output = getattr(output, "logits", output)
        scale = output.abs().max().clamp_min(1e-12)
        empty = decompose(model, x, torch.zeros_like(mask), **inputs).relevant
        # Of a constant that is larger than all parts the bounded rule leaves something to nobody.
        rules = {"norm_constant": "proportional"}
        full = decompose(model, x, torch.ones_like(mask), rules=rules, **inputs).irrelevant
    with torch.set_grad_enabled(gradients):
        parts = decompose(model, x, mask, **inputs)
    finite = all(bool(t.isfinite().all()) for t in (parts.relevant, parts.irrelevant, empty, full))
    if gradients:
        parameters = [p for p in model.parameters() if p.requires_grad]
        loss = torch.sigmoid(parts.relevant - parts.irrelevant).mean()
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        finite &= all(bool(g.isfinite().all()) for g in found if g is not None)
    return Errors(
        total=float((parts.total.detach() - output).abs().max() / scale),
        empty=float(empty.abs().max()),
        full=float(full.abs().max() / scale),
        finite=finite,
    )
