"""The published schema of a report, by an independent validator: good and bad examples."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from services.audit import schema
from tests.unit.cli.report_maker import Made

PUBLISHED = Path(__file__).parents[3] / "docs" / "reference" / "report.schema.json"
GOOD = Made().statement
VALIDATOR = jsonschema_rs.validator_for(json.loads(PUBLISHED.read_text(encoding="utf-8")))


def places(body: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every object that is closed: all but the open documents."""
    if isinstance(body, list):
        return [found for number, part in enumerate(body) for found in places(part, (*path, number))]
    if not isinstance(body, dict) or (path[-1:] and path[-1] in {
        "body", "detail", "params", "effective", "choice", "hardware", "versions", "reference", "seeds", "retention", "derived",
    }):  # fmt: skip
        return []
    return [path, *(found for name, part in body.items() if name != "derived" for found in places(part, (*path, name)))]


def bent(path: tuple[Any, ...], change: Callable[[Any], Any]) -> dict[str, Any]:
    made = copy.deepcopy(GOOD)
    part: Any = made
    for step in path:
        part = part[step]
    change(part)
    return made


def test_the_committed_schema_is_the_one_the_code_gives() -> None:
    assert PUBLISHED.read_text(encoding="utf-8") == schema.text(), "run: .venv/bin/python -m services.audit.schema docs/reference/report.schema.json"


def test_the_statement_that_the_service_makes_is_of_the_published_form() -> None:
    for made in (Made(), Made(verdict="failed", codes=("leak",)), Made(guarantee="exact")):
        assert [str(error) for error in VALIDATOR.iter_errors(made.statement)] == []


def test_figures_with_and_without_data_are_of_the_published_form() -> None:
    entries = [{"name": "roc", "data_digest": "ab" * 32}, {"name": "loss", "data_digest": None, "reason": "too few records"}]
    assert VALIDATOR.is_valid(bent(("predicate",), lambda part: part.update(figures=entries)))


@pytest.mark.parametrize("path", places(GOOD), ids=lambda path: "/".join(map(str, path)) or "statement")
def test_no_closed_part_takes_a_member_more_or_does_without_one(path: tuple[Any, ...]) -> None:
    assert not VALIDATOR.is_valid(bent(path, lambda part: part.update(unheard_of=1)))
    required = next(iter(bent(path, lambda part: None))) if not path else None
    assert required != "unheard_of"


@pytest.mark.parametrize(
    ("path", "member", "value"),
    [
        (("predicate",), "report_version", "2"), (("predicate",), "verdict", "fine"), (("predicate",), "revision", 0), (("predicate",), "request", "dr_1"),
        (("predicate", "verification", 0, "metrics", 0), "after", 0.105), (("predicate", "verification", 0, "metrics", 0), "after", "1e-5"),
        (("predicate", "verification", 0, "metrics", 0), "state", "good"), (("predicate", "verification", 0, "metrics", 0), "interval", ["0.1"]),
        (("predicate", "verification", 0, "plan"), "leaf_index", "4"), (("predicate", "verification", 0, "plan"), "leaf_index", -1),
        (("predicate", "processing", 0), "method_seconds", 1.25), (("predicate", "clock"), "due", "tomorrow"), (("predicate", "clock"), "on_time", "yes"),
        (("subject", 0, "digest"), "sha256", "AB" * 32), ((), "_type", "x"), ((), "predicateType", "x"),
    ],
)  # fmt: skip
def test_a_member_of_the_wrong_form_is_refused(path: tuple[Any, ...], member: str, value: Any) -> None:
    assert not VALIDATOR.is_valid(bent(path, lambda part: part.update({member: value})))


@pytest.mark.parametrize("member", ["verdict", "sentence", "clock", "processing", "verification", "limitations", "chain", "figures"])
def test_a_report_without_a_member_is_refused(member: str) -> None:
    assert not VALIDATOR.is_valid(bent(("predicate",), lambda part: part.pop(member)))
