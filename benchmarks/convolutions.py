"""What `auto` recovers from convolutional networks.

    python -m benchmarks.convolutions [--network lenet lenet-trained zhu zhu-colour strides-22 ...] [--seeds 20]
        [--first_seed 0] [--batch_size 1] [--data bundled | FOLDER] [--time_limit SECONDS] [--against torch]

Each seed is one target: it draws the images, the weights and the attack's random
numbers. Grey images are digits; colour ones are random crops of scikit-image's
pictures (pip install scikit-image), at least 96 pixels wide, scaled to 32×32.
Trained networks have taken 300 steps of stochastic gradient descent on other
digits, or on other crops whose class is the picture. Batch norms are in eval mode; those of
networks called normed have the statistics of other crops and random scales and shifts, those
of trained ones the statistics of other crops. A line for each seed has its PSNR, that of
its seen part, which is the target with black pixels where no gradient depends on
them, its verdict, the rank (of the target itself where the attack failed), the
attack's seconds and the processor's, which other work on the machine hardly
changes; the row of each network has the share of images from 30 dB on, with
Wilson's interval at 95 %, the number of seen parts from 30 dB on, and the medians.

--against torch (pip install torch; a CPU build will do) also attacks each target by
the recipe of Geiping et al. in PyTorch, with the same weights and the true labels,
once for each of three weights of the total variation. Each of these runs has as
many of the processor's seconds as `auto` took. It takes the networks
zhu-colour, zhu-sigmoid-colour, and the residual ones.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn

from benchmarks.attack_target import check_reference
from benchmarks.command import end_with
from benchmarks.machine import machine, machine_with_torch
from benchmarks.participant import Participant, fresh_scope, participant
from dlg import dlg_attack
from dlg.attack.determination import OpenPart, open_part, seen_numbers
from dlg.attack.objective import build_precise_objective
from dlg.attack.verdict import FAILED
from dlg.graph.values import Network, Value
from dlg.options import OneLineParser, argument_type, integer_between, seconds
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
# How many crops the statistics of batch norms are those of, and the first of their seeds, which no target has.
_NORM_CROPS = 32
_FIRST_NORM_CROP = 1000
# How many crops a network is trained on, the first of their seeds, and how many there are in a step.
_TRAINING_CROPS = 256
_FIRST_TRAINING_CROP = 100_000
_TRAINING_CROPS_IN_STEP = 16
# Together with the seed, this makes the stream of their scales and shifts.
_NORM_STREAM = 4
# Between what the scales lie, and the standard deviation of the shifts.
_NORM_SCALES = (0.5, 1.5)
_NORM_SHIFTS = 0.2


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


def four_convolutions(pooling: Callable[[Value, int], Value]) -> Network:
    """A ConvNet: four convolutions of 16 filters (3×3), each with ReLU and a pooling, and a fully connected layer."""

    def network(feature: Value, label: Value) -> tuple[Value, Value]:
        hidden = feature
        for _ in range(4):
            hidden = pooling(F.relu(nn.Conv2D(hidden.shape[1], 16, 3, padding=1)(hidden)), 2)
        flat = paddle.flatten(hidden, 1)
        prediction = nn.Linear(flat.shape[1], networks.CLASSES)(flat)
        return prediction, F.cross_entropy(prediction, label)

    return network


def resnet8(*, training: bool) -> Network:
    """The residual network of 8 layers of He et al. (2016, section 4.2): 16, 32 and 64 filters, a block of each."""

    def convolution(hidden: Value, filters: int, size: int, stride: int) -> Value:
        options = {"stride": stride, "padding": size // 2, "bias_attr": False}
        return _norm(filters, training)(nn.Conv2D(hidden.shape[1], filters, size, **options)(hidden))

    def network(feature: Value, label: Value) -> tuple[Value, Value]:
        hidden = F.relu(convolution(feature, 16, 3, 1))
        for filters, stride in ((16, 1), (32, 2), (64, 2)):
            shortcut = hidden if stride == 1 else convolution(hidden, filters, 1, stride)
            hidden = convolution(F.relu(convolution(hidden, filters, 3, stride)), filters, 3, 1)
            hidden = F.relu(hidden + shortcut)
        prediction = nn.Linear(64, networks.CLASSES)(paddle.flatten(F.adaptive_avg_pool2d(hidden, 1), 1))
        return prediction, F.cross_entropy(prediction, label)

    return network


def resnet18(*, training: bool) -> Network:
    """`paddle.vision.models.resnet18`."""

    def network(feature: Value, label: Value) -> tuple[Value, Value]:
        model = paddle.vision.models.resnet18(num_classes=networks.CLASSES)
        for layer in model.sublayers():
            if isinstance(layer, nn.BatchNorm2D):
                _set_mode(layer, training)
        prediction = model(feature)
        return prediction, F.cross_entropy(prediction, label)

    return network


def _norm(channels: int, training: bool) -> nn.Layer:
    norm = nn.BatchNorm2D(channels)
    _set_mode(norm, training)
    return norm


def _set_mode(norm: nn.BatchNorm2D, training: bool) -> None:
    """Eval mode, or a training mode that takes the statistics of its batch as they are."""
    if training:
        norm._momentum = 0.0
    else:
        norm.eval()


@dataclasses.dataclass(frozen=True)
class Case:
    """A network, and how its targets are prepared.

    Attributes
    ----------
    network : Network
    in_colour : bool
        Whether its images are in colour.
    is_trained : bool
        Whether it is trained before the attack.
    in_training_mode : Network or None
        The same network whose batch norms take their statistics. They are then
        set before the attack, to those of random crops, with random scales and
        shifts unless the network is trained.
    """

    network: Network
    in_colour: bool = False
    is_trained: bool = False
    in_training_mode: Network | None = None


NETWORKS = {
    "lenet": Case(networks.cnn),
    "lenet-trained": Case(networks.cnn, is_trained=True),
    "strides-11": Case(two_convolutions(1, 1)),
    "strides-12": Case(two_convolutions(1, 2)),
    "strides-22": Case(two_convolutions(2, 2)),
    "zhu": Case(zhu_with_relu),
    "zhu-colour": Case(zhu_with_relu, in_colour=True),
    "zhu-sigmoid-colour": Case(networks.lenet, in_colour=True),
    "convnet": Case(four_convolutions(F.max_pool2d)),
    "convnet-colour": Case(four_convolutions(F.max_pool2d), in_colour=True),
    "convnet-average": Case(four_convolutions(F.avg_pool2d)),
    "resnet8-colour": Case(resnet8(training=False), in_colour=True),
    "resnet8-normed": Case(resnet8(training=False), in_colour=True, in_training_mode=resnet8(training=True)),
    "resnet8-trained": Case(
        resnet8(training=False), in_colour=True, is_trained=True, in_training_mode=resnet8(training=True)
    ),
    "resnet18-colour": Case(resnet18(training=False), in_colour=True),
    "resnet18-normed": Case(resnet18(training=False), in_colour=True, in_training_mode=resnet18(training=True)),
}


def colour_crops(seed: int, batch_size: int, *, by_picture: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Random squares of pictures, (B, 3, 32, 32) in float32, with random labels or the pictures' numbers."""
    import skimage.data
    from skimage.transform import resize

    rng = np.random.default_rng((seed, _CROP_STREAM))
    crops, labels = [], []
    for _ in range(batch_size):
        number = int(rng.integers(len(_PICTURES)))
        picture = getattr(skimage.data, _PICTURES[number])()[..., :3] / 255
        side = int(rng.integers(_LEAST_CROP, min(picture.shape[:2]) + 1))
        top, left = (int(rng.integers(size - side + 1)) for size in picture.shape[:2])
        crop = picture[top : top + side, left : left + side]
        crops.append(resize(crop, (_COLOUR_SIDE, _COLOUR_SIDE), anti_aliasing=True).transpose(2, 0, 1))
        drawn = rng.integers(networks.CLASSES, size=1)
        labels.append(np.array([number]) if by_picture else drawn)
    return np.stack(crops).astype(np.float32), np.stack(labels)


