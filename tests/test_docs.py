"""The README and the docs say what the project does, and lead to what is there."""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import PROJECT

import mnist_example
from dlg.audit import __main__ as audit
from dlg.options import OPTIMIZER_CHOICES
from dlg.defenses import DEFENSES

README = PROJECT / "README.md"
CONTRIBUTING = PROJECT / "CONTRIBUTING.md"
PAGES = [README, CONTRIBUTING, *sorted((PROJECT / "docs").glob("*.md"))]
USAGE = (PROJECT / "docs" / "usage.md").read_text()
ATTACKS = (PROJECT / "docs" / "attacks.md").read_text()
AUDIT = (PROJECT / "docs" / "audit.md").read_text()
# A README that is read is short.
MOST_LINES = 150
CODE_BLOCK = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
IS_A_PATH = re.compile(r"\.?[\w-]+(/[\w.-]+)*(/|\.(py|md|toml|txt|cff))|\.ci/run")


def page_name(page: Path) -> str:
    return str(page.relative_to(PROJECT))


def prose(page: Path) -> str:
    """A page without its code blocks, where # starts a comment and brackets are no links."""
    return CODE_BLOCK.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """What GitHub makes of a page's headings: lower case, hyphens for spaces, and no punctuation."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def help_of(parse_args: Callable[[list[str]], object]) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as shown, pytest.raises(SystemExit) as ended:
        parse_args(["--help"])
    assert ended.value.code == 0
    return shown.getvalue()


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) <= MOST_LINES


@pytest.mark.parametrize("name", ["run", "test"])
def test_the_readme_has_the_commands_that_ci_runs(name):
    # As .ci/run extracts them.
    assert re.search(rf"^<!-- {name} -->\n```sh\n[^`\n]+\n```$", README.read_text(), re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_link_leads_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page_name(page)} links to {link}, which is not there"
        assert not anchor or anchor in anchors(target), f"{page_name(page)} links to {link}, which is no heading there"


def test_every_page_of_the_docs_is_linked_from_the_readme():
    linked = set(re.findall(r"\]\((docs/[^)#]+)", README.read_text()))
    assert linked == {page_name(page) for page in PAGES if page.parent.name == "docs"}


def test_every_file_that_contributing_names_is_there():
    named = {word for word in re.findall(r"`([^`\s]+)`", prose(CONTRIBUTING)) if IS_A_PATH.fullmatch(word)}
    assert len(named) > 20
    assert [name for name in sorted(named) if not (PROJECT / name).exists()] == []


def test_every_option_is_in_the_docs_with_its_default():
    rows = dict(re.findall(r"^\| `(--\w+)` \| (\S+) \|", USAGE, re.MULTILINE))
    args = vars(mnist_example.parse_args([]))
    assert {f"--{name}" for name in args} == set(rows)
    for name, value in args.items():
        default = value[0] if isinstance(value, list) else str(value)
        assert rows[f"--{name}"].removeprefix("./") == default


@pytest.mark.parametrize("name", OPTIMIZER_CHOICES)
def test_every_optimizer_is_in_the_docs(name):
    row = re.search(r"^\| `--optimizer` \|.*$", USAGE, re.MULTILINE)[0]
    assert f"`{name}`" in row
    assert f"\n| `{name}` | " in ATTACKS


def test_every_defence_is_in_the_docs_with_its_spelling():
    table = USAGE[USAGE.index("| spelling |") :].partition("\n\n")[0]
    spellings = {spelling for row in table.splitlines()[2:] for spelling in re.findall(r"`([^`]+)`", row.split("|")[1])}
    assert spellings == {":".join([name, *(n.name for n in kind.numbers)]) for name, kind in DEFENSES.items()}


def test_the_help_has_every_option():
    shown = help_of(mnist_example.parse_args)
    for name in vars(mnist_example.parse_args([])):
        assert f"--{name} " in shown


def test_every_option_of_the_audit_is_in_the_docs():
    shown = set(re.findall(r"^  (--\w+)", help_of(audit.parse_args), re.MULTILINE))
    assert shown == set(re.findall(r"^\| `(--\w+)` \|", AUDIT, re.MULTILINE))


def test_every_way_an_attack_ends_is_in_the_docs_with_its_exit_code():
    rows = dict(re.findall(r"^\| `([\w ]+)` \| [^|]+ \| (\d+)[^|]* \|$", USAGE, re.MULTILINE))
    assert {ended: str(code) for ended, code in mnist_example.EXIT_CODES.items()} == rows


def example_in(page: Path, name: str) -> str:
    """The example under this mark."""
    return re.search(rf"^<!-- {name} -->\n```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)[1]


# An attack that Ctrl-C interrupts.
INTERRUPTED = """
from types import SimpleNamespace
import dlg
args = feature = label = network = exe = origin_grad = None
def interrupted(*_):
    raise dlg.AttackInterrupted(SimpleNamespace(verdict="failed"))
dlg.dlg_attack = interrupted
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals that end a process")
def test_a_script_that_catches_an_interruption_as_the_docs_say_ends_by_ctrl_c():
    def run(script: str) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, "-c", INTERRUPTED + script], cwd=PROJECT, capture_output=True, text=True)

    caught = run(example_in(PROJECT / "docs" / "networks.md", "interrupted"))
    assert (caught.returncode, caught.stdout) == (-signal.SIGINT, "failed\n")
    assert run("try:\n    dlg.dlg_attack()\nexcept Exception:\n    pass").returncode == 1


@pytest.mark.parametrize(("name", "lines"), [("example", 10), ("static example", 15)])
def test_the_examples_for_ones_own_network_run(name, lines, tmp_path):
    example = example_in(README, name)
    assert len([line for line in example.splitlines() if line]) == lines
    data = (
        "import numpy as np\nmy_images = np.random.rand(1, 1, 28, 28).astype('float32')\nmy_labels = np.array([[3]])\n"
    )
    code = f"{data}{example}print(result.label.shape, result.feature.shape, result.verdict)"
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-c", code]
    finished = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert "(1,) (1, 1, 28, 28) explained" in finished.stdout
    assert (tmp_path / "att_results" / "result_0.png").exists()
    assert (tmp_path / "att_results" / "progress.png").exists() == (name == "example")
