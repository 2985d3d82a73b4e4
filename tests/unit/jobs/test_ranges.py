"""Which ranges of targets a batch forgets, and which of its targets are those of a range."""

from types import SimpleNamespace
from typing import Any

from services.jobs.repository import Work


def batch(*scopes: dict[str, Any]) -> Work:
    """A claimed job for one request of each scope."""
    requests = [SimpleNamespace(id=number, scope=scope) for number, scope in enumerate(scopes)]
    targets = [SimpleNamespace(id=10 + number, request_id=number) for number in range(len(scopes))]
    rest: dict[str, Any] = dict.fromkeys(("job", "model", "dataset", "dataset_version", "base", "policy"))
    return Work(**rest, dataset_files=[], base_files=[], targets=targets, requests=requests)  # pyright: ignore[reportArgumentType]


RECORDS = {"kind": "records", "records": 3}


def test_a_batch_of_one_range_has_that_range_however_often_it_is_asked_for() -> None:
    found = batch({"kind": "target_range", "below": 30}, {"kind": "target_range", "below": 30})
    assert found.spans == ((None, 30),)
    assert len(found.ranged_targets) == 2


def test_a_batch_that_mixes_ranges_and_records_keeps_every_range_and_knows_which_targets_are_of_one() -> None:
    found = batch({"kind": "target_range", "below": 30}, RECORDS, {"kind": "target_range", "above": 40, "below": 50})
    assert found.spans == ((None, 30), (40, 50))
    assert [target.id for target in found.ranged_targets] == [10, 12]
    assert found.request_kind == "records"


def test_a_batch_of_records_has_no_range() -> None:
    assert batch(RECORDS, RECORDS).spans == ()
    assert batch(RECORDS).ranged_targets == ()
