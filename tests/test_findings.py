"""What rows say: verdicts, the summary of all defences, and the paper's claims."""

from __future__ import annotations

import math

import numpy as np
import pytest
from cell_results import cell_result, failed_result

from dlg.audit.findings import Finding, Summary, claims, findings


def test_a_finding_sums_up_its_cells_and_the_worst_decides():
    found = Finding.of([cell_result("mlp", "int8", best=10.0), cell_result("mlp", "int8", seed=1, best=35.0)])
    assert (found.network, found.defense, found.verdict) == ("mlp", "int8", "leaks")
    assert (found.best_psnr, found.recovered, found.labels_right, found.images) == (35.0, 2, 4, 4)
    assert found.mean_psnr == np.mean([8.75, 33.75])


def test_a_finding_counts_no_cell_that_failed():
    rows = [cell_result(best=12.0), failed_result(seed=1)]
    found = Finding.of(rows)
    assert (found.images, found.mean_psnr, found.rows) == (2, 10.75, tuple(rows))


def test_a_finding_of_failed_cells_alone_has_no_number():
    found = Finding.of([failed_result()])
    assert (found.verdict, found.images, found.attacks) == ("failed", 0, ())
    assert found.best_psnr is found.mean_psnr is found.mean_ssim is found.cosine is found.epsilon is None


def test_there_is_a_finding_for_each_network_and_defence():
    rows = [cell_result("mlp"), cell_result("lenet"), cell_result("mlp", "int8"), cell_result("mlp", seed=1)]
    found = [(finding.network, finding.defense, len(finding.rows)) for finding in findings(rows)]
    assert found == [("mlp", "none", 2), ("lenet", "none", 1), ("mlp", "int8", 1)]


@pytest.mark.parametrize(
    ("rows", "verdict"),
    [
        ([cell_result(best=30.0)], "leaks"),
        ([cell_result(best_psnr=math.inf)], "leaks"),
        ([cell_result(best=29.9, mean_ssim=0.9)], "partly"),
        ([cell_result(best=15.0, mean_ssim=0.1)], "partly"),
        ([cell_result(best=9.0, mean_ssim=0.3)], "partly"),
        ([cell_result(best=9.0, mean_ssim=0.1)], "stopped"),
        ([cell_result(best=9.0, mean_ssim=None)], "stopped"),
        ([failed_result()], "failed"),
        ([failed_result(), cell_result(seed=1, best=31.0)], "leaks"),
    ],
)
def test_a_picture_that_may_be_recognised_is_never_called_stopped(rows, verdict):
    assert Finding.of(rows).verdict == verdict


def stopped(network, defense):
    return cell_result(network, defense, best=9.0, mean_ssim=0.1)


def test_a_defence_is_summed_up_by_the_network_it_protects_least():
    summary = Summary.of(
        findings(
            [
                cell_result("mlp", "int8", best=40.0, relative_error=0.5),
                stopped("lenet", "int8"),
                cell_result("mlp", "sign", best=20.0),
                stopped("lenet", "sign"),
                stopped("mlp", "prune:0.9"),
                failed_result("lenet", "prune:0.9"),
                failed_result("mlp", "bf16"),
            ]
        )
    )
    assert [each.defense for each in summary.leaking] == ["int8"]
    assert [each.defense for each in summary.partly] == ["sign"]
    assert [each.defense for each in summary.stopped] == ["prune:0.9"]
    assert summary.failed_cells == 2
    leak = summary.leaking[0]
    assert (leak.leaks_on, leak.leaks_everywhere) == (("mlp",), False)
    assert (leak.least_error, leak.most_error) == (0.0625, 0.5)


def test_undefended_gradients_are_no_defence_in_the_summary():
    summary = Summary.of(findings([cell_result("mlp", "none", best=90.0), cell_result("mlp", "int8", labels_right=1)]))
    assert [finding.network for finding in summary.undefended] == ["mlp"]
    assert (summary.leaking, summary.stopped) == ((), ())
    assert (summary.labels_right, summary.images) == (1, 2)


@pytest.mark.parametrize(
    ("defense", "stops"),
    [
        ("gaussian:0.0001", False),
        ("laplacian:0.001", False),
        ("gaussian:0.01", True),
        ("laplacian:0.1", True),
        ("prune:0.2", False),
        ("prune:0.3", True),
        ("fp16", False),
        ("bf16", False),
        ("int8", True),
    ],
)
def test_the_papers_claim_agrees_with_what_is_found_alike(defense, stops):
    (leaking,) = claims(findings([cell_result("lenet", defense, best=90.0)]))
    (stopping,) = claims(findings([stopped("lenet", defense)]))
    assert leaking.stops == stopping.stops == stops
    assert (leaking.agrees, stopping.agrees) == (not stops, stops)
    (failing,) = claims(findings([failed_result("lenet", defense)]))
    assert not failing.agrees


@pytest.mark.parametrize(
    ("network", "defense"), [("mlp", "prune:0.5"), ("lenet", "none"), ("lenet", "sign"), ("lenet", "clip:1:0.01")]
)
def test_the_paper_says_nothing_of_other_networks_and_defences(network, defense):
    assert claims(findings([cell_result(network, defense)])) == []
