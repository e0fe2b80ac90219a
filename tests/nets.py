"""Small nets, written as users write them, that list their layers for the reference."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reference import Add, Concat


class PaperCNN(nn.Module):
    """The paper's net for digits, with fewer channels: two of conv–ReLU–pool, two linear layers."""

    input_shape = (1, 16, 16)

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 5), nn.Conv2d(4, 5, 3)
        self.fc1, self.fc2 = nn.Linear(5 * 2 * 2, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(torch.relu(self.conv2(x)), 2)
        x = x.view(x.shape[0], -1)
        return self.fc2(self.fc1(x).relu())

    def layers(self) -> list[object]:
        pool, relu = nn.MaxPool2d(2), nn.ReLU()
        head = [nn.Flatten(), self.fc1, relu, self.fc2]
        return [self.conv1, relu, pool, self.conv2, relu, pool, *head]


class SmallVGG(nn.Module):
    """As torchvision writes VGG: in-place ReLUs, dropout, an adaptive pool that does not divide."""

    input_shape = (3, 14, 14)

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2, 2),
            nn.Conv2d(4, 6, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(6, 4, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2, 2),
        )
        self.avgpool = nn.AdaptiveAvgPool2d((2, 2))
        self.classifier = nn.Sequential(
            nn.Linear(16, 8), nn.ReLU(True), nn.Dropout(), nn.Linear(8, 4)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))

    def layers(self) -> list[object]:
        linear1, relu, _, linear2 = self.classifier
        return [self.features, self.avgpool, nn.Flatten(), linear1, relu, linear2]


class ResidualNet(nn.Module):
    """Batch norm, a strided residual block with a projected shortcut, an in-place sum, a concat."""

    input_shape = (2, 12, 12)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.norm1, self.norm2, self.norm3 = (nn.BatchNorm2d(n) for n in (4, 6, 6))
        self.body = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.shortcut = nn.Conv2d(4, 6, 1, stride=2, bias=False)
        self.left, self.right = nn.Conv2d(6, 3, 1), nn.Conv2d(6, 3, 3, padding=1)
        self.head = nn.Linear(6, 3)
        for norm in (self.norm1, self.norm2, self.norm3):
            nn.init.normal_(norm.weight, 1, 0.3)
            nn.init.normal_(norm.bias)
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.stem(x)))
        out = self.norm2(self.body(x))
        out += self.norm3(self.shortcut(x))
        x = F.relu(out)
        x = torch.cat([self.left(x), self.right(x)], dim=1) + x
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))

    def layers(self) -> list[object]:
        block = Add([[self.body, self.norm2], [self.shortcut, self.norm3]])
        mixed = Add([[Concat([[self.left], [self.right]])], []])
        pool = nn.AdaptiveAvgPool2d(1)
        head = [pool, nn.Flatten(), self.head]
        return [self.stem, self.norm1, nn.ReLU(), block, nn.ReLU(), mixed, *head]


class MLP(nn.Module):
    """Linear layers with tanh and sigmoid between them."""

    input_shape = (9,)

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(9, 8), nn.Tanh(), nn.Linear(8, 8), nn.Sigmoid(), nn.Linear(8, 3)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def layers(self) -> list[object]:
        return [self.net]


NETS = [PaperCNN, SmallVGG, ResidualNet, MLP]


def with_head(*layers: nn.Module, input_shape: tuple[int, ...], classes: int = 3) -> nn.Sequential:
    """The layers, then flatten and one linear layer that fits."""
    body = nn.Sequential(*layers, nn.Flatten()).to(torch.get_default_dtype())
    with torch.no_grad():
        width = body.eval()(torch.zeros(1, *input_shape)).shape[1]
    return nn.Sequential(*body, nn.Linear(width, classes)).eval()
