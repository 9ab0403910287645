"""A small encoder for tests of methods."""

from torch import nn


class TinyEncoder(nn.Module):
    """What methods need of an encoder, at a size where float64 on one core is quick."""

    num_features = 12
    channels = 3
    mean = std = (0.5, 0.5, 0.5)

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, self.num_features, 3, stride=2),
            nn.BatchNorm2d(self.num_features),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )

    def forward(self, images):
        return self.layers(images)
