"""A classifier in two: a trunk, frozen or nearly so, that makes features, and a head, trained."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cdep_run.errors import ConfigError
from cdep_run.models.rebuild import rebuilt_by
from cdep_run.models.weights import pretrained
from cdep_run.models.zoo import replace_head

HEADS = ("classifier", "fc", "head", "heads")
"""What torchvision's classifiers call their last part."""


class FrozenTrunk(nn.Module):
    """Logits of images, or of the features that the trunk made of them before.

    The trunk stays in evaluation mode: batch norm normalises by its running statistics.

    Args:
        trunk: maps images `[N, *input_shape]` to features `[N, F]`.
        head: maps features to logits `[N, C]`.
        input_shape: `(3, H, W)`.
        trainable: names of the trunk's modules that are trained, too; empty: none.
    """

    def __init__(
        self,
        trunk: nn.Module,
        head: nn.Module,
        input_shape: tuple[int, ...],
        trainable: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.trunk, self.head, self.trainable = trunk, head, tuple(trainable)
        for name, weight in trunk.named_parameters():
            weight.requires_grad_(self._trained(name))
        self.train()
        with torch.no_grad():
            self.features = trunk(torch.zeros(1, *input_shape)).shape[1]

    def _trained(self, name: str) -> bool:
        return any(f"{name}.".startswith(f"{wanted}.") for wanted in self.trainable)

    def train(self, mode: bool = True) -> FrozenTrunk:
        """Training mode for the head, and of the trunk for what is trained of it."""
        super().train(mode)
        for name, module in self.trunk.named_modules():
            module.training = mode and self._trained(name)
        return self

    @property
    def frozen(self) -> bool:
        """Whether nothing of the trunk is trained, so that its features can be kept."""
        return not self.trainable

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[N, C]` of images `[N, 3, H, W]` in [−1, 1], or of features `[N, F]`."""
        return self.head(self.trunk(x) if x.dim() > 2 else x)


def frozen_trunk(
    input_shape: tuple[int, ...],
    num_classes: int,
    name: str,
    weights: str | None,
    mean: Sequence[float],
    std: Sequence[float],
    trainable: Sequence[str] = (),
) -> FrozenTrunk:
    """A pretrained classifier whose last part is trained anew for our classes.

    Args:
        input_shape: of one image, `(3, H, W)`.
        name: as in `torchvision.models.list_models()`, or "efficientnet_lite0".
        weights: "DEFAULT" (or another of torchvision's names) to download them, a file with a state
            dict, or None for random ones.
        mean, std: of the channels of images in [0, 1], by which the weights want them standardised.
        trainable: names of modules before the head that are trained, too, such as "features.28".

    Raises:
        ConfigError: unknown model or module, or weights that are absent or do not fit.
    """
    if len(input_shape) != 3 or input_shape[0] != 3:
        raise ConfigError(f"model {name} wants colour images, the data have {list(input_shape)}")
    model = pretrained(name, weights)
    replace_head(model, num_classes)
    trunk, head = split(model, input_shape)
    known = dict(model.named_modules())
    for wanted in trainable:
        if wanted not in known or not wanted:
            raise ConfigError(
                f"model.trainable names {wanted!r}; {name} has, before its head, "
                f"{', '.join(n for n in known if n and n.count('.') < 2)}"
            )
    # Images come in [−1, 1]: no pixel is 0 there, and so every constant of the standardisation goes
    # to the part that the pixel belongs to. A batch norm in evaluation mode is the affine map.
    standardise = nn.BatchNorm2d(len(mean), eps=0, affine=False)
    standardise.running_mean = 2 * torch.tensor(mean) - 1
    standardise.running_var = (2 * torch.tensor(std)) ** 2
    layers = {"standardise": standardise, "model": trunk, "flatten": nn.Flatten(1)}
    sequence = nn.Sequential()
    for key, layer in layers.items():
        sequence.add_module(key, layer)
    names = [f"model.{wanted}" for wanted in trainable]
    return rebuilt_by(FrozenTrunk(sequence, head, input_shape, names), weights=None)


def split(model: nn.Module, input_shape: tuple[int, ...]) -> tuple[nn.Module, nn.Module]:
    """`model` without its last part, and that part, which takes the flattened features.

    The model itself is changed: in place of the last part it has an identity.

    Raises:
        ConfigError: no last part of a known name, or something other than flattening follows it.
    """
    name = next((n for n in HEADS if isinstance(getattr(model, n, None), nn.Module)), None)
    if name is None:
        raise ConfigError(f"the model has none of {', '.join(HEADS)}, so nothing to train anew")
    last, seen = getattr(model, name), []
    hook = last.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model.eval()
    with torch.no_grad():
        wanted = model(torch.zeros(1, *input_shape))
        hook.remove()
        head = nn.Sequential(last)
        if seen[0].dim() > 2:
            head.insert(0, nn.Unflatten(1, tuple(seen[0].shape[1:])))
        if last(seen[0]).dim() > 2:
            head.append(nn.Flatten(1))
        setattr(model, name, nn.Identity())
        got = head.eval()(model(torch.zeros(1, *input_shape)).flatten(1))
    if not torch.allclose(got, wanted, atol=1e-5):
        raise ConfigError(f"what follows {name} in the model's forward is more than flattening")
    return model, head
