"""A small residual network for images (K. He et al., "Deep Residual Learning for Image Recognition", CVPR 2016).

An ordinary torch module, independent of hpo; studies/residual-cnn.toml searches its arguments.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Two convolutions and a shortcut; the shortcut is a convolution if the shape changes."""

    def __init__(self, channels: int, filters: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, filters, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(filters)
        self.conv2 = nn.Conv2d(filters, filters, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(filters)
        self.shortcut = nn.Identity()
        if stride > 1 or channels != filters:
            self.shortcut = nn.Conv2d(channels, filters, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(out)) + self.shortcut(x))


class ResidualCNN(nn.Module):
    """A convolution, then blocks, each with twice the filters and half the height and width of the last."""

    def __init__(
        self, shape: tuple[int, int, int], classes: int, width: int = 8, blocks: int = 3, dropout: float = 0.0
    ) -> None:
        super().__init__()
        stem = nn.Conv2d(shape[0], width, 3, padding=1, bias=False)
        layers: list[nn.Module] = [stem, nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
        for number in range(blocks):
            filters = width * 2**number
            layers.append(Block(channels, filters, stride=1 if number == 0 else 2))
            channels = filters
        self.layers = nn.Sequential(*layers)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> logits [B, classes]."""
        x = F.adaptive_avg_pool2d(self.layers(x), 1).flatten(1)
        return self.head(self.dropout(x))
