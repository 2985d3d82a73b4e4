"""Each method of the papers for classifiers by name, and each kind of request by the router, over the HTTP API of a running stack."""

from collections.abc import Iterator
from typing import Any

import pytest

from cli.client import Client
from tests.e2e.conftest import Up
from tests.e2e.desk import PAPERS, Desk

pytestmark = [pytest.mark.xdist_group("up"), pytest.mark.soak]

FEWER_BATCHES: dict[str, dict[str, Any]] = {"gkt": {"n_pseudo_batches": 10}}
"""`gkt` and `emmn` end at the rungs behind them where there are some."""
CLASS_OF = {method: str(number) for number, method in zip((1, 2, 3, 4, 7, 8), PAPERS, strict=True)}
RECORDS = ("subset", "subject")
KINDS = ("class", *RECORDS)
DATA_FREE = ("gkt", "emmn", "lra_npp")
"""The methods of the papers that need no record that the model learned from."""


@pytest.fixture(scope="module")
def desk(up: Up, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    client = Client(up.url, up.key)
    made = Desk(client, tmp_path_factory.mktemp("desk"), "named", seed=4)
    made.prepare([*map(named, PAPERS), *(f"records-{kind}" for kind in RECORDS), *(f"auto-{kind}" for kind in KINDS)])
    yield made
    client.close()


def named(method: str, first: str = "by") -> str:
    """Return the name of the model that a method is tried on."""
    return f"{first}-{method.replace('_', '-')}"


def person(desk: Desk, number: int) -> dict[str, Any]:
    return {"kind": "subject", "identifiers": [{"type": "controller_customer_id", "value": f"{desk.person}{number:03}"}]}


def digit(desk: Desk, label: str) -> dict[str, Any]:
    return {"kind": "class_labels", "dataset": desk.learned, "labels": [label]}


def records(desk: Desk, first: int) -> dict[str, Any]:
    return {"kind": "records", "dataset": desk.learned, "ids": [f"digits-{row:06d}" for row in range(first, first + 120, 3)]}


@pytest.mark.parametrize("method", PAPERS)
def test_a_class_request_goes_through_with_each_method_of_the_papers_by_name(desk: Desk, method: str) -> None:
    ended = desk.ask(digit(desk, CLASS_OF[method]), models=[named(method)], method=method, parameters=FEWER_BATCHES.get(method, {}))
    assert ended["report"]["processing"][0]["method"] == method
    desk.check_passed(ended, named(method))


@pytest.mark.parametrize("kind", RECORDS)
def test_a_request_for_records_goes_through_with_the_one_method_of_the_papers_by_which_a_classifier_forgets_records(desk: Desk, kind: str) -> None:
    scope = {"subset": records(desk, 101), "subject": person(desk, 30)}[kind]
    ended = desk.ask(scope, models=[f"records-{kind}"], method="bad_teacher")
    assert ended["jobs"][0]["method"] == ended["report"]["processing"][0]["method"] == "bad_teacher"
    desk.check_passed(ended, f"records-{kind}")


@pytest.mark.parametrize("kind", KINDS)
def test_the_router_serves_a_request_of_each_kind(desk: Desk, kind: str) -> None:
    scope = {"class": digit(desk, "9"), "subset": records(desk, 100), "subject": person(desk, 20)}[kind]
    ended = desk.ask(scope, models=[f"auto-{kind}"], method="auto")
    desk.check_passed(ended, f"auto-{kind}")
    assert ended["jobs"][0]["choice"]["reason"]


@pytest.mark.parametrize("method", DATA_FREE)
def test_a_method_of_the_papers_that_needs_no_training_record_serves_a_model_without_data_by_name(desk: Desk, method: str) -> None:
    model = desk.uploaded(named(method, "sealed"), evaluated_on={"dataset": desk.judged, "version": 1})
    scope = {"kind": "class_labels", "model": model, "labels": ["6"]}
    ended = desk.ask(scope, method=method, parameters=FEWER_BATCHES.get(method, {}))
    assert ended["jobs"][0]["method"] == method
    desk.check_published_or_explained(ended, model)


def test_with_no_training_data_held_the_router_takes_gkt_and_publishes_only_what_passes(desk: Desk) -> None:
    model = desk.uploaded("sealed-auto", evaluated_on={"dataset": desk.judged, "version": 1})
    ended = desk.ask({"kind": "class_labels", "model": model, "labels": ["5"]}, method="auto")
    assert [job["method"] for job in ended["jobs"]] == ["gkt"]
    assert "no training data are held" in ended["jobs"][0]["choice"]["reason"]
    desk.check_published_or_explained(ended, model)
