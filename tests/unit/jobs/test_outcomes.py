from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest

from services.clock import SystemClock
from services.errors import DeviceOutOfMemory, DigestMismatch, StoreDown
from services.jobs import outcomes, rungs
from services.jobs.repository import Work
from services.jobs.steps.plan import ladder_of


def work(
    method: str, *, kind: str = "class", recipe: dict[str, int] | None = None, choice: dict[str, Any] | None = None, zero_shot: bool = False
) -> Work:
    ladder = [{"method": "unsir", "granularities": ["class"]}, {"method": "bad_teacher", "parameters": {"epochs": 2}}, {"method": "retrain"}]
    return cast(
        "Work",
        SimpleNamespace(
            job=SimpleNamespace(method=method, choice=choice),
            base=SimpleNamespace(recipe=recipe),
            zero_shot=zero_shot,
            policy=SimpleNamespace(ladder=ladder),
            request_kind=kind,
            granularity=kind,
        ),
    )


@pytest.mark.parametrize(
    ("method", "kind", "expected"),
    [
        ("unsir", "class", ("bad_teacher", {"epochs": 2})),
        ("bad_teacher", "class", ("retrain", {})),
        ("retrain", "class", None),
        ("fine_tune", "records", ("retrain", {})),
    ],
)
def test_the_next_rung_follows_the_ladder_and_the_last_is_retraining(method: str, kind: str, expected: object) -> None:
    assert outcomes.next_rung(work(method, kind=kind, recipe={"epochs": 1})) == expected


def test_a_verdict_that_no_approximate_method_could_pass_goes_to_retraining() -> None:
    assert outcomes.next_rung(work("unsir", recipe={"epochs": 1}), ["cannot_pass"]) == ("retrain", {})


def test_a_retraining_that_lost_utility_alone_is_made_twice_at_most() -> None:
    assert outcomes.next_rung(work("retrain", recipe={"epochs": 1}), ["utility"]) == ("retrain", {})
    assert outcomes.next_rung(work("retrain", recipe={"epochs": 1}, choice={"rungs": ["retrain"], "again": True}), ["utility"]) is None


def test_a_method_that_lost_utility_alone_is_made_once_more_in_its_gentler_form_and_then_the_next_rung_comes() -> None:
    held: dict[str, Any] = {"recipe": {"epochs": 1}}
    softer = {"lr": 0.0005}
    assert outcomes.next_rung(work("bad_teacher", **held), ["utility"], softer=softer) == ("bad_teacher", softer)
    assert outcomes.next_rung(work("bad_teacher", **held), ["utility"]) == ("retrain", {})
    assert outcomes.next_rung(work("bad_teacher", **held), ["utility", "leak"], softer=softer) == ("retrain", {})
    assert outcomes.next_rung(work("bad_teacher", choice={"again": True}, **held), ["utility"], softer=softer) == ("retrain", {})


def test_rungs_for_which_the_time_is_too_short_are_passed_over_and_retraining_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def late(_session: object, _work: object, names: Sequence[str]) -> dict[str, str]:
        asked.append(list(names))
        return {"bad_teacher": "slow"}

    monkeypatch.setattr(rungs, "softer", lambda *_given: None)
    monkeypatch.setattr(rungs, "too_late", late)

    assert outcomes.further(cast("Any", None), work("unsir", recipe={"epochs": 1}), ["leak"]) == (("retrain", {}), {"bad_teacher": "slow"})
    assert asked == [["bad_teacher", "retrain"]]


@pytest.mark.parametrize(("again", "method"), [(None, "bad_teacher"), (True, "unsir")])
def test_the_next_job_says_which_rungs_were_passed_over_and_so_does_the_log(again: object, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Any]] = []
    told: list[dict[str, Any]] = []
    old = SimpleNamespace(
        id=UUID(int=1), tenant_id=UUID(int=2), method="unsir", rung=1, seeds={"train": 3}, choice={"skipped": {"x": "y"}, "again": True}
    )
    monkeypatch.setattr(outcomes.repository, "active_targets", lambda *_given: [])
    monkeypatch.setattr(outcomes.repository, "insert_rung", lambda _session, _job, values, _targets: made.append(values))
    monkeypatch.setattr(outcomes.log, "record", lambda _session, **facts: told.append(facts))
    monkeypatch.setattr(outcomes.outbox, "ring", lambda *_given, **_facts: None)

    outcomes._escalate(
        cast("Any", None), cast("Any", old), (method, {}), {"verdict": "failed", "codes": ["leak"]}, {"ssd": "slow"}, clock=SystemClock()
    )

    assert made[0]["choice"]["skipped"] == {"x": "y", "ssd": "slow"}
    assert made[0]["choice"].get("again") is again
    assert (told[0]["type"], told[0]["body"]["skipped"]) == ("job.escalated", {"ssd": "slow"})


