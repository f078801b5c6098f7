"""What rows say: verdicts, the summary of all defences, and the paper's claims."""

from __future__ import annotations

import math

import numpy as np
import pytest
from cell_results import cell_result, failed_result

from dlg.audit.findings import LEAST_SEEDS, Finding, Leak, Summary, claims, findings, leak_of


def test_a_finding_sums_up_its_cells_and_the_worst_decides():
    found = Finding.of([cell_result("mlp", "int8", best=10.0), cell_result("mlp", "int8", seed=1, best=35.0)])
    assert (found.network, found.defense, found.leak.kind) == ("mlp", "int8", "leaks")
    assert (found.best_psnr, found.recovered, found.labels_right, found.images) == (35.0, 2, 4, 4)
    assert found.mean_psnr == np.mean([8.75, 33.75])


def test_a_finding_counts_no_cell_that_failed():
    rows = [cell_result(best=12.0), failed_result(seed=1)]
    found = Finding.of(rows)
    assert (found.images, found.mean_psnr, found.rows) == (2, 10.75, tuple(rows))


def test_a_finding_of_failed_cells_alone_has_no_number():
    found = Finding.of([failed_result()])
    assert (found.leak.kind, found.images, found.attacks, found.verdicts) == ("not_run", 0, (), {})
    assert found.errors == ("it broke",)
    assert found.best_psnr is found.mean_psnr is found.mean_ssim is found.cosine is found.epsilon is None


def test_there_is_a_finding_for_each_network_and_defence():
    rows = [cell_result("mlp"), cell_result("lenet"), cell_result("mlp", "int8"), cell_result("mlp", seed=1)]
    found = [(finding.network, finding.defense, len(finding.rows)) for finding in findings(rows)]
    assert found == [("mlp", "none", 2), ("lenet", "none", 1), ("mlp", "int8", 1)]


def dark(network="mlp", defense="none", **changed):
    """A row in whose pictures nothing is to be seen."""
    return cell_result(network, defense, **{"best": 9.0, "mean_ssim": 0.1, "best_ssim": 0.1} | changed)


@pytest.mark.parametrize(
    ("rows", "kind", "decided_by"),
    [
        ([cell_result(best=30.0)], "leaks", "PSNR"),
        ([cell_result(best_psnr=math.inf)], "leaks", "PSNR"),
        ([cell_result(best=29.9, best_ssim=0.9)], "partly", "PSNR"),
        ([dark(best=15.0)], "partly", "PSNR"),
        ([dark(best_ssim=0.3)], "partly", "SSIM"),
        ([dark(verdict="undetermined")], "not_recovered", "PSNR and SSIM"),
        ([dark(rank=785)], "unknown", "another batch, though the gradients determine most of the true one"),
        ([dark(rank=784)], "not_recovered", "PSNR and SSIM"),
        (
            [dark(rank=None)],
            "unknown",
            "another batch, and how much of the true one the gradients determine is not known",
        ),
        ([dark(attacks=("cosine",))], "unknown", "an error: the strongest attack could not be run"),
        ([dark(verdict="explained")], "unknown", "another batch, which the attack took for the true one"),
        ([dark(best_ssim=None, mean_ssim=None)], "not_recovered", "PSNR and SSIM"),
        ([dark(verdict="failed")], "unknown", "the attack's verdict"),
        ([dark(seen_psnr=16.0)], "partly", "PSNR of the pixels that a gradient depends on"),
        ([dark(seen_psnr=12.0)], "not_recovered", "PSNR and SSIM"),
        ([failed_result()], "not_run", "an error"),
        ([failed_result(), cell_result(seed=1, best=31.0)], "leaks", "PSNR"),
    ],
)
def test_a_picture_that_may_be_recognised_is_never_called_hidden(rows, kind, decided_by):
    assert leak_of(rows) == Finding.of(rows).leak == Leak(kind, decided_by)


@pytest.mark.parametrize(
    ("oracle", "kind", "decided_by"),
    [
        ({"oracle_best_psnr": 31.0}, "leaks", "oracle's PSNR"),
        ({"oracle_best_psnr": 16.0}, "partly", "oracle's PSNR"),
        ({"oracle_best_ssim": 0.3}, "partly", "oracle's SSIM"),
    ],
)
def test_what_only_the_oracles_choice_shows_is_a_leak_too(oracle, kind, decided_by):
    assert leak_of([dark(oracle_attack="cosine", **oracle)]) == Leak(kind, decided_by)


def seeds_of(count, defense="int8", network="mlp", **changed):
    return [dark(network, defense, seed=seed, **changed) for seed in range(count)]


def leak_among(rows, defense="int8"):
    return next(finding.leak.kind for finding in findings(rows) if finding.defense == defense)


@pytest.mark.parametrize(("count", "kind"), [(LEAST_SEEDS - 1, "not_recovered"), (LEAST_SEEDS, "stops")])
def test_a_defence_stops_the_attacks_on_enough_seeds_alone(count, kind):
    assert leak_among([cell_result(best=90.0), *seeds_of(count)]) == kind


def test_each_batch_size_needs_enough_seeds():
    more = [dark(defense="int8", batch_size=1)]
    assert leak_among([cell_result(best=90.0), *seeds_of(LEAST_SEEDS), *more]) == "not_recovered"


def test_where_nothing_leaks_without_a_defence_none_is_said_to_stop_it():
    assert leak_among([dark(), *seeds_of(LEAST_SEEDS)]) == "not_recovered"
    assert leak_among(seeds_of(LEAST_SEEDS)) == "not_recovered"


