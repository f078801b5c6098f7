"""Train one step on MNIST as usual, share its gradients, and see what they give away."""

from __future__ import annotations

import os
import signal

if __name__ == "__main__":
    # Until `imports_of` hears it, Ctrl-C just ends the process, without a trace of what was being imported.
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from contextlib import nullcontext

import dlg  # before paddle: it keeps PaddlePaddle's log lines out of the output
from dlg.start_up import REFUSED, imports_of

PROGRAM = "mnist_example.py"

with imports_of(PROGRAM) if __name__ == "__main__" else nullcontext():
    import numpy as np
    import paddle

    from dlg import defenses, random_streams
    from dlg.errors import InputError, error_line, quoted
    from dlg.interrupts import CtrlC
    from dlg.options import (
        AttackOptions,
        OneLineParser,
        add_attack_options,
        argument_type,
        file_path,
        integer_between,
        over_zero,
        true_or_false,
    )
    from dlg.output import forgiving_streams
    from dlg.participant import data, gradient_file
    from dlg.participant.networks import NETWORKS
    from dlg.participant.training_step import TrainingStep
    from dlg.participant.weight_update import local_update
    from dlg.results.outcome import RESULT_FILES, print_outcome, write_results
    from dlg.results.replacement import replaced_results
    from dlg.shared_update import SharedUpdate

IMAGE = (1, 28, 28)
# The learning rate of local steps, as tutorials on federated averaging have it.
LOCAL_LEARNING_RATE = 0.1
# SIGTERM ends an attack as Ctrl-C does, with exit code 143.
EXIT_CODES = {
    "iterations": 0,
    "floor": 0,
    "converged": 0,
    "abandoned": 0,
    "time limit": 0,
    "diverged": 1,
    "interrupted": 130,
}


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = OneLineParser(prog=PROGRAM, description=__doc__)
    training = parser.add_argument_group("training")
    training.add_argument(
        "--use_gpu",
        type=argument_type(true_or_false),
        nargs="?",
        const=True,
        default=False,
        metavar="BOOL",
        help="run on the GPU (default: %(default)s)",
    )
    training.add_argument(
        "--data",
        nargs="+",
        default=["bundled"],
        metavar="SOURCE",
        help="bundled (the sample that comes with the project, the default), mnist (the whole set, downloaded by"
        " PaddlePaddle), a folder with MNIST-named IDX files, or pictures or a folder of them (PNG, JPEG; label from a"
        " leading digit)",
    )
    training.add_argument(
        "--network",
        choices=NETWORKS,
        default="softmax",
        help="which of dlg/participant/networks.py is trained (default: %(default)s)",
    )
    sharing = parser.add_argument_group("sharing")
    sharing.add_argument(
        "--defense",
        type=argument_type(lambda spec: defenses.parse(spec).spec),
        default="none",
        metavar="SPEC",
        help=f"what is done to the gradients before they are shared: {defenses.SPELLINGS} (default: %(default)s)",
    )
    sharing.add_argument(
        "--save_gradients",
        type=argument_type(file_path),
        metavar="FILE",
        help="write the shared gradients to FILE, an .npz",
    )
    sharing.add_argument(
        "--gradients",
        type=argument_type(file_path),
        metavar="FILE",
        help="attack the gradients in FILE, as --save_gradients writes them, instead of training; their target is not"
        " known, so nothing is compared with it",
    )
    updates = parser.add_argument_group("weight updates, in the place of gradients")
    updates.add_argument(
        "--local_steps",
        type=argument_type(integer_between(1)),
        metavar="K",
        help="share the weights after K local steps of SGD, not gradients; with --before and --after, how many steps"
        " lie between them (default there: 1)",
    )
    updates.add_argument(
        "--local_learning_rate",
        type=argument_type(over_zero),
        metavar="R",
        help="the learning rate of the local steps (default: 0.1)",
    )
    updates.add_argument(
        "--local_batch_size",
        type=argument_type(integer_between(1)),
        metavar="M",
        help="how many samples a local step takes, in turn (default: the whole batch)",
    )
    for state in ("before", "after"):
        updates.add_argument(
            f"--{state}",
            type=argument_type(file_path),
            metavar="FILE",
            help=f"attack the update between two files of paddle.save: the weights {state} the local steps",
        )
    add_attack_options(parser.add_argument_group("attack"))
    # By default the attack knows the defence, for a defence is public, and a file of gradients says its batch size.
    parser.set_defaults(knows=None, batch_size=None)
    args = parser.parse_args(argv)
    refuse_conflicts(parser, args)
    args.knows = args.knows or args.defense
    if args.gradients and (args.defense != "none" or args.save_gradients):
        parser.error("--gradients attacks what was shared already; leave --defense and --save_gradients away")
    batch_size, args.batch_size = args.batch_size, args.batch_size or AttackOptions.batch_size
    try:
        # Checked together, and with the defaults that depend on each other.
        args = argparse.Namespace(**vars(args) | dataclasses.asdict(AttackOptions.from_args(args)))
    except InputError as error:
        parser.error(str(error))
    if args.gradients:
        args.batch_size = batch_size
    return args


