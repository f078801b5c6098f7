"""What `auto` recovers from convolutional networks.

    python -m benchmarks.convolutions [--network lenet lenet-trained zhu zhu-colour strides-22 ...] [--seeds 20]
        [--batch_size 1] [--data bundled | FOLDER]

Each seed is one target: it draws the images, the weights and the attack's random
numbers. Grey images are digits; colour ones are random crops of scikit-image's
pictures (pip install scikit-image), at least 96 pixels wide, scaled to 32×32.
Trained networks have taken 300 steps of stochastic gradient descent on other
digits. A line for each seed has its PSNR, its verdict, the seconds and the
processor's seconds, which other work on the machine hardly changes; the row of
each network has the share of images from 30 dB on, with Wilson's interval at
95 %, and the medians.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn

from benchmarks.machine import machine
from benchmarks.participant import Participant, fresh_scope, participant
from dlg import dlg_attack
from dlg.graph.values import Network, Value
from dlg.participant import data, networks
from dlg.results import metrics

# The training before the attack on a trained network.
_TRAINING_STEPS = 300
_TRAINING_RATE = 0.05
_TRAINING_BATCH = 64
# Together with the seed, these make the streams of the training batches and of the crops.
_TRAINING_STREAM = 2
_CROP_STREAM = 3
# The pictures that colour targets are cropped from.
_PICTURES = ("astronaut", "chelsea", "coffee", "rocket")
_COLOUR_SIDE = 32
_LEAST_CROP = 96


def two_convolutions(first_stride: int, second_stride: int) -> Network:
    """Convolutions of 16 and 32 filters (3×3) with ReLU, max pooling and a fully connected layer."""

    def network(feature: Value, label: Value) -> tuple[Value, Value]:
        hidden = F.relu(nn.Conv2D(feature.shape[1], 16, 3, stride=first_stride, padding=1)(feature))
        hidden = F.relu(nn.Conv2D(16, 32, 3, stride=second_stride, padding=1)(hidden))
        flat = paddle.flatten(F.max_pool2d(hidden, 2), 1)
        prediction = nn.Linear(flat.shape[1], networks.CLASSES)(flat)
        return prediction, F.cross_entropy(prediction, label)

    return network


def zhu_with_relu(feature: Value, label: Value) -> tuple[Value, Value]:
    """The LeNet of Zhu et al. (2019) with ReLU in the place of the sigmoids."""
    uniform, hidden = nn.initializer.Uniform(-0.5, 0.5), feature
    for stride in (2, 2, 1):
        convolution = nn.Conv2D(
            hidden.shape[1], 12, 5, stride=stride, padding=2, weight_attr=uniform, bias_attr=uniform
        )
        hidden = F.relu(convolution(hidden))
    flat = paddle.flatten(hidden, 1)
    prediction = nn.Linear(flat.shape[1], networks.CLASSES, weight_attr=uniform, bias_attr=uniform)(flat)
    return prediction, F.cross_entropy(prediction, label)


def four_convolutions(feature: Value, label: Value) -> tuple[Value, Value]:
    """A ConvNet: four convolutions of 16 filters (3×3), each with ReLU and max pooling, and a fully connected layer."""
    hidden = feature
    for _ in range(4):
        hidden = F.max_pool2d(F.relu(nn.Conv2D(hidden.shape[1], 16, 3, padding=1)(hidden)), 2)
    flat = paddle.flatten(hidden, 1)
    prediction = nn.Linear(flat.shape[1], networks.CLASSES)(flat)
    return prediction, F.cross_entropy(prediction, label)


def small_resnet(feature: Value, label: Value) -> tuple[Value, Value]:
    """A ResNet of 8 layers: three blocks of two convolutions (16, 32 and 64 filters), batch norm in eval mode."""

    def normed(hidden: Value, filters: int, stride: int, size: int = 3) -> Value:
        convolution = nn.Conv2D(hidden.shape[1], filters, size, stride=stride, padding=size // 2, bias_attr=False)
        norm = nn.BatchNorm2D(filters)
        norm.eval()
        return norm(convolution(hidden))

    hidden = F.relu(normed(feature, 16, 1))
    for filters, stride in ((16, 1), (32, 2), (64, 2)):
        branch = normed(F.relu(normed(hidden, filters, stride)), filters, 1)
        shortcut = hidden if stride == 1 else normed(hidden, filters, stride, 1)
        hidden = F.relu(branch + shortcut)
    prediction = nn.Linear(hidden.shape[1], networks.CLASSES)(paddle.mean(hidden, axis=[2, 3]))
    return prediction, F.cross_entropy(prediction, label)


# The network, whether its images are in colour, and whether it is trained before the attack.
NETWORKS: dict[str, tuple[Network, bool, bool]] = {
    "lenet": (networks.cnn, False, False),
    "lenet-trained": (networks.cnn, False, True),
    "strides-11": (two_convolutions(1, 1), False, False),
    "strides-12": (two_convolutions(1, 2), False, False),
    "strides-22": (two_convolutions(2, 2), False, False),
    "zhu": (zhu_with_relu, False, False),
    "zhu-colour": (zhu_with_relu, True, False),
    "zhu-sigmoid-colour": (networks.lenet, True, False),
    "convnet": (four_convolutions, False, False),
    "convnet-colour": (four_convolutions, True, False),
    "resnet8-colour": (small_resnet, True, False),
}


def colour_crops(seed: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Random squares of pictures, (B, 3, 32, 32) in float32, with random labels."""
    import skimage.data
    from skimage.transform import resize

    rng = np.random.default_rng((seed, _CROP_STREAM))
    crops, labels = [], []
    for _ in range(batch_size):
        picture = getattr(skimage.data, _PICTURES[rng.integers(len(_PICTURES))])()[..., :3] / 255
        side = int(rng.integers(_LEAST_CROP, min(picture.shape[:2]) + 1))
        top, left = (int(rng.integers(size - side + 1)) for size in picture.shape[:2])
        crop = picture[top : top + side, left : left + side]
        crops.append(resize(crop, (_COLOUR_SIDE, _COLOUR_SIDE), anti_aliasing=True).transpose(2, 0, 1))
        labels.append(rng.integers(networks.CLASSES, size=1))
    return np.stack(crops).astype(np.float32), np.stack(labels)


