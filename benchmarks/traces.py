"""An attack over time, the loss and the PSNR at each snapshot, and the plot of several attacks."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.attack_target import REFERENCE, reference_network, run_attack
from benchmarks.targets import Target
from dlg.options import AttackOptions
from dlg.results import metrics
from dlg.results.metrics import RECOVERED

# The PSNR of an image whose pixels were rounded to 8 bits, as a snapshot's are. A closer image cannot be told from an
# equal one by its snapshot.
EIGHT_BITS = 10 * np.log10(12 * 255**2)
# How many snapshots a trace has, where an iteration is so short that one snapshot each would take most of the time.
_SNAPSHOTS = 50
# The optimizers with few and long iterations; they make a snapshot each time.
_LONG_ITERATIONS = ("lm", "auto")
# An attack's line of progress. Where there are several starts, it begins with the start's number.
_PROGRESS_LINE = re.compile(r"(?:start (\d+) of \d+  )?iteration (\d+)  loss ")
# Where the plot's time begins, in seconds. The reference starts within a millisecond, and two decades in which nothing
# happens would take half of the plot.
_EARLIEST = 0.01
# Okabe and Ito (2008), which the colour-blind can tell apart, without their yellow, which is too pale for a line.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_LINE_STYLES = ("-", "--", ":", "-.", (0, (3, 1, 1, 1, 1, 1)), (0, (8, 2)))
# The markers of a line's end; the next one is taken when all colours are used.
_MARKERS = ("o", "s", "^", "D")


@dataclasses.dataclass(frozen=True)
class Trace:
    """One attack on one target over time.

    Attributes
    ----------
    target : str
        The description of the target.
    attack : str
        The name of the attack.
    seconds : list of float
        The time of each snapshot since the attack was called.
    loss : list of float
        The gradient-matching loss at each snapshot.
    psnr : list of float
        The mean PSNR of the batch at each snapshot, in dB, at most `EIGHT_BITS`.
    """

    target: str
    attack: str
    seconds: list[float]
    loss: list[float]
    psnr: list[float]


class StampedLines(io.TextIOBase):
    """A stream that keeps each line with the time at which it was written."""

    def __init__(self) -> None:
        self.lines: list[tuple[float, str]] = []

    def write(self, text: str) -> int:
        self.lines += [(time.perf_counter(), line) for line in text.splitlines() if line]
        return len(text)


def traced_attack(target: Target, optimizer: str, given: dict[str, Any]) -> Trace:
    """Attack a target with this project, with more snapshots than usual.

    Of several starts, the trace has the one that won.
    """
    iterations = given.get("iterations", AttackOptions.iterations)
    every = 1 if optimizer in _LONG_ITERATIONS else max(1, iterations // _SNAPSHOTS)
    stamped, started = StampedLines(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.redirect_stdout(stamped):
            found = run_attack(target, optimizer, given | {"snapshot_every": every}, folder)
        snapshots = [load_snapshot(Path(folder) / f"result_{i}.png", target.images.shape) for i, _ in found.history]
    # The times of the files would not do: the pictures of a later start that wins are all written at its end.
    winner = min(range(len(found.starts)), key=lambda index: found.starts[index].loss)
    seconds = {}
    for stamp, line in stamped.lines:
        progress = _PROGRESS_LINE.match(line)
        if progress and int(progress[1] or 1) == winner + 1:
            seconds[int(progress[2])] = stamp - started
    return Trace(
        target.description,
        optimizer,
        [seconds[iteration] for iteration, _ in found.history],
        [loss for _, loss in found.history],
        [mean_psnr(target.images, snapshot) for snapshot in snapshots],
    )


def traced_reference(target: Target) -> Trace:
    """Attack a target with the reference. Its images are rounded to 8 bits, as this project's snapshots are."""
    from benchmarks import torch_dlg  # only here: a plot without --against torch does not need PyTorch

    network, gradients = reference_network(target)
    steps = torch_dlg.attack(network, gradients, target.images.shape, target.seed).trace
    return Trace(
        target.description,
        REFERENCE,
        [seconds for seconds, _, _ in steps],
        [torch_dlg.matching_loss(network, gradients, values, label) for _, values, label in steps],
        [mean_psnr(target.images, np.rint(np.clip(values, 0, 1) * 255) / 255) for _, values, _ in steps],
    )


