"""The example of a text classifier recovers its sentence."""

from __future__ import annotations

import os
import subprocess
import sys

from conftest import PROJECT


def test_the_sentence_comes_back(tmp_path):
    command = [sys.executable, "-m", "examples.text_classifier"]
    shown = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(PROJECT)}, capture_output=True, text=True, check=True
    )
    *_, true, recovered = shown.stdout.splitlines()
    assert true.removeprefix("true:").split() == recovered.removeprefix("recovered:").split()
    assert len(true.split()) > 15
    assert (tmp_path / "att_results" / "result.txt").exists()