def train(trained: Participant, images: np.ndarray, labels: np.ndarray, seed: int) -> None:
    """Take steps of stochastic gradient descent on random batches of these images."""
    rng, scope = np.random.default_rng((seed, _TRAINING_STREAM)), paddle.static.global_scope()
    for _ in range(_TRAINING_STEPS):
        chosen = rng.integers(len(images), size=_TRAINING_BATCH)
        for name, gradient in trained.training.capture(images[chosen], labels[chosen]).items():
            tensor = scope.find_var(name).get_tensor()
            tensor.set(np.array(tensor) - _TRAINING_RATE * gradient, paddle.CPUPlace())


def set_norms(target: Participant, in_training_mode: Network, seed: int) -> None:
    """Draw the scales and shifts of batch norms, and set their statistics to those of random crops."""
    rng, scope = np.random.default_rng((seed, _NORM_STREAM)), paddle.static.global_scope()
    for name, weights in sorted(target.weights().items()):
        is_scale, is_shift = (name.startswith("batch_norm") and name.endswith(end) for end in (".w_0", ".b_0"))
        if is_scale or is_shift:
            drawn = (
                rng.uniform(*_NORM_SCALES, weights.shape) if is_scale else rng.normal(0, _NORM_SHIFTS, weights.shape)
            )
            scope.find_var(name).get_tensor().set(drawn.astype(weights.dtype), paddle.CPUPlace())
    set_statistics(target, in_training_mode, seed)


