"""Imports go one way: what lies below knows nothing of what lies above it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "rcmnet_jax"
# Of each folder those that its modules may import; what lies beside the folders ties them together.
BELOW = {
    "models": set(),
    "data": set(),
    "checkpoint": {"models"},
    "training": {"models", "data", "checkpoint"},
    "evaluation": {"models", "data", "training"},
    "export": {"models", "data", "checkpoint", "training", "evaluation"},
    "report": {"models", "data", "checkpoint", "training", "evaluation"},
}


def imported(file: Path) -> set[str]:
    """The modules of the package that a file imports, also within functions and for types alone."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "rcmnet_jax":
            found |= {f"rcmnet_jax.{name.name}" for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    return {name for name in found if name.startswith("rcmnet_jax.")}


def test_every_folder_has_its_place_in_the_order():
    assert {folder.parent.name for folder in PACKAGE.glob("*/__init__.py")} == set(BELOW)


@pytest.mark.parametrize("folder", BELOW)
def test_a_folder_imports_only_those_below_it(folder):
    files = list((PACKAGE / folder).rglob("*.py"))
    assert files
    for file in files:
        others = {name.split(".")[1] for name in imported(file)} & set(BELOW) - {folder}
        assert others <= BELOW[folder], file.relative_to(PACKAGE)
