"""The reference of benchmarks.attacks: deep leakage from gradients as its authors run it, in PyTorch eager.

It was written from the description in Zhu, Liu and Han (NeurIPS 2019), algorithm
1 and section 4: dummy data and label logits from N(0, 1), and 300 steps of
L-BFGS with PyTorch's defaults. It takes three of the example's networks, softmax,
mlp and lenet, with the weights that they have in PaddlePaddle.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.nn.functional import log_softmax, softmax

# The ten digits.
CLASSES = 10
# The steps of L-BFGS, as in the paper.
STEPS = 300
# How much PyTorch's gradients may differ from PaddlePaddle's, relative to their norm, since both round in float32.
_AGREEMENT = 1e-4


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """What the reference recovered, with the names of `dlg.Reconstruction`.

    Attributes
    ----------
    feature : ndarray, shape (B, ...), float32
        The recovered batch.
    label : ndarray, shape (B,), int64
        Its recovered labels.
    evaluations : int
        How often L-BFGS computed the distance and its gradient.
    seconds : float
        Wall time from the random start to the end.
    trace : list of (float, ndarray, ndarray)
        Seconds since the start, dummy data and label logits. One at the start,
        and one after each step of L-BFGS.
    """

    feature: np.ndarray
    label: np.ndarray
    evaluations: int
    seconds: float
    trace: list[tuple[float, np.ndarray, np.ndarray]]


def softmax_regression(image: Sequence[int]) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(image), CLASSES))


def mlp(image: Sequence[int]) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(math.prod(image), 256),
        nn.ReLU(),
        nn.Linear(256, 128),
        nn.ReLU(),
        nn.Linear(128, CLASSES),
    )


def lenet(image: Sequence[int]) -> nn.Module:
    layers, (channels, *sides) = [], image
    for stride in (2, 2, 1):
        layers += [nn.Conv2d(channels, 12, 5, stride, 2), nn.Sigmoid()]
        channels, sides = 12, [math.ceil(side / stride) for side in sides]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * math.prod(sides), CLASSES))


NETWORKS = {"softmax": softmax_regression, "mlp": mlp, "lenet": lenet}


def copied_network(
    name: str, weights: Sequence[np.ndarray], images: np.ndarray, labels: np.ndarray, gradients: Sequence[np.ndarray]
) -> nn.Module:
    """A network of this name with PaddlePaddle's weights.

    Parameters
    ----------
    name : str
        One of `NETWORKS`.
    weights : sequence of ndarray
        PaddlePaddle's weights, from the first layer to the last.
    images : ndarray, shape (B, ...), float32
        The batch with which the copy is checked.
    labels : ndarray, shape (B, 1), int64
        Its labels.
    gradients : sequence of ndarray
        PaddlePaddle's gradients of this batch, in the order of `weights`.

    Raises
    ------
    AssertionError
        Where the copy has other gradients than the original.
    """
    network = NETWORKS[name](images.shape[1:])
    with torch.no_grad():
        for parameter, weight in zip(network.parameters(), weights, strict=True):
            parameter.copy_(torch.tensor(torch_layout(weight)))
    check_gradients(name, network, images, labels, gradients)
    return network


def check_gradients(
    name: str, network: nn.Module, images: np.ndarray, labels: np.ndarray, gradients: Sequence[np.ndarray]
) -> None:
    """Raise AssertionError where a network of this name has other gradients than PaddlePaddle's.

    The parameters are those of `copied_network`; the gradients are in the order of the network's parameters.
    """
    loss = nn.functional.cross_entropy(network(torch.tensor(images)), torch.tensor(labels[:, 0]))
    for index, (ours, theirs) in enumerate(zip(torch.autograd.grad(loss, list(network.parameters())), gradients)):
        theirs = torch_layout(theirs)
        error = np.linalg.norm(ours.numpy() - theirs) / np.linalg.norm(theirs)
        if not error <= _AGREEMENT:
            raise AssertionError(
                f"{name}: the gradient of parameter {index} is {error:.1e} off PaddlePaddle's, relative to its norm;"
                f" expected at most {_AGREEMENT:g}, since the weights are the same"
            )


def attack(
    network: nn.Module, gradients: Sequence[np.ndarray], shape: Sequence[int], seed: int, steps: int = STEPS
) -> Reconstruction:
    """Recover a batch of this shape from PaddlePaddle's gradients.

    Parameters
    ----------
    network : torch.nn.Module
        As `copied_network` returns it.
    gradients : sequence of ndarray
        The shared gradients, from the first layer to the last.
    shape : sequence of int
        B, C, H and W.
    seed : int
        Draws the start.
    steps : int
        The steps of L-BFGS. All are taken.

    Raises
    ------
    FloatingPointError
        Where the distance or the dummy data is no longer a number.
    """
    weights = list(network.parameters())
    shared = [torch.tensor(torch_layout(gradient)) for gradient in gradients]
    evaluations = 0
    torch.manual_seed(seed)
    started = time.perf_counter()
    dummy_data = torch.randn(*shape, requires_grad=True)
    dummy_label = torch.randn(shape[0], CLASSES, requires_grad=True)
    optimizer = torch.optim.LBFGS([dummy_data, dummy_label])

    def closure() -> torch.Tensor:
        nonlocal evaluations
        evaluations += 1
        optimizer.zero_grad()
        dummy_gradients = torch.autograd.grad(_loss(network, dummy_data, dummy_label), weights, create_graph=True)
        grad_diff = sum(((ours - theirs) ** 2).sum() for ours, theirs in zip(dummy_gradients, shared))
        grad_diff.backward()
        return grad_diff

    def now() -> tuple[float, np.ndarray, np.ndarray]:
        values = [dummy.detach().numpy().copy() for dummy in (dummy_data, dummy_label)]
        return time.perf_counter() - started, *values

    trace = [now()]
    for step in range(steps):
        # The distance returned is that before the step. NaN in the data after a step makes it NaN at the next step.
        if torch.isnan(optimizer.step(closure)):
            raise FloatingPointError(f"the distance is NaN at step {step + 1} of {steps}")
        trace.append(now())
    seconds, feature, logits = trace[-1]
    if np.isnan(feature).any():
        raise FloatingPointError(f"the data is NaN after step {steps} of {steps}")
    return Reconstruction(feature, logits.argmax(axis=1), evaluations, seconds, trace)


def matching_loss(
    network: nn.Module, gradients: Sequence[np.ndarray], dummy_data: np.ndarray, dummy_label: np.ndarray
) -> float:
    """The gradient-matching loss as this project defines it, B² Σ mean((∇W' − ∇W)²), so that both can be compared."""
    loss = _loss(network, torch.tensor(dummy_data), torch.tensor(dummy_label))
    dummy_gradients = torch.autograd.grad(loss, list(network.parameters()))
    pairs = zip(dummy_gradients, gradients)
    return len(dummy_data) ** 2 * sum(
        float(np.mean((ours.numpy() - torch_layout(theirs)) ** 2)) for ours, theirs in pairs
    )


def _loss(network: nn.Module, data: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """The training loss: the cross entropy with the probabilities of the label logits."""
    return torch.mean(torch.sum(-softmax(label, dim=-1) * log_softmax(network(data), dim=-1), dim=-1))


def torch_layout(array: np.ndarray) -> np.ndarray:
    """A weight or gradient of PaddlePaddle as PyTorch has it: a fully connected layer's is (out, in), not (in, out)."""
    return np.ascontiguousarray(array.T) if array.ndim == 2 else array
