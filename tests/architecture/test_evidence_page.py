"""The page that says which test holds which rule of the evidence names tests that exist, and leaves out no fault of public code."""

import ast
import re
from functools import cache
from pathlib import Path

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "reference" / "evidence-tests.md"
NAMED = re.compile(r"(soak )?`([\w/]+\.py)::(\w+)`")
ROWS = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ") and not line.startswith(("| row", "|---"))]
ENTRIES = sorted({(path, name, bool(soak)) for row in ROWS for soak, path, name in NAMED.findall(row)})


@cache
def functions(path: str) -> dict[str, str]:
    """Return the test functions of a file with the text of their marks, those of the whole file among them."""
    module = ast.parse((TESTS / path).read_text(encoding="utf-8"))
    whole = " ".join(ast.unparse(node) for node in module.body if isinstance(node, ast.Assign) and "pytestmark" in ast.unparse(node.targets[0]))
    found = [node for node in ast.walk(module) if isinstance(node, ast.FunctionDef)]
    return {node.name: " ".join([whole, *map(ast.unparse, node.decorator_list)]) for node in found}


def test_every_test_that_the_page_names_exists():
    missing = [f"{path}::{name}" for path, name, _ in ENTRIES if not (TESTS / path).exists() or name not in functions(path)]
    unmarked = [f"{path}::{name}" for path, name, soak in ENTRIES if soak and "soak" not in functions(path)[name]]

    assert missing == []
    assert unmarked == []


def test_every_fault_has_its_row_and_every_row_a_test_or_says_that_it_is_not_built():
    numbers = [int(row.split("|")[1]) for row in ROWS if row.split("|")[1].strip().isdigit()]

    assert numbers == list(range(1, 29))
    assert all(NAMED.search(row) or "not built" in row for row in ROWS)
    assert len(ENTRIES) > 100
