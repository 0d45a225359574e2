"""A small CNN whose first convolution has stride 2: cheap enough to train thousands of times on a CPU."""

from torch import Tensor, nn


class SmallCNN(nn.Module):
    """Two convolutions with batch norm, dropout, one linear layer."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, channels, 4, stride=4, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, 2 * channels, 3, bias=False),
            nn.BatchNorm2d(2 * channels),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(2 * channels * 25, 10),
        )

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.layers(images)
        return out
