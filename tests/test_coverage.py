"""benchmarks.coverage: where its names come from, what it says of each kind of layer, and the table that it writes."""

from __future__ import annotations

import pytest
from benchmarks import coverage, coverage_cases
from benchmarks.coverage import IMPOSSIBLE, MISSING, NO_GRADIENT, NO_TENSOR, NOT_TRIED, REFUSED, WORKS, Outcome
from benchmarks.coverage_cases import CASES, cases_of, names

LIMIT = 60


def outcomes(*pairs, limit=LIMIT):
    """The outcomes of cases, each given by its name and its number."""
    return list(coverage.in_processes(pairs, jobs=1, limit=limit))


def test_the_names_are_those_of_paddle_and_each_is_there_once():
    found = names()
    assert {"nn.Linear", "nn.LSTM", "F.gelu", "paddle.sinh", "paddle.matmul", "linalg.solve"} <= set(found)
    assert len(found) == len(set(found))
    assert "nn.LayerList" not in found


def test_nearly_every_case_is_of_a_name_that_paddle_has():
    """A case of a name that is spelled wrongly would never be tried; a few names are new in the latest release."""
    unknown = [name for name in CASES if not hasattr(coverage_cases.PLACES[name.split(".")[0]], name.split(".")[1])]
    assert len(unknown) <= 0.05 * len(CASES), unknown


def test_a_name_that_nobody_wrote_down_is_called_with_one_tensor():
    (case,) = cases_of("paddle.sinh")
    assert "paddle.sinh" not in CASES
    assert case.shape == coverage_cases.VECTOR


# A name, and what is said of it.
KINDS = {
    "F.gelu": WORKS,
    "nn.Dropout": WORKS,
    "F.alpha_dropout": REFUSED,
    "nn.RNN": REFUSED,
    "paddle.as_strided": IMPOSSIBLE,
    "linalg.qr": MISSING,
    "paddle.argmax": NO_GRADIENT,
    "paddle.is_tensor": NO_TENSOR,
    "paddle.save": NOT_TRIED,
}


@pytest.fixture(scope="module")
def found():
    return dict(zip(KINDS, outcomes(*((name, 0) for name in KINDS))))


@pytest.mark.parametrize("name", KINDS)
def test_the_outcome_of_a_layer_is_of_the_right_kind(name, found):
    assert found[name].kind == KINDS[name], found[name].reason


def test_an_op_that_ends_the_process_is_a_row():
    """PaddlePaddle reads this op's places without looking whether they were given."""
    (outcome,) = outcomes(("paddle.index_put_", 0))
    assert outcome.kind == IMPOSSIBLE
    assert outcome.reason == "the process ends by SIGSEGV"


def test_a_layer_that_takes_too_long_is_a_row():
    (outcome,) = outcomes(("nn.Transformer", 0), limit=0.01)
    assert outcome.reason == "no answer within 0.01 s"
    assert outcome.kind != WORKS


def test_names_that_share_an_outcome_and_a_reason_share_a_row():
    text = coverage.table(
        [
            Outcome("F.a", "", WORKS),
            Outcome("F.b", "NHWC", WORKS),
            Outcome("F.c", "", MISSING, "x (coverage_cases.py, line 3: f(x)) cannot be done; do another"),
            Outcome("F.d", "", NO_GRADIENT),
        ]
    )
    assert "2 works, 0 refused by design, 0 PaddlePaddle itself cannot, 1 missing here" in text
    assert "| works | `F.a`, `F.b (NHWC)` |" in text
    assert "| missing here: x cannot be done | `F.c` |" in text
    assert "F.d" not in text


def test_the_table_goes_between_the_marks(tmp_path, monkeypatch):
    page = tmp_path / "networks.md"
    page.write_text(f"before\n{coverage.BEGIN}\nold\n{coverage.END}\nafter\n")
    monkeypatch.setattr(coverage, "DOCS", page)
    coverage.write("new")
    assert page.read_text() == f"before\n{coverage.BEGIN}\nnew\n{coverage.END}\nafter\n"
