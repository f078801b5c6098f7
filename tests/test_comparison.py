"""The attacks beside each other: on which cells, and what they reached there."""

from __future__ import annotations

from cell_results import cell_result, compared, failed_result

from dlg.audit.comparison import TABLE, comparisons


def test_what_the_attacks_reached_is_summed_up_over_the_cells_of_a_defence():
    rows = [
        cell_result(seed=0, **compared(recovered=(2, 1, 0), mean_psnr=(60.0, 20.0, 10.0))),
        cell_result(seed=1, **compared(recovered=(2, 0, 0), mean_psnr=(50.0, 10.0, 9.0))),
        cell_result(seed=2, **compared(recovered=(1, 0, 0), mean_psnr=(30.0, 15.0, 8.0))),
        cell_result(defense="int8", **compared()),
    ]
    plain, rounded = comparisons(rows)
    assert (plain.network, plain.defense, rounded.defense) == ("mlp", "none", "int8")
    assert list(plain.reached) == list(TABLE)
    reached = [(each.recovered, each.images, each.labels_right, each.median_psnr) for each in plain.reached.values()]
    assert reached == [(5, 6, 6, 50.0), (1, 6, 6, 15.0), (0, 6, 0, 9.0)]


def test_cells_without_one_of_the_attacks_are_not_compared():
    assert comparisons([cell_result(), failed_result()]) == []
    assert comparisons([cell_result(seed=0), cell_result(seed=1, **compared())])[0].reached["zhu"].images == 2