def refuse_conflicts(parser: OneLineParser, args: argparse.Namespace) -> None:
    """End the command where options do not fit together."""
    if (args.gradients or args.before) and args.data != ["bundled"]:
        parser.error("--data is of a training, and --gradients, --before and --after take its place; leave it away")
    if bool(args.before) != bool(args.after):
        parser.error("--before and --after are the two files of one update; give both")
    is_update = args.before or args.local_steps
    if is_update and (args.gradients or args.save_gradients or args.defense != "none"):
        parser.error("--gradients, --save_gradients and --defense are of gradients, not of updates; leave them away")
    if not is_update and (args.local_learning_rate or args.local_batch_size):
        parser.error("--local_learning_rate and --local_batch_size are of an update; give --local_steps too")


def choose_place(use_gpu: bool) -> paddle.CPUPlace | paddle.CUDAPlace:
    """The device to run on; a GPU that was asked for and is not there is an error."""
    if not use_gpu:
        return paddle.CPUPlace()
    if not paddle.is_compiled_with_cuda():
        raise InputError(
            f"--use_gpu True: this PaddlePaddle {paddle.__version__} is a CPU-only build; install the GPU build"
            " (pip install paddlepaddle-gpu, see PaddlePaddle's installation page), or leave --use_gpu away"
        )
    if paddle.device.cuda.device_count() == 0:
        raise InputError(
            "--use_gpu True: no CUDA device was found; check the driver with nvidia-smi and CUDA_VISIBLE_DEVICES,"
            " or leave --use_gpu away"
        )
    return paddle.CUDAPlace(0)


def train_and_attack(args: argparse.Namespace) -> int:
    """Train a step, attack its gradients and write the results; gives the exit code."""
    place = choose_place(args.use_gpu)
    received = gradient_file.load(args.gradients) if args.gradients else None
    if received:
        if received.feature_shape != IMAGE:
            raise InputError(
                f"{quoted(args.gradients)}: these gradients are of samples shaped {quoted(received.feature_shape)},"
                f" expected {IMAGE}; attack them with dlg.dlg_attack and the network they came from"
            )
        if args.batch_size not in (None, received.batch_size):
            raise InputError(
                f"--batch_size {args.batch_size}: the gradients in {quoted(args.gradients)} are of a batch of"
                f" {received.batch_size}; leave --batch_size away"
            )
        # What they were made of is somebody else's.
        args.batch_size, images, labels = received.batch_size, None, None
    elif args.before:
        images, labels = None, None
    else:
        images, labels = data.first_batch(*data.load(args.data), args.batch_size, args.seed)

    with CtrlC() as ctrl_c:
        try:
            with replaced_results(args.result_dir, RESULT_FILES) as folder:
                ctrl_c.end_at_once_while(folder.is_empty, folder.discard)
                recovered = attack(args, place, images, labels, received)
                # What was recovered is written whole, whoever presses Ctrl-C again.
                ctrl_c.ignore()
                # The participant's look at what the attacker got.
                rows = write_results(folder, vars(args), recovered, images, None if labels is None else labels[:, 0])
        except Exception:
            # PaddlePaddle may turn a KeyboardInterrupt into an error of its own.
            if not ctrl_c.heard:
                raise
            return ctrl_c.exit_code
        except KeyboardInterrupt:
            return ctrl_c.exit_code
    print_outcome(recovered, rows, args.result_dir)
    if recovered.ended == "diverged":
        warn_of_divergence(args, recovered)
    return ctrl_c.exit_code if recovered.ended == "interrupted" else EXIT_CODES[recovered.ended]


