"""results.json and results.csv: the same rows in both."""

from __future__ import annotations

import csv
import io
import math
import re

from cell_results import audit_results, cell_result, compared, failed_result
from conftest import PROJECT

from dlg.audit.cell_result import COLUMNS
from dlg.audit.results import SCHEMA_VERSION

ROWS = [
    cell_result(),
    cell_result(defense="clip:1:0.01", failed_attacks="auto: it said, no"),
    cell_result(defense="int8", **compared()),
    cell_result(seed=1, best_psnr=math.inf, mean_psnr=math.inf, psnr=(math.inf, 20.0)),
    failed_result(error='a line with "quotes", and commas'),
]


def test_the_json_says_what_was_run_and_has_every_row():
    found = audit_results(ROWS, cells=5).to_json()
    assert list(found) == ["schema_version", "options", "command", "versions", "cells", "delta", "rows"]
    assert found["schema_version"] == SCHEMA_VERSION
    assert found["cells"] == 5
    assert found["rows"] == [row.to_json() for row in ROWS]


def test_the_csv_has_the_numbers_of_the_json():
    results = audit_results(ROWS)
    lines = list(csv.DictReader(io.StringIO(results.to_csv().decode(), newline="")))
    assert len(lines) == len(ROWS)
    for line, row in zip(lines, results.to_json()["rows"]):
        assert tuple(line) == COLUMNS
        for name, value in row.items():
            if name == "attacks":
                assert line[name].split() == (value or [])
            elif isinstance(value, list):
                assert [float(each) for each in line[name].split()] == [math.inf if v is None else v for v in value]
            elif isinstance(value, (int, float)):
                assert float(line[name]) == value
            else:
                assert line[name] == (value or "")


def test_every_name_in_the_json_is_in_the_docs():
    docs = (PROJECT / "docs" / "audit.md").read_text()
    schema = docs[docs.index("## The schema of results.json") :].partition("\n## ")[0]
    described = {
        name for row in re.findall(r"^\|([^|]*)\|", schema, re.MULTILINE) for name in re.findall("`(.*?)`", row)
    }
    assert described == {*audit_results(ROWS).to_json(), *COLUMNS}
    assert f"version {SCHEMA_VERSION}" in schema