def test_a_seed_that_could_not_be_run_is_none():
    rows = [cell_result(best=90.0), *seeds_of(LEAST_SEEDS - 1), failed_result(defense="int8", seed=9)]
    assert leak_among(rows) == "not_run"


def test_every_verdict_is_counted():
    rows = [dark(), dark(seed=1), dark(seed=2, verdict="failed")]
    assert Finding.of(rows).verdicts == {"undetermined": 2, "failed": 1}


@pytest.mark.parametrize("best", [30.0, 15.0])
def test_a_picture_decides_whatever_the_attack_says_of_itself(best):
    assert leak_of([cell_result(best=best, verdict="failed")]).is_seen


def test_one_clear_picture_among_dark_ones_is_seen():
    # The mean over the batch is that of pictures without anything to be seen.
    assert leak_of([dark(best_ssim=0.9, ssim=(0.9, 0.0), mean_ssim=0.1)]) == Leak("partly", "SSIM")


@pytest.mark.parametrize(
    ("rows", "kind"),
    [
        ([dark(), dark(seed=1, verdict="failed")], "unknown"),
        ([dark(), failed_result(seed=1)], "not_run"),
        ([dark(verdict="failed"), failed_result(seed=1)], "unknown"),
    ],
)
def test_a_cell_of_which_nothing_is_known_is_worse_than_one_that_was_not_recovered(rows, kind):
    assert leak_of(rows).kind == kind


def test_a_defence_is_summed_up_by_the_networks_it_protects_least():
    summary = Summary.of(
        findings(
            [
                cell_result("mlp", "int8", best=40.0, relative_error=0.5),
                dark("lenet", "int8"),
                cell_result("mlp", "sign", best=20.0),
                dark("lenet", "sign"),
                dark("mlp", "prune:0.9"),
                failed_result("lenet", "prune:0.9"),
                dark("mlp", "fp16"),
                dark("lenet", "fp16", verdict="failed"),
                failed_result("mlp", "bf16"),
                dark("mlp", "prune:0.5"),
                dark("lenet", "prune:0.5"),
            ]
        )
    )
    assert {kind: [each.defense for each in group] for kind, group in summary.defenses.items()} == {
        "leaks": ["int8"],
        "partly": ["sign"],
        "unknown": ["fp16"],
        "not_run": ["prune:0.9", "bf16"],
        "not_recovered": ["prune:0.5"],
        "stops": [],
    }
    assert summary.failed_cells == 2
    (hidden,) = summary.defenses["not_recovered"]
    assert (hidden.networks, hidden.everywhere) == (("mlp", "lenet"), True)
    (unknown,) = summary.defenses["unknown"]
    assert (unknown.networks, unknown.everywhere) == (("lenet",), False)


def test_what_is_said_of_a_defence_is_of_the_networks_that_are_named():
    rows = [
        cell_result("softmax", "int8", best=40.0, relative_error=0.021, labels_right=1),
        dark("lenet", "int8", relative_error=0.057),
    ]
    ((leak,),) = [group for group in Summary.of(findings(rows)).defenses.values() if group]
    assert (leak.networks, leak.everywhere) == (("softmax",), False)
    assert (leak.least_error, leak.most_error) == (0.021, 0.021)
    assert (leak.labels_right, leak.images) == (1, 2)


def test_a_defence_that_was_tried_on_one_network_of_two_is_not_said_to_be_so_everywhere():
    summary = Summary.of(findings([cell_result("lenet"), dark("mlp", "int8")]))
    assert not summary.defenses["not_recovered"][0].everywhere


def test_undefended_gradients_are_no_defence_in_the_summary():
    summary = Summary.of(findings([cell_result("mlp", "none", best=90.0), cell_result("mlp", "int8", labels_right=1)]))
    assert [finding.network for finding in summary.undefended] == ["mlp"]
    assert [each.defense for group in summary.defenses.values() for each in group] == ["int8"]
    assert (summary.labels_right, summary.images) == (1, 2)


@pytest.mark.parametrize(
    ("undefended", "not_comparable"),
    [([cell_result(best=90.0)], ()), ([dark()], ("mlp",)), ([failed_result()], ("mlp",)), ([], ("mlp",))],
)
def test_a_network_whose_undefended_pictures_stay_hidden_shows_nothing_of_a_defence(undefended, not_comparable):
    assert Summary.of(findings([*undefended, dark("mlp", "int8")])).not_comparable == not_comparable


def test_a_defence_stops_nothing_at_a_batch_size_that_does_not_leak_without_it():
    rows = [cell_result(best=90.0), dark(batch_size=4), *seeds_of(LEAST_SEEDS)]
    assert leak_among(rows) == "stops"
    larger = [dark("mlp", "int8", seed=seed, batch_size=4) for seed in range(LEAST_SEEDS)]
    assert leak_among([*rows, *larger]) == "not_recovered"
    assert Summary.of(findings([*rows, *larger])).not_comparable == ("mlp",)


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
    (stopping,) = claims(findings([dark("lenet", defense)]))
    assert leaking.stops == stopping.stops == stops
    assert (leaking.agrees, stopping.agrees) == (not stops, stops)
    for row in (failed_result("lenet", defense), dark("lenet", defense, verdict="failed")):
        assert claims(findings([row]))[0].agrees is None


@pytest.mark.parametrize(
    ("network", "defense"), [("mlp", "prune:0.5"), ("lenet", "none"), ("lenet", "sign"), ("lenet", "clip:1:0.01")]
)
def test_the_paper_says_nothing_of_other_networks_and_defences(network, defense):
    assert claims(findings([cell_result(network, defense)])) == []