def load_snapshot(file: Path, shape: Sequence[int]) -> np.ndarray:
    """The batch in a result_NUM.png, shaped (B, C, H, W), with pixels in [0, 1]."""
    batch = np.stack(np.split(np.asarray(Image.open(file), np.float64) / 255, shape[0], axis=1))
    channels_first = np.moveaxis(batch, -1, 1) if batch.ndim == 4 else batch
    return channels_first.reshape(shape)


def mean_psnr(images: np.ndarray, recovered: np.ndarray) -> float:
    """The mean PSNR over the batch, each image's at most `EIGHT_BITS`."""
    return statistics.mean(min(score.psnr, EIGHT_BITS) for score in metrics.compare(images, recovered))


def draw_plot(traces: Sequence[Trace], file: Path) -> None:
    """Draw the loss and the PSNR over time, side by side, with a line for each trace.

    Targets have a colour each and attacks a line style, or the other way round
    where there are more attacks than targets.
    """
    import matplotlib  # only here: it takes a second, and a table without a plot does not need it

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (loss_axis, psnr_axis) = pyplot.subplots(1, 2, figsize=(11, 4.2), sharex=True, layout="constrained")
    targets = list(dict.fromkeys(trace.target for trace in traces))
    attacks = sorted(dict.fromkeys(trace.attack for trace in traces), key=lambda attack: attack == REFERENCE)
    for trace in traces:
        if len(targets) >= len(attacks):
            by_colour, by_style = targets.index(trace.target), attacks.index(trace.attack)
        else:
            by_colour, by_style = attacks.index(trace.attack), targets.index(trace.target)
        for axis, values in ((loss_axis, trace.loss), (psnr_axis, trace.psnr)):
            _draw_line(axis, trace, values, by_colour, by_style)
    earliest = max(_EARLIEST, min(trace.seconds[0] for trace in traces))
    loss_axis.set(xscale="log", yscale="log", ylabel="gradient-matching loss", xlim=(0.9 * earliest, None))
    psnr_axis.set(ylabel="PSNR (dB), mean over the batch", ylim=(None, EIGHT_BITS + 4))
    _draw_level(psnr_axis, RECOVERED, "-", "recovered")
    _draw_level(psnr_axis, EIGHT_BITS, ":", "the most that 8 bits can tell")
    for axis in (loss_axis, psnr_axis):
        _format_time(axis)
    handles, labels = loss_axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=9)
    figure.savefig(file, dpi=150)
    pyplot.close(figure)


def _draw_line(axis: Any, trace: Trace, values: Sequence[float], by_colour: int, by_style: int) -> None:
    colour = _COLOURS[by_colour % len(_COLOURS)]
    style = _LINE_STYLES[by_style % len(_LINE_STYLES)]
    label = f"{trace.target}: {trace.attack}"
    axis.plot(trace.seconds, values, color=colour, linestyle=style, linewidth=1.6, label=label)
    # A marker at the end, since a line of two points would not be seen as one.
    marker = _MARKERS[by_colour // len(_COLOURS) % len(_MARKERS)]
    axis.plot(trace.seconds[-1:], values[-1:], marker, color=colour, ms=5)


def _draw_level(axis: Any, psnr: float, style: str, words: str) -> None:
    """A horizontal line at a PSNR, with words at its left end."""
    axis.axhline(psnr, color="0.6", linewidth=0.8, linestyle=style, zorder=0)
    left_end = axis.get_yaxis_transform()
    axis.annotate(words, (0.01, psnr), (0, 2), xycoords=left_end, textcoords="offset points", fontsize=8, color="0.4")


def _format_time(axis: Any) -> None:
    """Label the axis of time in seconds, with a grid."""
    from matplotlib import ticker

    axis.set_xlabel("time since the call (s)")
    axis.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter(ticker.NullFormatter())
    axis.grid(alpha=0.25, linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
