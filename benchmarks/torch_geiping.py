"""The reference of benchmarks.convolutions: the attack of Geiping et al. as its authors run it, in PyTorch eager.

It was written from the description in Geiping, Bauermeister, Dröge and Moeller
(NeurIPS 2020), section 4 and the appendix: Adam on the signs of the gradient of
the cosine distance plus a total variation, a step of 0.1 that falls to a tenth
after 3/8, 5/8 and 7/8 of the run, and pixels clipped to their range. The labels
are given, as there. A run ends after a given time, instead of a number of steps.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from benchmarks import torch_dlg, torch_networks

# The weights of the total variation, from what the authors take for small pictures to more; each is tried.
TOTAL_VARIATIONS = (1e-4, 1e-3, 1e-2)
_STEP = 0.1
_DECAY = 0.1
# The parts of a run after which the step falls.
_MILESTONES = (3 / 8, 5 / 8, 7 / 8)
# The attack moves (pixels − mean) / deviation, as the authors' data sets are scaled; about what CIFAR-10 has.
_MEAN = 0.5
_DEVIATION = 0.25
# How PaddlePaddle names the layers, and their parameters and statistics.
_LAYERS = {nn.Conv2d: "conv2d", nn.BatchNorm2d: "batch_norm2d", nn.Linear: "linear"}
_ENDINGS = {"weight": "w_0", "bias": "b_0", "running_mean": "w_1", "running_var": "w_2"}


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """What the reference recovered.

    Attributes
    ----------
    feature : ndarray, shape (B, C, H, W), float32
        The recovered batch.
    iterations : int
        How many steps were taken.
    distance : float
        The cosine distance of the gradients at the last step.
    seconds, processor : float
        Of the wall clock, and of a processor.
    """

    feature: np.ndarray
    iterations: int
    distance: float
    seconds: float
    processor: float


def zhu(activation: Callable[[], nn.Module]) -> nn.Module:
    """The LeNet of Zhu et al. (2019) for 32×32 pixels in colour."""
    layers, channels = [], 3
    for stride in (2, 2, 1):
        layers += [nn.Conv2d(channels, 12, 5, stride, 2), activation()]
        channels = 12
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(12 * 8 * 8, torch_dlg.CLASSES))


# By the names of benchmarks.convolutions.
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "zhu-colour": lambda: zhu(nn.ReLU),
    "zhu-sigmoid-colour": lambda: zhu(nn.Sigmoid),
    "resnet8-colour": torch_networks.resnet8,
    "resnet8-normed": torch_networks.resnet8,
    "resnet18-colour": torch_networks.resnet18,
    "resnet18-normed": torch_networks.resnet18,
}


def copied_network(name: str, value: Callable[[str], np.ndarray]) -> tuple[nn.Module, list[str]]:
    """A network in eval mode, with the weights and statistics that it has in PaddlePaddle.

    Parameters
    ----------
    name : str
        One of `NETWORKS`.
    value : callable str -> ndarray
        Gives a variable of PaddlePaddle by its name.

    Returns
    -------
    network : torch.nn.Module
    names : list of str
        PaddlePaddle's name of each of its parameters.
    """
    network = NETWORKS[name]().eval()
    names, state, made = {}, network.state_dict(), Counter[str]()
    for path, layer in network.named_modules():
        kind = _LAYERS.get(type(layer))
        if kind is None:
            continue
        for ours, ending in _ENDINGS.items():
            if f"{path}.{ours}" in state:
                names[f"{path}.{ours}"] = f"{kind}_{made[kind]}.{ending}"
        made[kind] += 1
    for ours, theirs in names.items():
        state[ours].copy_(torch.tensor(torch_dlg.torch_layout(value(theirs))))
    return network, [names[ours] for ours, _ in network.named_parameters()]


def attack(
    network: nn.Module,
    gradients: Sequence[np.ndarray],
    labels: np.ndarray,
    shape: Sequence[int],
    seed: int,
    total_variation: float,
    seconds: float,
) -> Reconstruction:
    """Recover a batch of pictures in [0, 1] from PaddlePaddle's gradients.

    Parameters
    ----------
    network : torch.nn.Module
        As `copied_network` returns it.
    gradients : sequence of ndarray
        The shared gradients, in the order of the network's parameters.
    labels : ndarray, shape (B, 1), int64
        The labels.
    shape : sequence of int
        B, C, H and W.
    seed : int
        Draws the start.
    total_variation : float
        The weight of the total variation.
    seconds : float
        How many seconds of a processor the attack takes.
    """
    weights, known = list(network.parameters()), torch.tensor(labels[:, 0])
    shared = [torch.tensor(torch_dlg.torch_layout(gradient)) for gradient in gradients]
    norm = math.sqrt(sum(float((gradient**2).sum()) for gradient in shared))
    torch.manual_seed(seed)
    wall, started = time.perf_counter(), time.process_time()
    scaled = torch.randn(*shape, requires_grad=True)
    optimizer = torch.optim.Adam([scaled])
    iterations, distance, part = 0, float("nan"), 0.0
    while part < 1:
        optimizer.param_groups[0]["lr"] = _STEP * _DECAY ** sum(part >= milestone for milestone in _MILESTONES)
        loss = nn.functional.cross_entropy(network(_MEAN + _DEVIATION * scaled), known)
        found = torch.autograd.grad(loss, weights, create_graph=True)
        product = sum((ours * theirs).sum() for ours, theirs in zip(found, shared))
        cosine = 1 - product / (norm * torch.sqrt(sum((ours**2).sum() for ours in found)))
        (gradient,) = torch.autograd.grad(cosine + total_variation * _total_variation(scaled), scaled)
        scaled.grad = gradient.sign()
        optimizer.step()
        with torch.no_grad():
            scaled.clamp_(-_MEAN / _DEVIATION, (1 - _MEAN) / _DEVIATION)
        iterations, distance = iterations + 1, cosine.item()
        part = (time.process_time() - started) / seconds
    feature = (_MEAN + _DEVIATION * scaled).detach().numpy()
    return Reconstruction(feature, iterations, distance, time.perf_counter() - wall, time.process_time() - started)


def _total_variation(pictures: torch.Tensor) -> torch.Tensor:
    """The mean absolute difference of neighbouring pixels, down and across."""
    down, across = pictures.diff(dim=2), pictures.diff(dim=3)
    return down.abs().mean() + across.abs().mean()
