"""Rows of an audit for tests, without an attack behind them."""

from __future__ import annotations

import dataclasses

import numpy as np

from dlg.audit.cell import DELTA
from dlg.audit.cell_result import CellResult, Outcome, Scores
from dlg.audit.grid import Cell
from dlg.audit.results import AuditResults

BATCH = 2
# What a row says of the oracle's choice too.
_CHOSEN = ("attack", "images_recovered", "mean_psnr", "best_psnr", "best_ssim")


def cell_result(network="mlp", defense="none", seed=0, best=20.0, batch_size=BATCH, **changed):
    """A row whose best image has this PSNR; the others are a bit worse."""
    psnr = tuple(best - 2.5 * image for image in range(batch_size))
    scores = Scores(
        sample_kind="picture",
        attack="auto",
        strategy="least squares",
        ended="converged",
        verdict="undetermined",
        reason="the gradients match, and leave 1565 of the batch's numbers open",
        mismatch=2.5e-6,
        rank=3,
        size=1568,
        gradient_scale=1.0,
        images_recovered=sum(each >= 30 for each in psnr),
        mean_psnr=best - 1.25 * (batch_size - 1),
        best_psnr=best,
        mean_ssim=0.5,
        best_ssim=0.625,
        labels_right=batch_size,
        psnr=psnr,
        ssim=tuple(0.625 - 0.25 * image for image in range(batch_size)),
        true_labels=tuple(range(2, 2 + batch_size)),
        recovered_labels=tuple(range(2, 2 + batch_size)),
        loss=1.5e-9,
        attacks=("auto",),
        attacks_images_recovered=(sum(each >= 30 for each in psnr),),
        attacks_mean_psnr=(best - 1.25 * (batch_size - 1),),
        attacks_labels_right=(batch_size,),
        attacks_loss=(1.5e-9,),
        oracle_attack="auto",
        oracle_images_recovered=sum(each >= 30 for each in psnr),
        oracle_mean_psnr=best - 1.25 * (batch_size - 1),
        oracle_best_psnr=best,
        oracle_best_ssim=0.625,
        relative_error=0.0625,
        cosine=0.998,
        epsilon=5432.1 if defense.startswith("clip") else None,
        failed_attacks=None,
    )
    # Without a word on it, the oracle chooses what the attacker takes.
    same = {f"oracle_{name}": changed[name] for name in _CHOSEN if name in changed}
    return CellResult(Cell(network, batch_size, defense, seed), dataclasses.replace(scores, **same | changed), 1.0)


def compared(recovered=(2, 1, 0), mean_psnr=(60.0, 20.0, 10.0), labels_right=(2, 2, 0)):
    """What a row says of the attacks that are compared: told, not told, and that of Zhu et al."""
    return {
        "attacks": ("auto", "ignorant", "zhu"),
        "attacks_images_recovered": recovered,
        "attacks_mean_psnr": mean_psnr,
        "attacks_labels_right": labels_right,
        "attacks_loss": (1e-9, 1e-3, None),
    }


def failed_result(network="mlp", defense="none", seed=0, batch_size=BATCH, error="it broke"):
    return CellResult(Cell(network, batch_size, defense, seed), None, 1.0, error)


def outcome(result):
    """What a cell with this row gives: random pictures."""
    if result.scores is None:
        return Outcome(result)
    images = np.random.default_rng(0).random((2, result.cell.batch_size, 1, 28, 28), np.float32)
    return Outcome(result, *images)


def audit_results(rows, cells=None, **options):
    """What an audit found that has these rows."""
    return AuditResults(
        options={"batch_sizes": [BATCH], "seeds": 1} | options,
        command="python -m dlg.audit --networks mlp",
        versions={"paddlepaddle": "3"},
        cells=len(rows) if cells is None else cells,
        delta=DELTA,
        rows=tuple(rows),
    )
