"""The small convolutional net of the MNIST experiments."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from cdep_run.errors import ConfigError


class MnistCNN(nn.Module):
    """Conv(20,5)-MaxPool-ReLU-Conv(50,5)-MaxPool-ReLU-FC(hidden)-ReLU-FC(num_classes).

    Pooling before ReLU gives the same outputs as ReLU before pooling, with a quarter of the ReLUs.
    The parts of a contextual decomposition differ, and this order is that of the published CDEP
    code's decomposition. Source: Rieger et al. 2019 (arXiv:1909.13584), Fig. S5. The paper has 256
    hidden units, the published code 500.

    Args:
        input_shape: shape of one image, `(channels, 28, 28)`.
        num_classes: number of logits.
        hidden: units of the first fully connected layer.

    Raises:
        ConfigError: `hidden` is below 1.
    """

    def __init__(
        self, input_shape: tuple[int, ...] = (1, 28, 28), num_classes: int = 10, hidden: int = 256
    ) -> None:
        super().__init__()
        if hidden < 1:
            raise ConfigError(f"model.hidden is {hidden}; it must be at least 1")
        self.conv1 = nn.Conv2d(input_shape[0], 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(50 * 4 * 4, hidden)
        self.fc2 = nn.Linear(hidden, num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits `[N, num_classes]` of images `[N, channels, 28, 28]`."""
        x = F.relu(F.max_pool2d(self.conv1(inputs), 2))
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        x = F.relu(self.fc1(x.flatten(1)))
        return self.fc2(x)
