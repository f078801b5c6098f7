"""Networks in PyTorch eager, and the timed iteration of the attack on them, for benchmarks' --against torch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn


def softmax() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))


def lenet() -> nn.Module:
    layers = []
    for inner, stride in ((1, 2), (12, 2), (12, 1)):
        layers += [nn.Conv2d(inner, 12, 5, stride, 2), nn.Sigmoid()]
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(588, 10))
    for parameter in network.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5)
    return network


class Block(nn.Module):
    """ResNet's basic block."""

    def __init__(self, inner: int, width: int, stride: int) -> None:
        super().__init__()
        # The shortcut is the first, as in PaddlePaddle, where layers are numbered in the order in which they are made.
        self.shortcut = nn.Identity()
        if stride != 1 or inner != width:
            self.shortcut = nn.Sequential(nn.Conv2d(inner, width, 1, stride, bias=False), nn.BatchNorm2d(width))
        self.first, self.norm = nn.Conv2d(inner, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.second, self.second_norm = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.norm(self.first(x)))
        return torch.relu(self.second_norm(self.second(hidden)) + self.shortcut(x))


def resnet8() -> nn.Module:
    """The network of 8 layers of He et al. (2016, section 4.2), for images in colour."""
    stem = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    blocks = [Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def resnet18() -> nn.Module:
    blocks, inner = [], 64
    for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        blocks += [Block(inner, width, stride), Block(width, width, 1)]
        inner = width
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


NETWORKS = {"softmax": softmax, "lenet": lenet, "resnet18": resnet18}


def descending(name: str, images: np.ndarray, labels: np.ndarray, learning_rate: float) -> Callable[[int], None]:
    """The attack on a network of this name from a random start, as a function that continues it."""
    torch.manual_seed(0)
    network = NETWORKS[name]()
    weights = list(network.parameters())
    loss = nn.functional.cross_entropy(network(torch.tensor(images)), torch.tensor(labels[:, 0]))
    shared = [gradient.detach() for gradient in torch.autograd.grad(loss, weights)]
    data = (0.1 * torch.randn(images.shape)).requires_grad_(True)
    label = torch.zeros(len(images), 10, requires_grad=True)

    def iterate(iterations: int) -> None:
        for _ in range(iterations):
            loss = nn.functional.cross_entropy(network(data), torch.softmax(label, dim=1))
            gradients = torch.autograd.grad(loss, weights, create_graph=True)
            distance = sum(((ours - theirs) ** 2).mean() for ours, theirs in zip(gradients, shared)) * len(images) ** 2
            data_step, label_step = torch.autograd.grad(distance, [data, label])
            with torch.no_grad():
                data.add_(data_step, alpha=learning_rate)
                label.add_(label_step, alpha=learning_rate)

    return iterate
