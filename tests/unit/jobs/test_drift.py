"""The empirical ledger: it only grows, counts a removal once, is ended by an exact training alone, and where nothing is left asks for one."""

import dataclasses
import json
import math
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon

from services import drift
from services.drift import EmpiricalLedger, Spend, handed_on, standing
from services.errors import CannotPass, DriftSpent
from services.jobs.compute.evaluate import drifted
from services.jobs.outcomes import GIVES_WAY, TO_RETRAINING
from services.jobs.steps import materialize, publish
from services.jobs.steps.plan import refuse_spent
from services.tenants.policies import Drift, Limits, drift_caps
from services.unlearning.mechanisms.drift_ledger import CertifiedLedger
from services.verification.metric import Models
from services.verification.reading import Measured, Reading, Unmeasured
from tests.unit.verification.worlds import TASK, FixedLogits, split_of, splits_of

CAPS = Drift().model_dump()
AMOUNTS = st.dictionaries(st.sampled_from(drift.COMPONENTS[1:]), st.floats(0, 2), max_size=3)
SPENDS = st.lists(st.builds(Spend, st.sampled_from("abcdefgh"), AMOUNTS), max_size=12)


@settings(max_examples=40, deadline=None)
@given(SPENDS)
def test_nothing_that_is_left_ever_grows_and_a_removal_counts_once(spends: list[Spend]) -> None:
    ledger = EmpiricalLedger(CAPS)
    for spend in spends:
        before, known = ledger.remaining(), spend.key in ledger.keys
        ledger.step(spend)
        after = ledger.remaining()
        assert all(after[name] <= before[name] for name in before)
        assert (after == before) is known
    first = {spend.key: spend for spend in reversed(spends)}
    assert len(ledger) == len(first)
    for name in ("js", "utility_drop", "share"):
        assert ledger.spent.get(name, 0.0) == pytest.approx(sum(spend.amounts.get(name, 0.0) for spend in first.values()))


@settings(max_examples=40, deadline=None)
@given(SPENDS)
def test_a_ledger_is_the_same_after_its_way_through_a_manifest(spends: list[Spend]) -> None:
    ledger, manifest = EmpiricalLedger(CAPS), None
    for spend in spends:
        ledger.step(spend)
        manifest = json.loads(json.dumps({"ledger": handed_on(manifest, spend)}))

    assert standing(manifest, CAPS) == drift.Standing("empirical", len(ledger), ledger.remaining())


@pytest.mark.parametrize("amounts", [{"js": -0.1}, {"js": math.nan}, {"share": math.inf}, {"gradient_norm": 0.1}])
def test_an_amount_that_is_none_is_refused(amounts: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="a removal spends"):
        EmpiricalLedger(CAPS).step(Spend("a", amounts))


def test_the_ledger_of_another_mechanism_is_refused_and_a_certified_one_is_not_carried_on() -> None:
    certified = CertifiedLedger(noise=0.5, epsilon=1.0, delta=1e-4)
    certified.step(Spend("x", {"bound": 0.01}))
    manifest = {"ledger": {"budget": certified.state_dict()}}

    with pytest.raises(ValueError, match="mechanism 'certified'"):
        EmpiricalLedger(CAPS).load_state_dict(certified.state_dict())
    assert standing(manifest, CAPS) == drift.Standing("certified", 1, certified.remaining())
    assert handed_on(manifest, Spend("y", {"js": 0.1}))["budget"] == {"mechanism": "empirical", "spent": {"js": 0.1}, "keys": ["y"]}


def test_a_policy_from_before_has_the_default_caps_and_none_is_no_cap() -> None:
    assert drift_caps({"records_share": None}) == CAPS == Limits().model_dump()["drift"]
    assert EmpiricalLedger(drift_caps({"drift": {"js": None}})).remaining().keys() == {"removals", "utility_drop", "share"}


def version(*keys: str, own: bool = True, recipe: Any = "a recipe", **spent: float) -> Any:
    ledger = {"budget": {"mechanism": "empirical", "spent": spent, "keys": list(keys)}} if keys else {}
    return SimpleNamespace(manifest={"ledger": ledger}, job_id=UUID(int=1) if own else None, recipe=recipe)


def work(base: Any, *, job: int = 7, **others: Any) -> Any:
    held = SimpleNamespace(id=UUID(int=job), kind="unlearn", method="unsir", tenant_id=UUID(int=5), choice=None)
    policy = SimpleNamespace(limits={"drift": {"removals": 2, "js": 0.5}})
    return SimpleNamespace(**{"job": held, "base": base, "policy": policy, "zero_shot": False, "model": SimpleNamespace(id=UUID(int=3)), **others})


