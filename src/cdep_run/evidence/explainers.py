"""Does a trained net look at a group of pixels? Explainers and changes of the image that judge it.

None of these can be trained through; what a penalty itself uses is in `cd` and `attribution`.
Whatever they say does not move when a constant is added to all logits.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import binary_dilation, gaussian_filter, zoom
from torch import Tensor, nn

from cdep_run.attribution import input_gradients
from cdep_run.cd import decompose
from cdep_run.errors import ConfigError


class Centred(nn.Module):
    """A model whose logits have mean 0 over the classes, whatever constant is added to them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits `[N, C]` minus their mean over C."""
        logits = self.model(inputs)
        return logits - logits.mean(1, keepdim=True)


def without_last_bias(model: nn.Module, classes: int) -> nn.Module:
    """A copy whose last linear layer has no bias: CD would share the bias out among the parts.

    Raises:
        ConfigError: the model does not end in a linear layer with so many outputs.
    """
    unbiased = copy.deepcopy(model)
    last = [m for m in unbiased.modules() if isinstance(m, nn.Linear) and m.out_features == classes]
    if not last:
        raise ConfigError(
            f"CD scores need a model that ends in a linear layer with {classes} outputs"
        )
    if last[-1].bias is not None:
        last[-1].bias.detach().zero_()
    return unbiased


@torch.no_grad()
def cd_share(model: nn.Module, inputs: Tensor, mask: Tensor, relu: str) -> Tensor:
    """Σ_k |β_k − mean β| / (Σ_k |β_k − mean β| + Σ_k |γ_k − mean γ|): CD's share of a group.

    Args:
        model: from `without_last_bias`, in evaluation mode.
        inputs: `[N, *features]`.
        mask: bool, broadcasts to `inputs`, True in the group.
        relu: CD's rule for ReLU.

    Returns:
        `[N]` in [0, 1], no unit; 0 where neither part tells the classes apart.
    """
    found = decompose(model, inputs, mask, rules={"relu": relu})
    parts = [
        (part - part.mean(1, keepdim=True)).abs().sum(1)
        for part in (found.relevant, found.irrelevant)
    ]
    return parts[0] / (parts[0] + parts[1]).clamp_min(torch.finfo(inputs.dtype).tiny)


def gradcam(model: nn.Module, inputs: Tensor, classes: Tensor) -> Tensor:
    """Grad-CAM at the last layer that yields a map, of the centred logit of each `classes`.

    Source: Selvaraju et al. 2017, as captum computes it; enlarged bilinearly to the inputs' size.

    Args:
        model: in evaluation mode, maps `[N, C, H, W]` to logits.
        inputs: `[N, C, H, W]`.
        classes: int64 `[N]`.

    Returns:
        `[N, H, W]`, 0 or more, no unit.

    Raises:
        ConfigError: no layer yields a map of more than one pixel, or captum is not installed.
    """
    try:
        from captum.attr import LayerAttribution, LayerGradCam
    except ImportError as error:
        raise ConfigError(
            "Grad-CAM needs captum, which is not installed: pip install 'cdep-run[evidence]'"
        ) from error
    whole = Centred(model)
    explainer = LayerGradCam(whole, last_map(whole, inputs[:1]))
    found = explainer.attribute(inputs, target=classes, relu_attributions=True)
    heat = LayerAttribution.interpolate(found, tuple(inputs.shape[2:]), "bilinear")
    return heat[:, 0].detach()


@torch.no_grad()
def last_map(model: nn.Module, inputs: Tensor) -> nn.Module:
    """The innermost module, last in the forward pass, that yields `[N, C, H, W]`, H · W > 1."""
    seen: list[nn.Module] = []

    def note(module: nn.Module, given: object, output: object) -> None:
        if isinstance(output, Tensor) and output.dim() == 4 and output[0, 0].numel() > 1:
            seen.append(module)

    leaves = [module for module in model.modules() if not list(module.children())]
    hooks = [module.register_forward_hook(note) for module in leaves]
    try:
        model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    if not seen:
        raise ConfigError("Grad-CAM needs a model with a layer that yields maps [N, C, H, W]")
    return seen[-1]


def gradient(model: nn.Module, inputs: Tensor, classes: Tensor) -> Tensor:
    """|∂ centred logit of each `classes` / ∂x|, summed over channels; `[N, H, W]`."""
    _, found = input_gradients(
        Centred(model), inputs, lambda logits: logits.gather(1, classes[:, None]).sum()
    )
    return found.detach().abs().sum(1)


def inside(heat: Tensor, mask: Tensor) -> Tensor:
    """Share of a heat map `[N, H, W]`, 0 or more, inside `mask` `[N, H, W]`; NaN of a map of 0."""
    return (heat * mask).sum((1, 2)) / heat.sum((1, 2))


def log_odds(logits: Tensor, classes: Tensor) -> Tensor:
    """log p_y / (1 − p_y) of each `classes`; `[N]`. Of two classes: y's logit minus the other's."""
    own = logits.gather(1, classes[:, None]).squeeze(1)
    others = logits.scatter(1, classes[:, None], -torch.inf)
    return own - others.logsumexp(1)


RESOLUTION = 75
"""Pixels along the shorter side at which holes are filled: skin behind a sticker has no detail."""


def painted_over(image: Tensor, mask: Tensor) -> Tensor:
    """An image with a region filled in from around it, by biharmonic inpainting (scikit-image).

    The region is grown by a sixtieth of the image's shorter side, as an edge left over would show
    what was there. Biharmonic inpainting goes on with the slope at the edge of the hole, so that a
    hole at the image's border and single hairs grow into strong colours; so the image is mirrored
    at its borders, and smoothed at the scale at which the hole is filled.

    Args:
        image: `[C, H, W]`, in whatever unit: the result follows any affine change of it.
        mask: bool `[H, W]`, True in the region.

    Returns:
        `[C, H, W]`; pixels outside the grown region are untouched.

    Raises:
        ValueError: nothing is left outside the region.
    """
    from skimage.restoration import inpaint_biharmonic

    height, width = mask.shape
    step, margin = max(1, min(height, width) // RESOLUTION), min(height, width) // 60
    hole = mask.numpy()
    hole = binary_dilation(hole, iterations=margin) if margin else hole
    if hole.all():
        raise ValueError("the region to be painted over covers the whole image")
    known = image.double().permute(1, 2, 0).numpy()
    weight = np.maximum(gaussian_filter((~hole).astype(float), step), 1e-9)
    outside = np.where(hole[..., None], 0, known)
    smooth = gaussian_filter(outside, (step, step, 0)) / weight[..., None]
    around = [(height // 2, height // 2), (width // 2, width // 2)]
    small = np.pad(smooth, [*around, (0, 0)], mode="symmetric")[::step, ::step]
    small_hole = np.pad(hole, around, mode="symmetric")[::step, ::step]
    filled = inpaint_biharmonic(small, small_hole, channel_axis=-1)
    sizes = height + 2 * (height // 2), width + 2 * (width // 2)
    scale = [size / now for size, now in zip(sizes, filled.shape, strict=False)]
    large = zoom(filled, [*scale, 1], order=1)
    part = large[around[0][0] :, around[1][0] :][:height, :width]
    painted = torch.from_numpy(np.where(hole[..., None], part, known))
    return painted.permute(2, 0, 1).to(image.dtype)


def sensitivity(model: nn.Module, inputs: Tensor, classes: Tensor) -> Tensor:
    """|∂ log p_y/∂x|, summed over channels: how strongly each pixel moves the prediction.

    Args:
        model: maps `[N, C, H, W]` to logits.
        inputs: `[N, C, H, W]`.
        classes: y, int64 `[N]`.

    Returns:
        `[N, H, W]`, each example divided by its largest value; no unit, in [0, 1].
    """
    _, gradient = input_gradients(
        model, inputs, lambda logits: -F.cross_entropy(logits, classes, reduction="sum")
    )
    heat = gradient.detach().abs().sum(1)
    return heat / heat.amax((1, 2), keepdim=True).clamp_min(torch.finfo(heat.dtype).tiny)
