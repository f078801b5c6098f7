"""What pip installs: the same requirements as the files that set the project up, and every file that is needed."""

from __future__ import annotations

import re
import sys
from fnmatch import fnmatch
from itertools import pairwise

import pytest
from conftest import PROJECT
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it where Python has no tomllib

SETTINGS = tomllib.loads((PROJECT / "pyproject.toml").read_text())
DECLARED = SETTINGS["project"]
EXTRAS = DECLARED["optional-dependencies"]
SETUPTOOLS = SETTINGS["tool"]["setuptools"]


def lines_of(file: str) -> list[str]:
    return (PROJECT / file).read_text().splitlines()


def requirements_in(file: str) -> dict[str, Requirement]:
    """What a requirements file names, without the files that it includes."""
    return by_name(line for line in lines_of(file) if line and not line.startswith(("#", "-r ")))


def by_name(lines) -> dict[str, Requirement]:
    return {requirement.name: requirement for requirement in map(Requirement, lines)}


def test_requirements_are_those_of_the_attack_and_of_the_audit():
    assert requirements_in("requirements.txt") == by_name(DECLARED["dependencies"] + EXTRAS["audit"])


def test_the_tests_requirements_are_those_of_the_extras_test_dask_and_flower():
    more = by_name(EXTRAS["test"] + EXTRAS["dask"] + EXTRAS["flower"])
    audit = by_name(EXTRAS["audit"])
    assert requirements_in("tests/requirements.txt") == {name: more[name] for name in more if name not in audit}
    assert all(more[name] == audit[name] for name in more if name in audit)
    assert "-r ../requirements.txt" in lines_of("tests/requirements.txt")


@pytest.mark.parametrize("file", ["requirements.txt", "tests/requirements.txt"])
def test_every_requirement_has_its_reason_above_it(file):
    lines = lines_of(file)
    for above, line in pairwise(lines):
        if line and not line.startswith(("#", "-r ")):
            assert above.startswith("# "), f"{line} has no comment above it"


def test_the_attack_needs_nothing_of_the_audit():
    assert not by_name(DECLARED["dependencies"]).keys() & by_name(EXTRAS["audit"]).keys()


def test_the_versions_of_python_are_those_that_the_readme_names():
    supported = SpecifierSet(DECLARED["requires-python"])
    assert "Python 3.10 to 3.13" in (PROJECT / "README.md").read_text()
    assert [minor for minor in range(20) if supported.contains(f"3.{minor}")] == [10, 11, 12, 13]


def test_only_dlg_is_installed_and_all_of_it():
    assert SETUPTOOLS["packages"]["find"] == {"include": ["dlg*"], "namespaces": False}
    for module in (PROJECT / "dlg").rglob("*.py"):
        if module.name != "make_sample.py":  # it makes the sample, and nothing imports it
            assert (module.parent / "__init__.py").is_file(), f"{module.parent} would not be installed"


def test_every_file_that_is_no_module_is_package_data():
    patterns = [
        f"{package.replace('.', '/')}/{pattern}"
        for package, patterns in SETUPTOOLS["package-data"].items()
        for pattern in patterns
    ]
    files = {
        file.relative_to(PROJECT).as_posix()
        for file in (PROJECT / "dlg").rglob("*")
        if file.is_file() and file.suffix not in (".py", ".pyc")
    }
    assert not [file for file in files if not any(fnmatch(file, pattern) for pattern in patterns)]
    assert not [pattern for pattern in patterns if not any(fnmatch(file, pattern) for file in files)]


def test_the_changelog_begins_with_the_version_that_is_installed():
    changelog = (PROJECT / "CHANGELOG.md").read_text()
    assert re.search(r"^## \[(.+?)\]", changelog, re.MULTILINE)[1] == DECLARED["version"]
    assert f"version: {DECLARED['version']}\n" in (PROJECT / "CITATION.cff").read_text()


def test_the_modules_that_the_changelog_names_are_there():
    moved = re.findall(r"^  \| (`dlg.*) \| `(dlg\.[\w.]+)` \|$", (PROJECT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert len(moved) > 20
    for old, new in moved:
        path = PROJECT / new.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__init__.py").is_file(), f"{old} has not moved to {new}"