def done(guarantee: str = "approximate", *, notes: Any = None, moved: Any = None) -> dict[str, Any]:
    return {
        "materialize": {"metrics": {"roles": {"forget": 20, "retain": 180, "attack": 50}}},
        "unlearn": {"run": {"guarantee": guarantee, "notes": notes or {}}},
        "evaluate": {"run": {"drift": moved if moved is not None else {"js": 0.125, "utility_drop": 0.0}}},
    }


def test_a_published_edit_is_counted_once_whichever_attempt_publishes_it() -> None:
    found = publish.ledger_after(work(version()), done())
    assert found["budget"] == {"mechanism": "empirical", "spent": {"js": 0.125, "utility_drop": 0.0, "share": 0.1}, "keys": [UUID(int=7).hex]}

    resumed = SimpleNamespace(manifest={"ledger": found}, job_id=UUID(int=1), recipe=None)
    assert publish.ledger_after(work(resumed), done()) == found
    assert publish.ledger_after(work(resumed, job=8), done(moved={}))["budget"]["spent"]["share"] == pytest.approx(0.2)


def test_an_exact_run_begins_anew_a_certified_one_keeps_its_own_and_an_upload_brings_none() -> None:
    held = version("a", "b", js=0.3)
    assert publish.ledger_after(work(held), done("exact")) == {}
    assert publish.ledger_after(work(held), done("certified", notes={"ledger": {"budget": {"mechanism": "certified"}}})) == {
        "budget": {"mechanism": "certified"}
    }
    assert len(publish.ledger_after(work(version("a", own=False)), done())["budget"]["keys"]) == 1
    assert materialize.inherited_by(work(held)) == {}


@pytest.mark.parametrize(("guarantee", "keys", "told"), [("exact", ("a", "b"), 1), ("exact", (), 0), ("approximate", ("a", "b"), 0)])
def test_the_end_of_a_ledger_is_an_event_of_the_log(guarantee: str, keys: tuple[str, ...], told: int, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[dict[str, Any]] = []
    monkeypatch.setattr(publish.log, "record", lambda _session, **facts: events.append(facts))

    publish._tell_reset(cast("Any", None), work(version(*keys)), {"guarantee": guarantee})

    assert [event["type"] for event in events] == ["ledger.reset"] * told
    assert [event["body"] for event in events] == [{"model": UUID(int=3).hex, "mechanism": "empirical", "removals": 2}] * told


def test_where_a_cap_is_reached_the_next_removal_is_a_retraining() -> None:
    refuse_spent(work(version("a", js=0.49)), "approximate")
    for spent in (version("a", "b"), version("a", js=0.5)):
        with pytest.raises(DriftSpent, match="Only a retraining starts anew"):
            refuse_spent(work(spent), "approximate")
        refuse_spent(work(spent), "exact")
        refuse_spent(work(SimpleNamespace(**{**vars(spent), "recipe": None})), "approximate")
        refuse_spent(work(spent, zero_shot=True), "approximate")
        refuse_spent(work(SimpleNamespace(**{**vars(spent), "job_id": None})), "approximate")
    assert {CannotPass.code, DriftSpent.code} == TO_RETRAINING <= GIVES_WAY


def test_what_is_counted_is_the_divergence_from_the_original_and_the_accuracy_lost() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 30)
    before, after = (rng.normal(size=(30, 10)) for _ in range(2))
    splits = splits_of(forget=split_of("f", []), verification=split_of("v", labels))
    models = Models(FixedLogits(before), FixedLogits(after))
    number = Reading(-0.02, -0.04, 0.0, 0.9, 30)
    kept = Measured("metric", "accuracy", "retain_test", number, number, number, change=number)

    found = drifted(models, splits, TASK, [kept])

    p, q = (np.exp(z) / np.exp(z).sum(axis=1, keepdims=True) for z in (before, after))
    assert found == {"js": pytest.approx(np.mean(jensenshannon(p, q, base=2, axis=1) ** 2), abs=1e-5), "utility_drop": 0.02}
    risen = dataclasses.replace(kept, change=Reading(0.05, 0.0, 0.1, 0.9, 30))
    assert drifted(models, splits, TASK, [risen])["utility_drop"] == 0.0
    assert drifted(models, splits_of(forget=split_of("f", [])), TASK, [dataclasses.replace(kept, change=Unmeasured("x"))]) == {}
