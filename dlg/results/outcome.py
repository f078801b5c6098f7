"""What is said of an attack that has ended: pictures, summary.json, and the comparison with the target in print."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dlg.results import metrics, pictures, progress_figure
from dlg.results.folder import ResultFolder
from dlg.results.label_rows import label_row, label_text
from dlg.results.text import TextScore, compare_texts
from dlg.results.versions import threads, versions

# The files beside the attack's snapshots.
RESULT_FILES = r"target\.png|progress\.png|summary\.json"
# What is said of an attack that ended before its last iteration.
_ENDS = {
    "floor": ": the gradients agree as closely as float32 can tell",
    "converged": ": no step was found, or the last ones gained little",
    "time limit": ": the time limit was reached",
}


def write_results(
    folder: ResultFolder,
    options: Mapping[str, Any],
    recovered: Any,
    target: np.ndarray | None = None,
    target_label: np.ndarray | None = None,
) -> list[dict]:
    """Compare what an attack recovered with its target, and write the pictures and summary.json.

    Parameters
    ----------
    folder : ResultFolder
        The folder with the attack's snapshots.
    options : mapping of str to object
        What summary.json says of the run's options.
    recovered : dlg.Reconstruction
        What the attack recovered.
    target : ndarray, shape (B, ...), float in [0, 1] or integer, optional
        The true batch; integers are tokens. Without it, or its labels, nothing
        is compared.
    target_label : ndarray, shape (B, ...), optional
        Its labels: (B,) where they are classes.

    Returns
    -------
    list of dict
        What summary.json says of each true image or text; empty where nothing was
        compared.
    """
    rows = []
    if target is not None and target_label is not None and np.issubdtype(target.dtype, np.integer):
        scored = compare_texts(target, recovered.feature, of_batch=recovered.of_batch)
        rows = [_row_of_text(score, target_label, recovered) for score in scored]
    elif target is not None and target_label is not None:
        scores = metrics.compare(target, recovered.feature)
        rows = [_comparison_row(score, target_label, recovered) for score in scores]
        pictures.save_batch(folder, "target.png", target)
        progress_figure.save_progress(folder, target, recovered.feature, scores, target_label, recovered.label)
    _save_summary(folder, options, recovered, rows)
    return rows


def _comparison_row(score: metrics.ImageScore, true_label: np.ndarray, recovered: Any) -> dict:
    """What summary.json says of an image."""
    return {
        "image": score.image,
        "recovered_image": score.recovered,
        **label_row(recovered.label_kind, true_label[score.image], recovered.label[score.recovered]),
        "psnr": _finite_or_none(score.psnr),
        "ssim": _finite_or_none(score.ssim),
        "mse": score.mse,
    }


def _row_of_text(score: TextScore, true_label: np.ndarray, recovered: Any) -> dict:
    """What summary.json says of a text."""
    return {
        "text": score.text,
        "recovered_text": score.recovered,
        **label_row(recovered.label_kind, true_label[score.text], recovered.label[score.recovered]),
        "tokens": score.tokens,
        "right": score.right,
        "right_in_any_order": score.right_in_any_order,
    }


def _finite_or_none(number: float) -> float | None:
    """A number as JSON can have it."""
    return number if math.isfinite(number) else None


def _save_summary(folder: ResultFolder, options: Mapping[str, Any], recovered: Any, rows: Sequence[dict]) -> None:
    """Write summary.json."""
    summary = {
        "interrupted": recovered.ended == "interrupted",
        "ended": recovered.ended,
        "options": {name: str(value) if isinstance(value, Path) else value for name, value in options.items()},
        "versions": versions(),
        "threads": threads(),
        "iterations": recovered.iterations,
        "evaluations": recovered.evaluations,
        "seconds": recovered.seconds,
        "strategy": recovered.strategy,
        "verdict": recovered.verdict,
        "reason": recovered.reason,
        "advice": recovered.advice,
        "mismatch": _finite_or_none(recovered.mismatch),
        "rank": recovered.rank,
        "gradient_scale": recovered.gradient_scale,
        "of_batch": recovered.of_batch,
        "starts": [dataclasses.asdict(start) for start in recovered.starts],
        "loss": recovered.loss,
        "history": recovered.history,
        "label_kind": recovered.label_kind,
        "recovered_labels": recovered.label.tolist(),
        "images": [row for row in rows if "image" in row],
        "texts": [row for row in rows if "text" in row],
    }
    folder.write("summary.json", (json.dumps(summary, indent=2, allow_nan=False) + "\n").encode())


def print_outcome(recovered: Any, rows: Sequence[dict], result_dir: Path) -> None:
    """Say how long the attack took, what it recovered, and where the results are.

    Parameters
    ----------
    recovered : dlg.Reconstruction
        What the attack recovered.
    rows : sequence of dict
        What `write_results` gave.
    result_dir : Path
        Where the results are.
    """
    interrupted = ", interrupted" if recovered.ended == "interrupted" else ""
    done = f"{recovered.iterations} iterations in {recovered.seconds:.2f} s{interrupted}"
    print(f"attack: {done}, loss {recovered.loss:.3e}{_ENDS.get(recovered.ended, '')}")
    if len(recovered.starts) > 1:
        best = min(range(len(recovered.starts)), key=lambda index: recovered.starts[index].loss)
        print(f"the best of {len(recovered.starts)} starts by its loss, number {best + 1}:")
    if not rows:
        print(f"recovered labels: {', '.join(map(label_text, recovered.label))}")
    elif "text" in rows[0]:
        _print_texts(rows)
    else:
        _print_images(rows)
    if pictures.picture_shape(recovered.feature.shape[1:]) is None:
        print(f"summary.json is in {result_dir}")
    else:
        first = "progress.png" if rows else f"result_{recovered.iterations}.png"
        print(f"pictures and summary.json are in {result_dir}; look at {first} first")


def _print_images(rows: Sequence[dict]) -> None:
    print(f"{'image':>5}  {'true label':>10}  {'recovered label':>15}  {'PSNR':>8}  {'SSIM':>6}")
    for row in rows:
        psnr, ssim = metrics.decibels(row["psnr"]), "-" if row["ssim"] is None else f"{row['ssim']:.3f}"
        true, found = label_text(row["true_label"]), label_text(row["recovered_label"])
        print(f"{row['image']:>5}  {true:>10}  {found:>15}  {psnr:>8}  {ssim:>6}")


def _print_texts(rows: Sequence[dict]) -> None:
    print(f"{'text':>5}  {'true label':>10}  {'recovered label':>15}  {'right tokens':>12}  {'in any order':>12}")
    for row in rows:
        right, in_any_order = (f"{row[name]} of {row['tokens']}" for name in ("right", "right_in_any_order"))
        true, found = label_text(row["true_label"]), label_text(row["recovered_label"])
        print(f"{row['text']:>5}  {true:>10}  {found:>15}  {right:>12}  {in_any_order:>12}")
