"""docs/architecture.md is true: all modules, their order of imports.

Each file of tests has its kind, and no function of the project is too long or takes too much.
"""

import ast
import re
from itertools import chain
from pathlib import Path

import pytest
from conftest import KINDS
from helpers import ROOT

LIBRARY = ROOT / "drhard"
LISTED = re.findall(r"^- `(\w+)`: ", (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"), re.MULTILINE)
FOLDERS = ("drhard", "star", "adore", "tests", "benchmarks", "data/sample", "data/gcide", "data/code")
PYTHON = [*ROOT.glob("*.py"), *chain.from_iterable((ROOT / folder).rglob("*.py") for folder in FOLDERS)]
LONGEST, MOST_PARAMETERS = 50, 7  # lines beside the docstring


def test_every_module_is_listed_once() -> None:
    assert sorted(LISTED) == sorted(path.stem for path in LIBRARY.glob("*.py") if path.stem != "__init__")


def test_every_file_of_tests_has_its_kind() -> None:
    """Add a new file to KINDS in tests/conftest.py."""
    names = [f"test_{name}" for name in chain.from_iterable(KINDS.values())]
    assert sorted(names) == sorted(path.stem for path in (ROOT / "tests").rglob("test_*.py"))


def imported(path: Path) -> set[str]:
    """The modules of the library that a file imports, inside functions too."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    names = [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    return {name.removeprefix("drhard.") for name in names if name.startswith("drhard.")}


@pytest.mark.parametrize("module", LISTED)
def test_a_module_imports_only_from_those_above_it(module: str) -> None:
    below = LISTED[LISTED.index(module) :]
    assert not imported(LIBRARY / f"{module}.py") & set(below)


def functions(path: Path) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.FunctionDef)]


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_are_short_and_take_little(path: Path) -> None:
    for function in functions(path):
        start = function.body[1] if ast.get_docstring(function) and len(function.body) > 1 else function.body[0]
        assert (function.end_lineno or 0) - start.lineno < LONGEST, function.name
        arguments = function.args
        names = [one.arg for one in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
        assert len([name for name in names if name not in ("self", "cls")]) <= MOST_PARAMETERS, function.name
