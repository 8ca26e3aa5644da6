"""The two networks. Both take normalized float images and return class logits.

Normalization is by group, not by batch: batch statistics would differ between workers and change
with the number of workers and with gradient accumulation.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torch_ddp_train.config import ModelConfig


class SmallCNN(nn.Module):
    """Three 3x3 convolutions, one 2x2 pooling, one linear layer."""

    def __init__(self, in_channels: int, num_classes: int, width: int, dropout: float):
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
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(2 * width * 16, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """float [B, C, H, W] -> logits [B, num_classes]."""
        features = self.features(images).flatten(1)  # [B, 32 * width]
        return self.head(self.dropout(features))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al. 2015, https://arxiv.org/abs/1512.03385)."""

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(
            *_conv_norm(in_channels, channels, stride),
            nn.ReLU(),
            *_conv_norm(channels, channels),
        )
        same = stride == 1 and in_channels == channels
        self.shortcut = (
            nn.Identity() if same else nn.Conv2d(in_channels, channels, 1, stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """float [B, in_channels, H, W] -> [B, channels, H / stride, W / stride]."""
        return F.relu(self.body(x) + self.shortcut(x))


class SmallResNet(nn.Module):
    """Three stages of two residual blocks; made for 32x32 images."""

    def __init__(self, in_channels: int, num_classes: int, width: int, dropout: float):
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
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(4 * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """float [B, C, H, W] -> logits [B, num_classes]."""
        features = self.stages(self.stem(images)).mean(dim=(2, 3))  # [B, 4 * width]
        return self.head(self.dropout(features))


def build_model(config: ModelConfig, in_channels: int, num_classes: int) -> nn.Module:
    """The network that `config` names, with fresh weights from torch's global generator.

    Its weights are laid out channels last: a step on CPUs is a fifth faster than with the default.
    """
    kinds: dict[str, type[nn.Module]] = {"cnn": SmallCNN, "resnet": SmallResNet}
    model = kinds[config.name](in_channels, num_classes, config.width, config.dropout)
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def normalize(images: Tensor, mean: float, std: float, device: torch.device) -> Tensor:
    """uint8 [B, C, H, W] -> float32 on `device`, with mean 0 and standard deviation 1."""
    return images.to(device, non_blocking=True).float().sub_(mean).div_(std)


def _conv_norm(in_channels: int, channels: int, stride: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False),
        nn.GroupNorm(8, channels),
    ]