def attack(
    args: argparse.Namespace,
    place: paddle.CPUPlace | paddle.CUDAPlace,
    images: np.ndarray | None,
    labels: np.ndarray | None,
    received: gradient_file.SavedGradients | None,
) -> dlg.Reconstruction:
    """Share the gradients of a step, or take those that were received, and attack them."""
    paddle.enable_static()
    training = TrainingStep(NETWORKS[args.network], IMAGE, place, args.seed)
    origin_grad: dict[str, np.ndarray] | SharedUpdate
    rate = args.local_learning_rate or LOCAL_LEARNING_RATE
    if received:
        origin_grad = received.gradients
    elif args.before:
        origin_grad = SharedUpdate(
            args.before, args.after, rate, args.local_steps or 1, local_batch_size=args.local_batch_size
        )
    elif args.local_steps:
        origin_grad = local_update(
            training, images, labels, rate, args.local_steps, local_batch_size=args.local_batch_size
        )
    else:
        # The first step on the first batch. What a participant would share is captured here.
        captured = training.capture(images, labels)
        origin_grad = defenses.parse(args.defense)(captured, random_streams.defense_noise(args.seed))
    if args.save_gradients:
        gradient_file.save(args.save_gradients, origin_grad, args.batch_size, IMAGE)
    try:
        # The attacker is given the model and the gradients, and nothing of the batch but its size.
        return dlg.dlg_attack(args, *training.known, origin_grad)
    except dlg.AttackInterrupted as interruption:
        return interruption.reconstruction


def warn_of_divergence(args: argparse.Namespace, recovered: dlg.Reconstruction) -> None:
    """Say, on standard error, what to do about an attack that diverged."""
    advice = "take another --seed or --optimizer"
    if args.learning_rate:
        advice = f"take a smaller step, such as --learning_rate {max(args.learning_rate / 4, -8.5):g}"
    print(
        f"{PROGRAM}: the attack diverged after iteration {recovered.iterations} (the loss is no longer a"
        f" number); {advice}",
        file=sys.stderr,
    )


def reason(error: Exception) -> str:
    """Why the command ends, and what to do about it."""
    if isinstance(error, MemoryError):
        return "there is not enough memory; take a smaller --batch_size or another --network"
    if isinstance(error, OSError):
        return f"the results cannot be written: {error.strerror or error}; an earlier run's are as they were"
    return str(error)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; gives its exit code. What it refuses is one line on standard error."""
    with forgiving_streams() as output:
        args = parse_args(argv)
        try:
            code = train_and_attack(args)
        except (InputError, OSError, MemoryError) as error:
            sys.stderr.write(error_line(PROGRAM, reason(error)))
            return REFUSED
        output.flush()
        if output.error:
            lost = f"standard output: {output.error.strerror}; the results are in {quoted(str(args.result_dir))}"
            sys.stderr.write(error_line(PROGRAM, lost))
            return code or REFUSED
        return code


if __name__ == "__main__":
    sys.exit(main())
