"""The row of a cell: typed here, and made of what JSON has on disk."""

from __future__ import annotations

import json
import math

import pytest
from cell_results import cell_result, compared, failed_result

from dlg.audit.cell_result import COLUMNS, CellResult, finite_or_none


@pytest.mark.parametrize(
    "result",
    [
        cell_result(),
        cell_result(defense="clip:1:0.01", failed_attacks="cosine: no"),
        cell_result(mean_ssim=None, best_ssim=None, ssim=(None, 0.5), loss=None, relative_error=None, rank=None),
        cell_result(best_psnr=math.inf, mean_psnr=math.inf, psnr=(math.inf, 20.0)),
        cell_result(**compared(mean_psnr=(math.inf, 20.0, 10.0))),
        failed_result(),
        CellResult(failed_result().cell, None, None, "its process was killed"),
    ],
)
def test_a_row_comes_back_from_json_as_it_was(result):
    text = json.dumps(result.to_json(), allow_nan=False)
    assert CellResult.from_json(json.loads(text)) == result


@pytest.mark.parametrize("result", [cell_result(), failed_result()])
def test_every_row_has_every_column_in_the_same_order(result):
    assert tuple(result.to_json()) == COLUMNS


def test_the_columns_are_the_cell_then_its_scores_then_how_it_ended():
    assert (
        *("network", "batch_size", "defense", "seed"),
        *("sample_kind", "attack", "strategy", "ended", "verdict", "reason", "mismatch", "rank", "size"),
        *("gradient_scale", "images_recovered", "mean_psnr", "best_psnr", "mean_ssim", "best_ssim", "labels_right"),
        *("psnr", "ssim", "true_labels", "recovered_labels", "loss"),
        *("attacks", "attacks_images_recovered", "attacks_mean_psnr", "attacks_labels_right", "attacks_loss"),
        *("oracle_attack", "oracle_images_recovered", "oracle_mean_psnr", "oracle_best_psnr", "oracle_best_ssim"),
        *("relative_error", "cosine", "epsilon", "failed_attacks", "bound_psnr", "seen_psnr", "seconds", "error"),
    ) == COLUMNS


def test_equal_images_are_null_in_json():
    row = cell_result(best_psnr=math.inf, psnr=(math.inf, 20.0)).to_json()
    assert (row["best_psnr"], row["psnr"]) == (None, [None, 20.0])


def test_a_row_of_a_cell_that_failed_has_its_error_and_no_score():
    row = failed_result(error="it broke").to_json()
    assert {name: value for name, value in row.items() if value is not None} == {
        "network": "mlp", "batch_size": 2, "defense": "none", "seed": 0, "seconds": 1.0, "error": "it broke"
    }  # fmt: skip


@pytest.mark.parametrize("missing", ["network", "psnr", "seconds", "error"])
def test_what_lacks_a_column_is_no_row(missing):
    row = cell_result().to_json()
    del row[missing]
    with pytest.raises(KeyError, match=missing):
        CellResult.from_json(row)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("verdict", 7),
        ("verdict", "safe"),
        ("reason", None),
        ("gradient_scale", "1"),
        ("mean_psnr", "20"),
        ("mean_psnr", True),
        ("mean_psnr", math.nan),
        ("best_psnr", math.inf),
        ("psnr", 20.0),
        ("psnr", [20.0]),
        ("psnr", [20.0, "17.5"]),
        ("ssim", [0.5, 0.5, 0.5]),
        ("true_labels", [2, "3"]),
        ("attacks", [1]),
        ("attacks_loss", [1e-9, 1e-9]),
        ("recovered_labels", {}),
        ("images_recovered", 3),
        ("labels_right", -1),
        ("rank", 1.5),
        ("cosine", None),
        ("seconds", "long"),
        ("error", 5),
        ("seed", "0"),
        ("batch_size", [2]),
    ],
)
def test_what_has_a_value_of_another_kind_is_no_row(column, value):
    with pytest.raises((TypeError, ValueError), match=column):
        CellResult.from_json(cell_result().to_json() | {column: value})


@pytest.mark.parametrize(("verdict", "explained"), [("explained", True), ("undetermined", True), ("failed", False)])
def test_only_a_failed_attack_has_not_explained_the_gradients(verdict, explained):
    assert cell_result(verdict=verdict).scores.is_explained is explained


@pytest.mark.parametrize(
    ("number", "kept"), [(1.5, 1.5), (0.0, 0.0), (None, None), (math.nan, None), (math.inf, None), (-math.inf, None)]
)
def test_only_finite_numbers_are_kept(number, kept):
    assert finite_or_none(number) == kept