@pytest.mark.parametrize(("left_s", "late"), [(1000, set()), (449, {"slow"}), (309, {"slow", "quick"}), (-5, {"slow", "quick"})])
def test_a_rung_must_end_before_retraining_has_to_begin(left_s: float, late: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime(2026, 3, 1, tzinfo=UTC)
    costs = {"quick": 10.0, "slow": 150.0, "retrain": 300.0}
    monkeypatch.setattr(rungs.repository, "now", lambda _session: now)
    monkeypatch.setattr(rungs, "seconds_of", lambda _session, _model, method, **_facts: (costs[method], "past runs"))
    job = SimpleNamespace(due_at=now + timedelta(seconds=left_s), choice=None)
    facts: dict[str, Any] = {"job": job, "model": SimpleNamespace(id=None), "labels": frozenset(), "targets": [], "policy": None, "zero_shot": False}

    def passed_over(**others: Any) -> dict[str, str]:
        given = SimpleNamespace(**{**facts, "base": SimpleNamespace(recipe={}), **others})
        return rungs.too_late(cast("Any", None), cast("Work", given), ["slow", "quick", "retrain"])

    assert set(passed_over()) == late
    assert all("before retraining has to begin" in why for why in passed_over().values())
    assert (
        passed_over(base=SimpleNamespace(recipe=None))
        == passed_over(zero_shot=True)
        == passed_over(job=SimpleNamespace(due_at=None, choice=None))
        == {}
    )


def test_a_version_without_a_recipe_has_no_retraining_rung() -> None:
    assert outcomes.next_rung(work("bad_teacher")) is None


def test_with_a_part_of_the_training_data_there_is_no_retraining_rung() -> None:
    chosen = {"rungs": [{"method": "unsir", "parameters": {}}], "held": ["forget", "recipe", "retain_part"]}
    assert outcomes.next_rung(work("unsir", recipe={"epochs": 1}, choice=chosen)) is None
    assert ladder_of(work("unsir", recipe={"epochs": 1}, choice=chosen))["no_retrain"] == "data_in_part"
    whole = {**chosen, "held": ["forget", "recipe", "retain", "retain_part"]}
    assert outcomes.next_rung(work("unsir", recipe={"epochs": 1}, choice=whole)) == ("retrain", {})


def test_a_rung_that_the_policy_does_not_list_keeps_the_parameters_it_was_chosen_with() -> None:
    rungs = [{"method": name, "parameters": more} for name, more in (("scrub", {}), ("certified_removal", {"features": "public"}), ("retrain", {}))]
    assert outcomes.next_rung(work("scrub", recipe={"epochs": 1}, choice={"rungs": rungs})) == ("certified_removal", {"features": "public"})


def test_without_any_training_data_there_is_no_retraining_rung() -> None:
    chosen = {"rungs": [{"method": "gkt", "parameters": {}}]}
    assert outcomes.next_rung(work("gkt", recipe={"epochs": 1}, choice=chosen, zero_shot=True)) is None


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (work("unsir", recipe={"epochs": 1}), {"next": "bad_teacher", "no_retrain": None}),
        (work("retrain", recipe={"epochs": 1}), {"next": None, "no_retrain": None}),
        (work("unsir"), {"next": "bad_teacher", "no_retrain": "no_recipe"}),
        (work("gkt", choice={"rungs": ["gkt"]}, zero_shot=True), {"next": None, "no_retrain": "no_data"}),
        (work("emmn", choice={"rungs": ["emmn", "gkt"]}, zero_shot=True), {"next": "gkt", "no_retrain": "no_data"}),
    ],
)
def test_the_plan_says_what_comes_behind_the_rung_and_why_a_retrain_may_not(given: Work, expected: dict[str, Any]) -> None:
    retraining = given.job.method == "retrain"
    assert ladder_of(given) == {**expected, "again": retraining, "gentler": False}
    assert ladder_of(given, softer={"lr": 0.1})["gentler"]


def test_a_retraining_that_was_made_again_is_not_made_a_third_time() -> None:
    assert ladder_of(work("retrain", recipe={"epochs": 1}, choice={"again": True}))["again"] is False


def test_rungs_chosen_at_the_start_come_before_the_policy() -> None:
    chosen = {"rungs": ["bad_teacher", "unsir", "retrain"]}
    assert outcomes.next_rung(work("bad_teacher", recipe={"epochs": 1}, choice=chosen)) == ("unsir", {})


def test_backoff_doubles_up_to_five_minutes_within_its_spread() -> None:
    assert [outcomes.backoff_s(k, chance=0.5) for k in (0, 1, 2, 20)] == [5.0, 10.0, 20.0, 300.0]
    assert outcomes.backoff_s(0, chance=0.0) == 2.5


@pytest.mark.parametrize(
    ("error", "retry_class"),
    [
        (StoreDown(detail="x"), "transient"),
        (DeviceOutOfMemory(detail="x"), "resource"),
        (DigestMismatch(name="x", actual="a", expected="b"), "permanent"),
        (ValueError("a person's name"), "crash"),
    ],
)
def test_an_error_is_stored_by_class_and_an_unknown_one_without_its_words(error: Exception, retry_class: str) -> None:
    found = outcomes.problem(error)
    assert found["retry_class"] == retry_class
    assert "person" not in found["detail"]


def test_seeds_of_the_next_rung_differ_and_are_repeatable() -> None:
    assert outcomes.fresh_seed(7, 2) == outcomes.fresh_seed(7, 2) != outcomes.fresh_seed(7, 3)


def test_the_next_rung_tells_the_codes_of_the_one_before_or_its_sentence():
    assert outcomes.why_next("ssd", {"verdict": "failed", "codes": ["leak", "utility"], "sentence": "It leaks."}) == "ssd was failed: leak, utility"
    said = "The tests say nothing about 9 records."
    assert outcomes.why_next("ssd", {"verdict": "inconclusive", "codes": [], "sentence": said}) == f"ssd was inconclusive: {said}"
    assert outcomes.why_next("ssd", {"verdict": "stopped", "codes": ["diverged"]}) == "ssd was stopped: diverged"
