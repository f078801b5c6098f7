"""Draws the README's figures: dlg.png, how the attack works, and result_example.png, a real run.

    python -m images.draw_figures

result_example.png is the progress.png of the command with its defaults, and the
pictures in dlg.png are from the same run.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from PIL import Image

import mnist_example
from dlg.results.folder import write_whole

IMAGES = Path(__file__).resolve().parent
# The iterations whose snapshots are drawn: the start, two on the way and the end.
SNAPSHOTS = (0, 800, 1500, 3000)
# Colours: blue for the participant's side, red for the attacker's, and nearly black for text.
PARTICIPANT = "#2f6f9f"
ATTACKER = "#b5483a"
INK = "#222222"


def box(axes: Axes, x: float, y: float, width: float, height: float, text: str, colour: str) -> None:
    shape = FancyBboxPatch(
        (x, y), width, height, boxstyle="round,pad=0.02,rounding_size=0.12", fc="white", ec=colour, lw=1.8
    )
    axes.add_patch(shape)
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", color=INK, fontsize=10.5)


def arrow(
    axes: Axes, start: tuple, end: tuple, colour: str, text: str = "", text_position: tuple = (0, 0), bend: float = 0
) -> None:
    style = f"arc3,rad={bend}"
    axes.add_patch(
        FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=14, lw=1.8, color=colour, connectionstyle=style)
    )
    axes.text(*text_position, text, ha="center", va="center", color=colour, fontsize=11, weight="bold")


def picture(axes: Axes, x: float, y: float, pixels: np.ndarray) -> None:
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, extent=(x, x + 1, y, y + 1), interpolation="nearest", zorder=2)


def draw_workflow(target: np.ndarray, dummies: list[np.ndarray], file: Path) -> None:
    """Draw the five steps, with pictures of a real run in them."""
    figure, axes = pyplot.subplots(figsize=(11, 7.3))
    axes.text(0.1, 4.75, "participant: one training step", color=PARTICIPANT, fontsize=12, weight="bold")
    picture(axes, 0.3, 3.3, target)
    axes.text(0.8, 3.1, "target data, label", ha="center", va="top", fontsize=10, color=INK)
    box(axes, 3.0, 3.4, 2.0, 0.8, "model F, weights W", PARTICIPANT)
    box(axes, 6.6, 3.4, 2.3, 0.8, "shared gradients ∇W", PARTICIPANT)
    arrow(axes, (1.4, 3.8), (2.95, 3.8), PARTICIPANT, "(1)", (2.15, 4.05))
    arrow(axes, (5.05, 3.8), (6.55, 3.8), PARTICIPANT)

    axes.plot([0.1, 9.9], [2.62, 2.62], color="#bbbbbb", lw=1, ls=(0, (5, 4)))
    axes.text(0.1, 2.3, "attacker: knows F, W and ∇W", color=ATTACKER, fontsize=12, weight="bold")
    picture(axes, 0.3, 0.95, dummies[0])
    axes.text(0.8, 0.75, "dummy data, label (2)", ha="center", va="top", fontsize=10, color=INK)
    box(axes, 3.0, 1.05, 2.0, 0.8, "model F, weights W", ATTACKER)
    box(axes, 6.6, 1.05, 2.3, 0.8, "dummy gradients ∇W′", ATTACKER)
    arrow(axes, (1.4, 1.45), (2.95, 1.45), ATTACKER, "(3)", (2.15, 1.7))
    arrow(axes, (5.05, 1.45), (6.55, 1.45), ATTACKER)
    axes.add_patch(FancyArrowPatch((7.65, 3.35), (7.65, 1.9), arrowstyle="<|-|>", mutation_scale=14, lw=1.8, color=INK))
    axes.text(
        7.8, 2.62, "(4)  D = distance of ∇W′ from ∇W", va="center", fontsize=11, color=INK, backgroundcolor="white"
    )
    arrow(axes, (7.65, 1.0), (0.8, 0.42), ATTACKER, bend=-0.12)
    axes.text(4.4, -0.28, "(5)  step the dummy data and label down D's gradient, and repeat", ha="center", va="center",
              color=ATTACKER, fontsize=11, weight="bold")  # fmt: skip
    for index, (dummy, number) in enumerate(zip(dummies, SNAPSHOTS)):
        picture(axes, 2.3 + 1.5 * index, -1.75, dummy)
        axes.text(2.8 + 1.5 * index, -1.85, f"iteration {number}", ha="center", va="top", fontsize=9, color=INK)
    axes.set(xlim=(0, 11), ylim=(-2.2, 5.1), aspect="equal")
    axes.axis("off")
    _save_figure(figure, file)


def _save_figure(figure: pyplot.Figure, file: Path) -> None:
    content = io.BytesIO()
    # matplotlib's version is left out of the file, so that another version gives the same bytes.
    figure.savefig(content, format="png", dpi=90, bbox_inches="tight", metadata={"Software": None})
    write_whole(file, content.getvalue())


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        mnist_example.main(["--result_dir", folder])
        results = Path(folder)
        (IMAGES / "result_example.png").write_bytes((results / "progress.png").read_bytes())
        target = np.asarray(Image.open(results / "target.png"))[:, :28]
        dummies = [np.asarray(Image.open(results / f"result_{n}.png"))[:, :28] for n in SNAPSHOTS]
    draw_workflow(target, dummies, IMAGES / "dlg.png")


if __name__ == "__main__":
    main()
