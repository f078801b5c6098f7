"""The laws of the architecture, read off the imports.

The folder tree is the threat model: the attacker's side must not be able to
reach the participant's, and what both share must know neither.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from conftest import PROJECT

PACKAGE = PROJECT / "dlg"
MODULES = {
    ".".join(file.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__"): file
    for file in PACKAGE.rglob("*.py")
}


def imports(file: Path) -> set[str]:
    """The modules of this package that a file imports, inside of functions too."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file} has a relative import, which this test does not follow"
            # `from package import name`: the name may be a module of its own, or stand in the package.
            found |= {
                name if (name := f"{node.module}.{alias.name}") in MODULES else node.module for alias in node.names
            }
    return found & set(MODULES)


IMPORTS = {module: imports(file) for module, file in MODULES.items()}


def reached_from(module: str) -> set[str]:
    """A module, and whatever it imports, directly or not."""
    reached, waiting = set(), [module]
    while waiting:
        current = waiting.pop()
        if current not in reached:
            reached.add(current)
            waiting.extend(IMPORTS[current])
    return reached


def in_package(package: str) -> list[str]:
    modules = [module for module in MODULES if f"{module}.".startswith(f"dlg.{package}.")]
    assert len(modules) > 1, f"dlg/{package} is gone; write the laws anew"
    return modules


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("attack", ("participant", "audit", "flower")),
        ("participant", ("attack", "audit", "flower")),
        ("graph", ("attack", "participant", "audit", "flower")),
        ("results", ("attack", "participant", "audit", "flower")),
        ("flower", ("participant",)),
    ],
)
def test_no_package_reaches_what_it_must_not_know(package, forbidden):
    prefixes = tuple(f"dlg.{name}." for name in forbidden)
    for module in in_package(package):
        reached = [other for other in sorted(reached_from(module)) if f"{other}.".startswith(prefixes)]
        assert not reached, f"{module} reaches {reached[0]}"


def test_the_front_door_cannot_reach_the_participants_side():
    reached = reached_from("dlg.dlg")
    assert "dlg.attack.objective" in reached
    assert not [module for module in reached if module.startswith(("dlg.participant", "dlg.audit"))]


def test_no_circle():
    for module in MODULES:
        for imported in IMPORTS[module] - {"dlg"}:
            assert module not in reached_from(imported), f"{module} and {imported} import each other"
