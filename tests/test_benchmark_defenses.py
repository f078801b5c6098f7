"""benchmarks/defenses.py: what a cell of its table says."""

from __future__ import annotations

import pytest

from benchmarks import defenses
from benchmarks.attacks import Outcome
from dlg.results.metrics import ImageScore


def outcome_of(psnrs, **fields):
    scores = [ImageScore(image=n, recovered=n, mse=0.0, psnr=psnr, ssim=0.5) for n, psnr in enumerate(psnrs)]
    return Outcome(seed=0, scores=scores, labels_right=len(scores), **fields)


def test_a_cell_has_the_time_of_the_clock_and_of_the_processor():
    outcomes = [outcome_of([40.0], seconds=3.0, processor_seconds=1.5)] * 3
    assert defenses.cell(outcomes, 1, 30.0) == "3 of 3 (44% to 100%), 40.0 dB, 3 labels, 3.0 s, 1.5 s of processor"


def test_the_interval_counts_batches_for_the_images_of_one_are_not_independent():
    outcomes = [outcome_of([40.0, 40.0, 40.0, 20.0])] * 5
    # Of five batches, three to four.
    assert defenses.cell(outcomes, 4, 30.0).startswith("15 of 20 (23% to 96%), 40.0 dB")


@pytest.mark.parametrize(
    ("attack", "spec", "told"),
    [
        ("knowing", "laplacian:0.001", "laplacian:0.001"),
        ("gaussian", "laplacian:0.001", "gaussian:0.001"),
        ("gaussian", "int8", "int8"),
        ("ignorant", "int8", "none"),
        ("zhu", "int8", "none"),
    ],
)
def test_what_each_attack_is_told(attack, spec, told):
    assert defenses.ATTACKS[attack][1](spec) == told


@pytest.mark.slow
def test_every_attack_has_a_column(capsys):
    options = ["--network", "softmax", "--batch_size", "1", "--defense", "int8", "--seeds", "2", "--iterations", "20"]
    defenses.main(options)
    row = capsys.readouterr().out.splitlines()[-1]
    assert row.startswith("| softmax | 1 | int8 | 2 of 2 (34% to 100%)")
    assert row.count(" s of processor") == 3
