"""The attacks that are compared on a target: this project's, and the reference of the paper's authors in PyTorch."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import tempfile
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np

import dlg
from benchmarks.targets import Target

# What tables and plots call the reference.
REFERENCE = "torch DLG"


class Found(Protocol):
    """What both attacks return.

    Attributes
    ----------
    feature : ndarray, shape (B, C, H, W)
        The recovered batch.
    label : ndarray, shape (B,), int64
        Its recovered labels.
    evaluations : int
        How often the loss and its gradient were computed.
    seconds : float
        Wall time.
    """

    feature: np.ndarray
    label: np.ndarray
    evaluations: int
    seconds: float


Attack = Callable[[Target], Found]


def run_attack(target: Target, optimizer: str, given: dict[str, Any], folder: str) -> dlg.Reconstruction:
    """Attack a target with this project. Options that are not given have the project's defaults."""
    options = dict(batch_size=target.batch_size, optimizer=optimizer, seed=target.seed, result_dir=folder)
    return dlg.dlg_attack(SimpleNamespace(**options | given), *target.training.attack_arguments)


def attack_with(optimizer: str, given: dict[str, Any]) -> Attack:
    """This project's attack with an optimizer and options. It prints nothing and keeps no files."""

    def attack(target: Target) -> dlg.Reconstruction:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            return run_attack(target, optimizer, given, folder)

    return attack


def attack_by_reference(target: Target) -> Found:
    """Attack a target with the reference."""
    from benchmarks import torch_dlg  # only here: a benchmark without --against torch does not need PyTorch

    network, gradients = reference_network(target)
    return torch_dlg.attack(network, gradients, target.images.shape, target.seed)


def reference_network(target: Target) -> tuple:
    """The target's network in PyTorch, and the gradients that were shared, in the order of its parameters."""
    from benchmarks import torch_dlg

    # PaddlePaddle lists the parameters of a program from the last layer to the first.
    weights = list(reversed(target.training.weights().values()))
    gradients = list(reversed(target.training.step().values()))
    return torch_dlg.copied_network(target.network, weights, target.images, target.labels, gradients), gradients


def check_reference(parser: argparse.ArgumentParser, module: str, chosen: Sequence[str]) -> None:
    """End with an error where PyTorch is missing, or a module of references does not have a network."""
    try:
        known = importlib.import_module(f"benchmarks.{module}").NETWORKS
    except ModuleNotFoundError:
        parser.error("--against torch needs PyTorch: pip install torch (a CPU build will do)")
    unknown = [name for name in chosen if name not in known]
    if unknown:
        parser.error(f"--against torch takes {', '.join(known)}, got {', '.join(unknown)}")
