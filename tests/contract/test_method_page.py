"""The documentation's page of methods says what the registry says."""

from pathlib import Path

from bench.catalogue import page
from services.unlearning.method import METHODS

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
PAGE = REFERENCE / "methods.md"


def test_the_page_of_methods_is_what_the_registry_gives():
    assert PAGE.read_text() == page(), "run: python -m bench catalogue > docs/reference/methods.md"


def test_every_method_names_its_source():
    assert all(f"| `{name}` |" in page() for name in METHODS)
    assert "| - |" not in page()


def test_the_page_of_applicability_speaks_of_every_method_for_classifiers():
    lines = (REFERENCE / "applicability.md").read_text().splitlines()

    shown = {line.split("`")[1] for line in lines if line.startswith("| `")}
    assert shown == {name for name in METHODS if "classification" in METHODS[name].tasks}, (
        "run: python -m bench applicability > docs/reference/applicability.md"
    )
