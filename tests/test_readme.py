"""The README says what the project does."""

from __future__ import annotations

import re
import subprocess
import sys

from conftest import PROJECT

import mnist_example

README = (PROJECT / "README.md").read_text()


def test_every_option_is_in_the_readme_with_its_default():
    rows = dict(re.findall(r"^\| `(--\w+)` \| (\S+) \|", README, re.MULTILINE))
    args = vars(mnist_example.parse_args([]))
    assert {f"--{name}" for name in args} == set(rows)
    for name, value in args.items():
        default = value[0] if isinstance(value, list) else str(value)
        assert rows[f"--{name}"].removeprefix("./") == default


def test_the_help_has_every_option():
    shown = subprocess.run(
        [sys.executable, "mnist_example.py", "--help"], cwd=PROJECT, capture_output=True, text=True, check=True
    ).stdout
    for name in vars(mnist_example.parse_args([])):
        assert f"--{name} " in shown


def test_the_example_for_ones_own_network_runs(tmp_path):
    example = re.search(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)[1]
    assert len([line for line in example.splitlines() if line]) == 15
    data = (
        "import numpy as np\nmy_images = np.random.rand(1, 1, 28, 28).astype('float32')\nmy_labels = np.array([[3]])\n"
    )
    example += "print(result.label.shape, result.feature.shape)"
    example = example.replace("3000", "20").replace('"att_results"', repr(str(tmp_path)))
    finished = subprocess.run([sys.executable, "-c", data + example], cwd=PROJECT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert "(1,) (1, 1, 28, 28)" in finished.stdout
    assert (tmp_path / "result_20.png").exists()


def test_the_figures_are_there():
    for figure in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert (PROJECT / figure).is_file()
