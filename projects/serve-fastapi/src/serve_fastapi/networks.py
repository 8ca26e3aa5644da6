"""The networks whose weights torch bundles hold, as the projects that train them build them."""

from itertools import pairwise
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F


class SmallCNN(nn.Module):
    """Three 3x3 convolutions, one 2x2 pooling, one linear layer (torch-ddp-train's `cnn`)."""

    def __init__(self, in_channels: int, num_classes: int, width: int):
        super().__init__()
        self.features = nn.Sequential(
            *_conv_norm(in_channels, width),
            nn.ReLU(),
            *_conv_norm(width, 2 * width),
            nn.ReLU(),
            nn.MaxPool2d(2),
            *_conv_norm(2 * width, 2 * width),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(4),
        )
        self.head = nn.Linear(2 * width * 16, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """float [B, C, H, W] -> logits [B, num_classes]."""
        return self.head(self.features(images).flatten(1))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(
            *_conv_norm(in_channels, channels, stride),
            nn.ReLU(),
            *_conv_norm(channels, channels),
        )
        same = stride == 1 and in_channels == channels
        projected = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
        self.shortcut = nn.Identity() if same else projected

    def forward(self, x: Tensor) -> Tensor:
        """float [B, in_channels, H, W] -> [B, channels, H / stride, W / stride]."""
        return F.relu(self.body(x) + self.shortcut(x))


class SmallResNet(nn.Module):
    """Three stages of two residual blocks (torch-ddp-train's `resnet`)."""

    def __init__(self, in_channels: int, num_classes: int, width: int):
        super().__init__()
        self.stem = nn.Sequential(*_conv_norm(in_channels, width), nn.ReLU())
        self.stages = nn.Sequential(
            ResidualBlock(width, width, 1),
            ResidualBlock(width, width, 1),
            ResidualBlock(width, 2 * width, 2),
            ResidualBlock(2 * width, 2 * width, 1),
            ResidualBlock(2 * width, 4 * width, 2),
            ResidualBlock(4 * width, 4 * width, 1),
        )
        self.head = nn.Linear(4 * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """float [B, C, H, W] -> logits [B, num_classes]."""
        return self.head(self.stages(self.stem(images)).mean(dim=(2, 3)))


def build(model: dict[str, Any], shape: list[int], num_classes: int) -> nn.Module:
    """The network that a bundle's `model` describes, without its weights.

    Args:
        model: `name` and sizes.
        shape: (C, H, W) of an image, or (inputs,).
        num_classes: Number of logits.

    Raises:
        ValueError: If the name is none of those above.
    """
    name = model.get("name")
    if name == "perceptron":  # asha-pbt-tune's.
        sizes = [shape[0]] + [model["width"]] * model["num_layers"]
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            # Without dropout's effect, but with its place in the numbering of the layers.
            layers += [nn.Linear(before, after), nn.ReLU(), nn.Identity()]
        return nn.Sequential(*layers, nn.Linear(sizes[-1], num_classes))
    kinds: dict[str, Any] = {"cnn": SmallCNN, "resnet": SmallResNet}
    if name not in kinds:
        raise ValueError(f"model.name is {name}, this code builds {', '.join(kinds)}, perceptron")
    return kinds[name](shape[0], num_classes, model["width"])


def _conv_norm(in_channels: int, channels: int, stride: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False),
        nn.GroupNorm(8, channels),
    ]