def set_statistics(target: Participant, in_training_mode: Network, seed: int) -> None:
    """Set the statistics of batch norms to those of random crops."""
    first = _FIRST_NORM_CROP + _NORM_CROPS * seed
    images, labels = many_crops(first, _NORM_CROPS)
    program, _, loss = in_program(in_training_mode, images)
    target.training.exe.run(program, feed={"img": images, "label": labels}, fetch_list=[loss])


def train_on_crops(target: Participant, in_training_mode: Network, seed: int) -> None:
    """Take steps of stochastic gradient descent on random batches of crops, from new weights."""
    rng = np.random.default_rng((seed, _TRAINING_STREAM))
    images, labels = many_crops(_FIRST_TRAINING_CROP + _TRAINING_CROPS * seed, _TRAINING_CROPS)
    program, startup, loss = in_program(in_training_mode, images, _TRAINING_RATE)
    # The startup program draws the weights anew, along with making the learning rate.
    paddle.seed(seed)
    target.training.exe.run(startup)
    for _ in range(_TRAINING_STEPS):
        chosen = rng.integers(len(images), size=_TRAINING_CROPS_IN_STEP)
        target.training.exe.run(program, feed={"img": images[chosen], "label": labels[chosen]}, fetch_list=[loss])
    set_statistics(target, in_training_mode, seed)