def train(trained: Participant, images: np.ndarray, labels: np.ndarray, seed: int) -> None:
    """Take steps of stochastic gradient descent on random batches of these images."""
    rng, scope = np.random.default_rng((seed, _TRAINING_STREAM)), paddle.static.global_scope()
    for _ in range(_TRAINING_STEPS):
        chosen = rng.integers(len(images), size=_TRAINING_BATCH)
        for name, gradient in trained.training.capture(images[chosen], labels[chosen]).items():
            tensor = scope.find_var(name).get_tensor()
            tensor.set(np.array(tensor) - _TRAINING_RATE * gradient, paddle.CPUPlace())


def attack_seed(
    name: str, images: np.ndarray, labels: np.ndarray, batch_size: int, seed: int
) -> tuple[list[float], float, float]:
    """Attack the target of a seed, print its line, and give each image's PSNR, the seconds and the processor's."""
    network, in_colour, is_trained = NETWORKS[name]
    shuffled, shuffled_labels = data.first_batch(images, labels, len(images), seed)
    batch, label = (
        colour_crops(seed, batch_size) if in_colour else (shuffled[:batch_size], shuffled_labels[:batch_size])
    )
    with fresh_scope(), tempfile.TemporaryDirectory() as folder:
        target = participant(network, batch, label, seed)
        if is_trained:
            train(target, shuffled[batch_size:], shuffled_labels[batch_size:], seed)
        options = SimpleNamespace(batch_size=len(batch), result_dir=folder, optimizer="auto", seed=seed)
        before = time.process_time()
        found = dlg_attack(options, *target.attack_arguments)
        processor = time.process_time() - before
    psnrs = [each.psnr for each in metrics.compare(batch, found.feature)]
    reached = ", ".join(f"{psnr:.1f} dB" for psnr in psnrs)
    took = f"{found.seconds:.1f} s, {processor:.1f} s of a processor"
    print(f"{name} seed {seed}: {reached}, {found.verdict}, rank {found.rank}, {took}", flush=True)
    return psnrs, found.seconds, processor


def row(name: str, attack: Callable[[int], tuple[list[float], float, float]], batch_size: int, seeds: int) -> str:
    """Attack all seeds; give the row of the table."""
    by_seed, seconds, processor = zip(*(attack(seed) for seed in range(seeds)))
    psnrs = [psnr for found in by_seed for psnr in found]
    recovered = sum(psnr >= metrics.RECOVERED for psnr in psnrs)
    low, high = metrics.wilson_interval(recovered, len(psnrs))
    times = " | ".join(f"{statistics.median(each):.1f} ({max(each):.1f})" for each in (seconds, processor))
    share = f"{recovered} of {len(psnrs)} | {low:.0%} to {high:.0%}"
    return f"| {name} | {batch_size} | {share} | {statistics.median(psnrs):.1f} dB | {times} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--data", default="bundled")
    args = parser.parse_args()
    paddle.enable_static()
    print(machine())
    images, labels = data.load([args.data])
    rows = [
        row(
            name,
            lambda seed, name=name: attack_seed(name, images, labels, args.batch_size, seed),
            1 if NETWORKS[name][1] else args.batch_size,
            args.seeds,
        )
        for name in args.network
    ]
    times = "seconds, median (most) | processor seconds, median (most)"
    print(f"| network | batch | images ≥ 30 dB | 95 % interval | median PSNR | {times} |")
    print("\n".join(["|---|---|---|---|---|---|---|", *rows]))


if __name__ == "__main__":
    main()
