"""An attack on digits, as many tests run it."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import paddle
from benchmarks.participant import Participant

from dlg import Reconstruction, dlg_attack
from dlg.attack.shared_step import SharedStep
from dlg.defenses import parse
from dlg.participant import data
from dlg.results import metrics


def digits(batch_size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The first bundled digits after a shuffle with this seed."""
    return data.first_batch(*data.load(["bundled"]), batch_size, seed)


def middles_of_digits(batch_size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The middle 14 by 14 pixels of these digits. An attack on LeNet takes a fifth of the time with them."""
    images, labels = digits(batch_size, seed)
    return images[..., 7:21, 7:21].copy(), labels


def attack(trained: Participant, folder: object, **options: object) -> Reconstruction:
    """Attack the participant's next step; the results go into the folder."""
    args = SimpleNamespace(batch_size=trained.batch_size, result_dir=folder, **options)
    return dlg_attack(args, *trained.attack_arguments)


def defended_step(trained: Participant, spec: str) -> SharedStep:
    """The participant's next step behind a defence, which the attacker is told."""
    defense = parse(spec)
    shared = defense(trained.step(), np.random.default_rng(0))
    return dataclasses.replace(trained.shared_step(shared), knowledge=defense.knowledge)


def worst_psnr(images: np.ndarray, labels: np.ndarray, result: Reconstruction) -> float:
    """The lowest PSNR of the batch; every label has to be right."""
    scores = metrics.compare(images, result.feature)
    assert [labels[score.image, 0] for score in scores] == [result.label[score.recovered] for score in scores]
    return min(score.psnr for score in scores)


def shallow_perceptron(feature, label):
    """A network of two fully connected layers, narrow enough for quick tests."""
    hidden = paddle.nn.functional.relu(paddle.nn.Linear(784, 32)(paddle.flatten(feature, 1)))
    prediction = paddle.nn.Linear(32, 10)(hidden)
    return prediction, paddle.nn.functional.cross_entropy(prediction, label)


def perceptron_with_a_frozen_last_layer(feature, label):
    """A network whose last layer has no gradients."""
    hidden = paddle.nn.Linear(784, 10)(paddle.flatten(feature, 1))
    fixed = paddle.ParamAttr(trainable=False)
    prediction = paddle.nn.Linear(10, 10, weight_attr=fixed, bias_attr=fixed)(paddle.tanh(hidden))
    return prediction, paddle.nn.functional.cross_entropy(prediction, label)
