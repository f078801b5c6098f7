"""A cell of an audit: its attacks, and what its row says of them."""

from __future__ import annotations

import concurrent.futures
import dataclasses

import numpy as np
import pytest

from dlg.audit.attacks import ATTACKS
from dlg.audit.cell import DELTA, check_training, run_cell
from dlg.audit.findings import leak_of
from dlg.audit.grid import Cell
from dlg import defenses
from dlg.audit.samples import Samples, load
from dlg.audit.subject import Subject
from dlg.errors import InputError


def batch_of(size, seed=0):
    return load(["bundled"]).batch(size, seed)


def without_seconds(result):
    return dataclasses.replace(result, seconds=None)


@pytest.fixture(scope="module")
def undefended():
    """A cell without a defence."""
    return run_cell(Cell("softmax", 2, "none", 3), batch_of(2, seed=3), 30)


def test_an_undefended_gradient_gives_its_batch_away(undefended):
    scores = undefended.result.scores
    assert scores.images_recovered == scores.labels_right == scores.images == 2
    assert (scores.relative_error, scores.cosine, scores.epsilon) == (0, 1, None)
    assert scores.attack == "auto"
    assert undefended.result.error is None
    assert undefended.result.seconds > 0


def test_recovered_images_are_in_the_order_of_the_true_ones(undefended):
    batch = batch_of(2, seed=3)
    assert (undefended.target == batch.features).all()
    assert np.abs(undefended.recovered - undefended.target).max() < 1e-3
    assert (
        undefended.result.scores.recovered_labels == undefended.result.scores.true_labels == tuple(batch.labels[:, 0])
    )


def test_attacks_are_compared_on_demand():
    cell, batch = Cell("softmax", 2, "prune:0.5", 0), batch_of(2)
    alone, beside = (run_cell(cell, batch, 30, compare=compare).result.scores for compare in (False, True))
    assert alone.attacks[0] == beside.attacks[0] == "auto"
    assert beside.attacks[-2:] == ("ignorant", "zhu")
    # What the row says of the answer that an attacker takes is the same.
    assert beside.psnr == pytest.approx(alone.psnr, abs=0.5)
    assert (beside.attack, beside.verdict) == (alone.attack, alone.verdict)
    assert beside.oracle_mean_psnr == max(beside.attacks_mean_psnr)
    assert min(beside.attacks_mean_psnr) == beside.attacks_mean_psnr[beside.attacks.index("zhu")]


def test_without_a_defence_the_attack_that_is_not_told_is_the_one_that_is():
    scores = run_cell(Cell("softmax", 2, "none", 3), batch_of(2, seed=3), 30, compare=True).result.scores
    assert scores.attacks == ("auto", "ignorant", "zhu")
    assert scores.attacks_mean_psnr[0] == scores.attacks_mean_psnr[1] == scores.mean_psnr


def test_a_clipped_gradient_has_an_epsilon():
    result = run_cell(Cell("softmax", 1, "clip:1:2", 0), batch_of(1), 5).result
    assert result.scores.epsilon == defenses.parse("clip:1:2").epsilon(DELTA)
    assert result.scores.attack in ATTACKS
    assert result.scores.relative_error > 0


def test_a_cell_that_fails_gives_a_row_that_says_why():
    # No float32 holds such noise.
    outcome = run_cell(Cell("softmax", 1, "gaussian:1e+300", 0), batch_of(1), 5)
    assert "makes the gradient of" in outcome.result.error
    assert "\n" not in outcome.result.error
    assert (outcome.result.scores, outcome.target, outcome.recovered) == (None, None, None)
    assert outcome.result.seconds > 0


LABELS = np.arange(20)[:, None] - 5


@pytest.mark.parametrize(
    ("labels", "range_"), [(LABELS, "-5 to 14"), (LABELS + 5, "0 to 19"), (LABELS[:15], "-5 to 9")]
)
def test_labels_that_are_none_of_the_networks_classes_are_refused(labels, range_):
    features = np.zeros((len(labels), 1, 28, 28), np.float32)
    with pytest.raises(InputError, match=f"its labels are from {range_}, expected classes from 0 to 9, for softmax"):
        check_training(Subject("softmax"), Samples.of(features, labels), 2)


def test_samples_that_a_network_cannot_take_are_refused():
    with pytest.raises(InputError, match="lenet cannot be trained on such samples: "):
        check_training(Subject("lenet"), Samples.of(np.zeros((2, 9), np.float32), np.zeros((2, 1), np.int64)), 1)


def test_a_cell_prints_nothing(capsys):
    run_cell(Cell("softmax", 1, "none", 0), batch_of(1), 5)
    assert capsys.readouterr() == ("", "")


def test_cells_run_in_threads_as_in_the_main_one():
    cell, batch = Cell("softmax", 1, "none", 0), batch_of(1)
    expected = without_seconds(run_cell(cell, batch, 5).result)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(lambda _: run_cell(cell, batch, 5), range(3)))
    assert [without_seconds(outcome.result) for outcome in outcomes] == [expected] * 3


def what_counts(result):
    """What a row says, without the digits that rounding decides."""
    scores = result.scores
    return result.error, scores.attack, scores.verdict, scores.images_recovered, scores.recovered_labels


def test_a_cell_is_the_same_whatever_cells_its_programs_served_before():
    cells = [Cell("softmax", 2, spec, seed) for spec, seed in (("int8", 0), ("clip:1:0.001", 1), ("gaussian:0.01", 0))]
    in_order, backwards = {}, {}
    for order, found in ((cells, in_order), (cells[::-1], backwards)):
        # Programs are kept for one batch size alone, so the next cells make theirs anew.
        run_cell(Cell("softmax", 1, "none", 0), batch_of(1, 0), 1)
        found |= {cell: run_cell(cell, batch_of(2, cell.seed), 60).result for cell in order}
    for cell in cells:
        assert what_counts(in_order[cell]) == what_counts(backwards[cell])
        assert in_order[cell].scores.psnr == pytest.approx(backwards[cell].scores.psnr, abs=0.5)
        assert in_order[cell].scores.relative_error == backwards[cell].scores.relative_error


HALF = """
import paddle
from paddle import nn


def half(feature, label):
    hidden = nn.functional.sigmoid(nn.Conv2D(1, 8, 3, stride=2, dilation=2, padding=2)(feature))
    prediction = nn.Linear(8 * 196, 10)(paddle.flatten(hidden, 1))
    return prediction, nn.functional.cross_entropy(prediction, label)
"""


def test_a_picture_of_which_every_second_pixel_came_back_is_not_called_hidden(tmp_path):
    """The network reads every second pixel of every second row. The others are open, and hide it in the mean."""
    (tmp_path / "half.py").write_text(HALF)
    subject = Subject("half", "half.py", folder=str(tmp_path))
    result = run_cell(Cell("half", 1, "int8", 1), batch_of(1, seed=1), 100, subject=subject).result
    scores = result.scores
    assert (scores.verdict, scores.rank) == ("undetermined", 196)
    assert scores.best_psnr < 15
    assert scores.best_ssim < 0.2
    assert scores.seen_psnr > 30
    assert leak_of([result]).kind == "partly"