def many_crops(first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Crops of these seeds, whose labels are their pictures."""
    images, labels = zip(*(colour_crops(first + number, 1, by_picture=True) for number in range(count)))
    return np.concatenate(images), np.concatenate(labels)


def in_program(
    network: Network, images: np.ndarray, rate: float | None = None
) -> tuple[paddle.static.Program, paddle.static.Program, Value]:
    """A network's program, with steps of descent where there is a rate, its startup program, and its loss."""
    program, startup = paddle.static.Program(), paddle.static.Program()
    # Names are generated anew, so that the variables are those of the target's program.
    with paddle.static.program_guard(program, startup), paddle.utils.unique_name.guard():
        feature = paddle.static.data("img", [None, *images.shape[1:]], str(images.dtype))
        label = paddle.static.data("label", [None, 1], "int64")
        _, loss = network(feature, label)
        if rate is not None:
            paddle.optimizer.SGD(rate).minimize(loss)
    return program, startup, loss


def rank_at(target: Participant, images: np.ndarray, labels: np.ndarray) -> OpenPart:
    """What the gradients leave open of the target itself, as if it had been found."""
    objective = build_precise_objective(target.shared_step(), fixed_label=labels.ravel())
    return open_part(objective, [images.astype(np.float64)], float(np.finfo(np.float32).eps))


def seen_part(target: Participant, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The target itself, with the pixels at 0 that no gradient depends on."""
    objective = build_precise_objective(target.shared_step(), fixed_label=labels.ravel())
    return images * seen_numbers(objective, images.astype(np.float64))


@dataclasses.dataclass(frozen=True)
class Attacked:
    """What an attack on the target of a seed reached.

    Attributes
    ----------
    psnrs : list of float
        Of each image.
    seen : list of float
        The PSNR that each image's seen part has, see `seen_part`.
    seconds, processor : float
        Of the wall clock, and of a processor.
    """

    psnrs: list[float]
    seen: list[float]
    seconds: float
    processor: float


def attack_seed(
    name: str,
    images: np.ndarray,
    labels: np.ndarray,
    batch_size: int,
    seed: int,
    *,
    with_reference: bool,
    time_limit: float | None,
) -> dict[str, Attacked]:
    """Attack the target of a seed, and print a line for each attack; give what each reached, by the name of its row."""
    case = NETWORKS[name]
    shuffled, shuffled_labels = data.first_batch(images, labels, len(images), seed)
    batch, label = (
        colour_crops(seed, batch_size, by_picture=case.is_trained)
        if case.in_colour
        else (shuffled[:batch_size], shuffled_labels[:batch_size])
    )
    with fresh_scope(), tempfile.TemporaryDirectory() as folder:
        target = participant(case.network, batch, label, seed)
        if case.is_trained and case.in_training_mode is not None:
            train_on_crops(target, case.in_training_mode, seed)
        elif case.is_trained:
            train(target, shuffled[batch_size:], shuffled_labels[batch_size:], seed)
        elif case.in_training_mode is not None:
            set_norms(target, case.in_training_mode, seed)
        options = SimpleNamespace(
            batch_size=len(batch), result_dir=folder, optimizer="auto", seed=seed, time_limit=time_limit
        )
        before = time.process_time()
        found = dlg_attack(options, *target.attack_arguments)
        processor = time.process_time() - before
        rank = f"rank {found.rank}"
        if found.verdict == FAILED:
            part = rank_at(target, batch, label)
            rank = f"rank at the target {'not known' if part.rank is None else part.rank} of {batch.size}"
        shown = seen_part(target, batch, label)
        auto = Attacked(_psnrs(batch, found.feature), _psnrs(batch, shown), found.seconds, processor)
        _print_line(f"{name} seed {seed}", auto, f"{found.verdict}, {rank}")
        attacked = {name: auto}
        if with_reference:
            attacked |= attack_by_reference(name, target, batch, label, seed, auto)
    return attacked


def attack_by_reference(
    name: str, target: Participant, images: np.ndarray, labels: np.ndarray, seed: int, auto: Attacked
) -> dict[str, Attacked]:
    """Attack a target by the reference, for as long as `auto` took; see `attack_seed`."""
    from benchmarks import torch_dlg, torch_geiping  # only here: a benchmark without --against torch needs no PyTorch

    scope, shared = paddle.static.global_scope(), target.step()
    network, names = torch_geiping.copied_network(name, lambda each: np.array(scope.find_var(each).get_tensor()))
    gradients = [shared[each] for each in names]
    torch_dlg.check_gradients(name, network, images, labels, gradients)
    attacked = {}
    for weight in torch_geiping.TOTAL_VARIATIONS:
        found = torch_geiping.attack(network, gradients, labels, images.shape, seed, weight, auto.processor)
        row_name = f"{name}, Geiping et al. with TV {weight:g}"
        attacked[row_name] = Attacked(_psnrs(images, found.feature), auto.seen, found.seconds, found.processor)
        reached = f"cosine distance {found.distance:.1e} after {found.iterations} steps"
        _print_line(f"{row_name}, seed {seed}", attacked[row_name], reached)
    return attacked


def _psnrs(images: np.ndarray, found: np.ndarray) -> list[float]:
    return [each.psnr for each in metrics.compare(images, found)]


def _print_line(name: str, attacked: Attacked, ended: str) -> None:
    reached, held = (", ".join(map(metrics.decibels, each)) for each in (attacked.psnrs, attacked.seen))
    took = f"{attacked.seconds:.1f} s, {attacked.processor:.1f} s of a processor"
    print(f"{name}: {reached} (seen part {held}), {ended}, {took}", flush=True)


def row(name: str, found: Sequence[Attacked], batch_size: int) -> str:
    """The row of the table of what an attack reached on all seeds."""
    psnrs, in_seen = [psnr for each in found for psnr in each.psnrs], [psnr for each in found for psnr in each.seen]
    recovered, seen = (sum(psnr >= metrics.RECOVERED for psnr in each) for each in (psnrs, in_seen))
    low, high = metrics.wilson_interval(recovered, len(psnrs))
    times = " | ".join(
        f"{statistics.median(each):.1f} ({max(each):.1f})"
        for each in ([one.seconds for one in found], [one.processor for one in found])
    )
    share = f"{recovered} of {len(psnrs)} | {low:.0%} to {high:.0%} | {seen}"
    return f"| {name} | {batch_size} | {share} | {statistics.median(psnrs):.1f} dB | {times} |"


def main() -> None:
    parser = OneLineParser(
        prog="python -m benchmarks.convolutions",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--network", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--seeds", type=argument_type(integer_between(1)), default=20)
    parser.add_argument("--first_seed", type=argument_type(integer_between(0)), default=0)
    parser.add_argument("--batch_size", type=argument_type(integer_between(1)), default=1)
    parser.add_argument("--data", default="bundled")
    parser.add_argument(
        "--time_limit", type=argument_type(seconds), help="of each attack, in seconds of the clock (none by default)"
    )
    parser.add_argument("--against", choices=["torch"])
    args = parser.parse_args()
    if args.against:
        check_reference(parser, "torch_geiping", args.network)
    paddle.enable_static()
    images, labels = data.load([args.data])
    print(machine_with_torch() if args.against else machine())
    rows = []
    for name in args.network:
        found = [
            attack_seed(
                name,
                images,
                labels,
                args.batch_size,
                seed,
                with_reference=bool(args.against),
                time_limit=args.time_limit,
            )
            for seed in range(args.first_seed, args.first_seed + args.seeds)
        ]
        rows += [row(each, [one[each] for one in found], args.batch_size) for each in found[0]]
    times = "seconds, median (most) | processor seconds, median (most)"
    print(f"| network | batch | images ≥ 30 dB | 95 % interval | of the seen part | median PSNR | {times} |")
    print("\n".join(["|---|---|---|---|---|---|---|---|", *rows]))


if __name__ == "__main__":
    end_with(main, "python -m benchmarks.convolutions")
