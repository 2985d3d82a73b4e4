"""What a plan foresees of itself: both chances, the bands that it widens, and what becomes of a job that nobody could pass."""

import functools
import json
import time
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import numpy as np
import pytest
import rfc8785
from scipy import stats

from services.errors import CannotPass
from services.jobs import outcomes, power, repository
from services.jobs.power import Earlier, Known, earlier_of, none_simulated, simulated
from services.jobs.steps import plan as planning
from services.jobs.steps.plan import gated, split_counts
from services.tenants.policies import DEMO, GDPR_DEFAULT
from services.verification.statistics.equivalence import equivalence_power
from services.verification.statistics.intervals import paired_proportions
from tests.unit.jobs.test_reference_seed import Shop, shop, work  # noqa: F401  a fixture

ACCURACY = {"kind": "metric", "name": "accuracy", "split": "forget_train", "direction": "band", "epsilon": 0.05, "gate": True}
ATTACK = {"kind": "attack", "name": "mia_v2", "split": "forget_train", "direction": "band", "epsilon": 0.05, "gate": True}
DIGITS = {"forget": 124, "retain": 1076, "verification": 199, "attack": 199, "forget_test": 19, "forget_attack": 19}
IMAGES = {"forget": 600, "retain": 5400, "verification": 1000, "attack": 1000, "forget_test": 100, "forget_attack": 100}
MANY_IMAGES = {name: 10 * count for name, count in IMAGES.items()}
NOISY = {"forget": 500, "retain": 700, "verification": 199, "attack": 199}
LARGE = {"forget": 2000, "retain": 50_000, "verification": 3000, "attack": 3000}


def told(readings: list[Any], roles: dict[str, int], *, kind: Any = "records", utility: Any = None, **known: Any) -> dict[str, Any]:
    return simulated(readings, utility=utility, level=0.9, alpha=0.05, known=Known(roles, kind, 10, **known))


def of_policy(policy: Any, roles: dict[str, int], kind: Any, **known: Any) -> dict[str, Any]:
    document = policy.verification.model_dump(mode="json", by_alias=True)
    readings = [gated(entry, split_counts(roles)) for entry in document[kind]]
    return told(readings, roles, kind=kind, utility=document["utility"], **known)


def widths(found: dict[str, Any]) -> dict[str, float]:
    return {entry["name"]: entry["epsilon"] for entry in found["readings"] if entry["gate"] and entry["split"].startswith("forget")}


def test_the_chance_of_one_area_is_the_closed_form_of_two_one_sided_tests() -> None:
    found = told([ATTACK], NOISY, learned=0.99, unseen=0.75)["power"]

    deviation = 0.45 * np.sqrt((1 / 500 + 1 / 199) / 12)
    assert found["gates"][0]["deviation"] == pytest.approx(deviation, abs=1e-5)
    assert found["gates"][0]["retrained_passes"] == pytest.approx(equivalence_power(deviation, 0.05), abs=0.01)


def test_a_plan_that_both_chances_carry_keeps_its_bands() -> None:
    found = of_policy(GDPR_DEFAULT, MANY_IMAGES, "class", learned=0.99, unseen=0.9)

    assert (found["power"]["widened"], found["power"]["cannot_pass"]) == ([], False)
    assert min(found["power"]["retrained_passes"], found["power"]["original_fails"]) > 0.95
    assert set(widths(found).values()) == {0.05}


def test_a_plan_that_a_retrained_model_would_fail_widens_its_bands_step_by_step() -> None:
    narrow = of_policy(GDPR_DEFAULT, IMAGES, "class", learned=0.99, unseen=0.9)
    noisy = of_policy(DEMO, NOISY, "records", learned=0.99, unseen=0.75)

    needed = 0.65 * np.sqrt((1 / 600 + 1 / 100) / 12) * (1.645 + 1.96)  # 100 non-members, and a chance of .95
    assert 0.07 < needed < 0.08
    assert [(one["name"], one["from"], one["to"]) for one in narrow["power"]["widened"]] == [("mia_v2", 0.05, 0.08)]
    assert widths(narrow)["mia_v2"] == 0.08
    assert {one["name"] for one in noisy["power"]["widened"]} == {"accuracy", "near_duplicate_accuracy", "streisand"}
    for found in (narrow, noisy):
        assert found["power"]["retrained_passes"] >= power.ENOUGH == 0.95
        assert found["power"]["original_fails"] >= power.SEEN == 0.9
        assert max(width for width in widths(found).values()) <= 0.15
        assert all(entry["epsilon"] == widths(found)[entry["name"]] for entry in found["power"]["gates"] if entry["split"] == "forget_train")


@pytest.mark.parametrize("earlier", [{}, {("js_divergence", "forget_train"): Earlier(0.4, 0.0066, 0.0)}])
def test_a_class_of_a_hundred_cannot_be_judged_by_where_its_answers_go_and_that_bound_is_not_widened(earlier: Any) -> None:
    found = of_policy(GDPR_DEFAULT, DIGITS, "class", learned=0.999, unseen=0.967, earlier=earlier)

    distance = next(gate for gate in found["power"]["gates"] if gate["name"] == "js_divergence")
    assert found["power"]["cannot_pass"]
    assert distance["epsilon"] == 0.05
    # 124 records: two retrained models scatter by .5 / sqrt(124) = .045, and the interval of one adds 1.645 * .08 / sqrt(124) = .012
    assert distance["retrained_passes"] == pytest.approx(stats.norm.cdf((0.05 - 0.0118) / np.hypot(0.0449, 0.0072)), abs=0.02)


def test_where_the_widest_bands_do_not_do_the_plan_cannot_pass() -> None:
    found = told([ACCURACY, ATTACK], {"forget": 20, "verification": 400, "attack": 30}, learned=1.0, unseen=0.6)

    assert found["power"]["cannot_pass"]
    assert found["power"]["retrained_passes"] < power.ENOUGH
    assert widths(found) == {"accuracy": 0.05, "mia_v2": 0.05}
    assert {gate["epsilon"] for gate in found["power"]["gates"]} == {0.15}


def test_a_plan_that_the_original_would_not_fail_cannot_pass() -> None:
    well_regularised = told([ACCURACY, ATTACK], LARGE, learned=0.93, unseen=0.92)

    assert well_regularised["power"]["retrained_passes"] > 0.95
    assert well_regularised["power"]["original_fails"] < 0.01
    assert well_regularised["power"]["cannot_pass"]


def test_of_twelve_kinds_of_request_the_same_eight_can_be_passed_whether_95_or_90_in_100_retrained_models_are_to_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held_out, shares, counts = (1000, 1333, 199), ((0.99, 0.85), (0.98, 0.80), (0.99, 0.75)), (100, 200, 500, 1000)
    found: dict[float, list[bool]] = {}

    for enough in (0.90, 0.95):
        monkeypatch.setattr(power, "ENOUGH", enough)
        found[enough] = [
            not of_policy(
                GDPR_DEFAULT, {"forget": count, "retain": 5000, "verification": others, "attack": others}, "records", learned=learned, unseen=unseen
            )["power"]["cannot_pass"]
            for others, (learned, unseen) in zip(held_out, shares, strict=True)
            for count in counts
        ]

    assert found[0.90] == found[0.95]
    assert sum(found[0.95]) == 8


def test_fewer_than_sixteen_records_on_either_side_can_show_nothing() -> None:
    assert told([ACCURACY], {**LARGE, "forget": 15}, learned=1.0, unseen=0.5)["power"]["retrained_passes"] == 0
    assert told([ATTACK], {**LARGE, "attack": 15}, learned=1.0, unseen=0.5)["power"]["cannot_pass"]


def test_without_the_originals_share_nothing_is_widened_and_only_the_first_chance_decides() -> None:
    few, many = (told([ACCURACY], {**LARGE, "forget": count}) for count in (200, 2000))

    for found, chance, cannot in ((few, (0.1, 0.9), True), (many, (0.95, 1.0), False)):
        assert (found["power"]["original_fails"], found["power"]["widened"], found["power"]["cannot_pass"]) == (None, [], cannot)
        assert chance[0] < found["power"]["retrained_passes"] <= chance[1]
        assert widths(found) == {"accuracy": 0.05}
    known = told([ACCURACY], {**LARGE, "forget": 200}, learned=0.99, unseen=0.6)  # a band may be widened that is known to leave the original out
    assert (known["power"]["widened"] != [], known["power"]["cannot_pass"]) == (True, False)


def test_a_gate_of_unknown_spread_is_named_and_nothing_is_claimed() -> None:
    probe = {**ATTACK, "kind": "metric", "name": "linear_probe_auc"}

    found = told([ACCURACY, probe], LARGE, learned=1.0, unseen=0.5)

    assert found["power"]["not_simulated"] == ["linear_probe_auc/forget_train"]
    assert (found["power"]["retrained_passes"], found["power"]["cannot_pass"]) == (None, False)
    assert told([], LARGE)["power"] == none_simulated(power.NO_GATE)


def test_non_members_of_a_range_are_those_in_the_range() -> None:
    """Of 300 attack rows 20 lie in it: on two sets retrained models then differ too much for any band that a plan may have."""
    readings = [{**ATTACK, "name": "regression_mia"}, {**ACCURACY, "name": "mean_absolute_error", "epsilon": 0.1}]
    few = {"forget": 240, "retain": 900, "verification": 300, "attack": 300, "forget_test": 20, "forget_attack": 20}
    many = {**few, "forget": 792, "forget_test": 260, "forget_attack": 260}

    assert told(readings, few, kind="range")["power"]["cannot_pass"]
    assert not told(readings, many, kind="range")["power"]["cannot_pass"]
    assert not told(readings, few, kind="records")["power"]["cannot_pass"]


def generated(known: Known, epsilon: float = 0.03) -> dict[str, Any]:
    shown = {**ATTACK, "kind": "metric", "name": "class_rate", "direction": "max", "epsilon": epsilon, "parameters": {"samples": 4000}}
    return simulated([shown], utility=None, level=0.9, alpha=0.05, known=known)["power"]


def test_two_small_generators_differ_too_much_for_the_band_until_it_is_known_how_much_the_original_shows() -> None:
    roles = {"forget": 124, "retain": 1076, "verification": 200, "attack": 200}
    strict, wide = (generated(Known(roles, "class"), epsilon) for epsilon in (0.03, 0.05))
    earlier = {("class_rate", "forget_train"): Earlier(0.12, 4000 * 0.003**2, 0.0)}
    later = generated(Known(roles, "class", earlier=earlier))

    assert (strict["cannot_pass"], strict["original_fails"], wide["cannot_pass"]) == (True, None, False)
    assert strict["retrained_passes"] == pytest.approx(stats.norm.cdf((0.03 - 1.645 * 0.0048) / 0.0206), abs=0.02)
    assert (later["cannot_pass"], later["widened"][0]["to"]) == (False, 0.04)


@pytest.mark.parametrize(("count", "passes"), [(20, 0.0), (60, 1.0)])
def test_answers_that_are_all_alike_tell_nothing_below_some_fifty(count: int, passes: float) -> None:
    exact = {**ACCURACY, "name": "exact_match"}
    assert simulated([exact], utility=None, level=0.9, alpha=0.05, known=Known({"forget": count}, "records"))["power"]["retrained_passes"] == passes


def test_the_likelihood_and_wording_of_twenty_answers_can_be_passed() -> None:
    said = [{**ACCURACY, "name": name, "epsilon": 0.10} for name in ("answer_probability", "rouge_l")]
    found = simulated(said, utility=None, level=0.9, alpha=0.05, known=Known({"forget": 20}, "records"))["power"]
    assert found["retrained_passes"] == pytest.approx(stats.norm.cdf(0.1 - 1.645 * 0.0179, scale=0.035) * 2 - 1, abs=0.02)


def test_what_a_gate_of_known_spread_leaves_no_chance_cannot_pass_whatever_the_others_may() -> None:
    error = {**ACCURACY, "name": "item_nn_distance", "epsilon": 0.10}
    attack = {**ATTACK, "name": "regression_mia"}
    many, few = (told([error, attack], {**LARGE, "attack": attacked})["power"] for attacked in (3000, 15))

    assert many["not_simulated"] == few["not_simulated"] == ["item_nn_distance/forget_train"]
    assert (many["retrained_passes"], many["retrained_passes_at_most"], many["cannot_pass"]) == (None, 1.0, False)
    assert (few["retrained_passes_at_most"], few["cannot_pass"]) == (0.0, True)
    assert "a chance of at most 0.00" in planning.foreseen(few)


def test_what_earlier_verdicts_measured_takes_the_place_of_what_is_assumed() -> None:
    calm, wild = Earlier(0.3, 0.01, 0.0), Earlier(0.3, 4.0, 0.0)
    probe = {**ATTACK, "kind": "metric", "name": "linear_probe_auc"}

    for held, passes in ((calm, 1.0), (wild, 0.0)):
        found = told([probe], {**LARGE, "forget": 100}, earlier={("linear_probe_auc", "forget_train"): held})["power"]
        assert found["gates"][0]["spread"] == "measured"
        assert found["retrained_passes"] == pytest.approx(passes, abs=0.01)
    scattered = told([ATTACK], LARGE, earlier={("mia_v2", "forget_train"): Earlier(0.5, 0.01, 0.3)})["power"]
    assert scattered["retrained_passes"] < 0.9


def test_stored_readings_are_read_back_as_gap_spread_and_floor() -> None:
    row = {
        "name": "mia_v2", "split": "forget_train", "n": 100, "level": "0.9000", "before": "0.8000", "reference": "0.5000",
        "band": {"floor": "0.0200"}, "detail": {"paired": {"low": "-0.0100", "high": "0.0229"}},
    }  # fmt: skip

    found = earlier_of([row, {**row, "before": None}, {**row, "detail": {}}, {**row, "name": "x", "band": None}])

    assert found["mia_v2", "forget_train"].gap == pytest.approx(0.3)
    assert found["mia_v2", "forget_train"].variance == pytest.approx(100 * 0.01**2, rel=1e-3)
    assert (found["mia_v2", "forget_train"].floor, found["x", "forget_train"].floor) == (0.02, 0.0)
    alone = earlier_of([{**row, "detail": {}, "ci_low": "0.4900", "ci_high": "0.5229"}])  # without a pair its own interval is what there is
    assert alone["mia_v2", "forget_train"].variance == pytest.approx(100 * 0.01**2, rel=1e-3)


@pytest.mark.parametrize(("gained", "lost", "count"), [(0, 0, 20), (0, 0, 600), (5, 5, 100), (20, 20, 400)])
def test_on_what_share_of_records_two_models_differed_is_read_back_from_tangos_interval(gained: int, lost: int, count: int) -> None:
    low, high = paired_proportions(gained, lost, count, level=0.9)
    row = {"name": "exact_match", "split": "forget_train", "n": count, "level": "0.9000", "before": "1.0000", "reference": "0.0000", "band": None}

    found = earlier_of([{**row, "detail": {"paired": {"low": f"{low:.6f}", "high": f"{high:.6f}"}}}])

    assert found["exact_match", "forget_train"].variance == pytest.approx((gained + lost) / count, rel=0.1, abs=1e-4)


def test_a_drop_that_is_no_more_than_the_floor_is_shown_is_unlikely_to_be_called_one() -> None:
    strict, loose = (power._kept(Known(NOISY, "records", 10, 0.99, 0.75), {"total": total}, alpha=0.004) for total in (0.0, 0.05))

    assert strict == pytest.approx(0.996)
    assert loose > strict


def test_an_attack_on_retained_records_takes_its_share_of_the_chance() -> None:
    others = {**ATTACK, "split": "retain_train", "direction": "max", "epsilon": 0.02}
    without, beside = (told([ACCURACY, *more], LARGE, learned=0.97, unseen=0.9)["power"] for more in ([], [others]))

    deviation = 0.45 * np.sqrt((1 / 5000 + 1 / 3000) / 12)  # of 50,000 retained records the attack takes 5,000
    assert beside["kept"] == pytest.approx(stats.norm.cdf(stats.norm.ppf(1 - 0.05 / 2) + 0.02 / deviation), abs=1e-4)
    assert power._not_exposed([{**others, "epsilon": 0.0}], Known(LARGE, "records"), alpha=0.04) == pytest.approx(0.96)
    assert (without["kept"], [gate["name"] for gate in beside["gates"]]) == (1.0, ["accuracy"])


def test_a_simulation_repeats_is_canonical_json_and_takes_less_than_a_second() -> None:
    begun = time.process_time()

    first, second = (of_policy(GDPR_DEFAULT, LARGE, "records", learned=0.97, unseen=0.9) for _ in range(2))

    assert first == second
    assert json.loads(rfc8785.dumps(first)) == first
    assert time.process_time() - begun < 2


def test_beside_models_on_halves_intervals_are_wider_and_a_retrained_model_passes_less_often() -> None:
    beside = [Known(LARGE, "records", 10, 0.97, 0.9, halves=halves) for halves in (False, True)]

    found = [power.simulated([{**ATTACK, "epsilon": 0.02}], utility=None, level=0.9, alpha=0.05, known=one)["power"]["gates"][0] for one in beside]

    assert found[1]["deviation"] == pytest.approx(1.4 * found[0]["deviation"], rel=1e-3)
    shares = [power._disagreement("accuracy", one, None, "forget_train") for one in beside]
    assert shares == [pytest.approx(0.09), pytest.approx(0.09 * 1.96)]


VERIFICATION = {"records": [ACCURACY, ATTACK], "class": [ACCURACY]}


def job_of(by: str, shop: Shop, monkeypatch: pytest.MonkeyPatch, *, recipe: Any = "own") -> Any:  # noqa: F811  the fixture
    """A job on five records that somebody chose the method of; its plan cannot be passed."""
    found = work()
    found.job.choice = {"by": by, "rungs": ["m", "retrain"]}
    found.policy = SimpleNamespace(key="demo", version=1, verification=VERIFICATION, limits={}, ladder=[{"method": "m"}, {"method": "retrain"}])
    if recipe is None:
        found.base.recipe = None
    monkeypatch.setattr(repository, "measured_shares", lambda _session, _version: (0.9, 0.9))
    return found


@pytest.mark.parametrize("by", ["router", "ladder"])
def test_a_method_that_the_service_chose_gives_way_before_it_runs(by: str, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    with pytest.raises(CannotPass, match=r"was not tried: under its plan a retrained model would pass with a chance of 0.00"):
        shop.frozen(job_of(by, shop, monkeypatch))

    assert not shop.plans


def test_a_method_that_the_caller_named_runs_all_the_same(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    body = shop.frozen(job_of("caller", shop, monkeypatch))

    assert body["power"]["cannot_pass"]
    assert list(shop.plans.values()) == [body]


def test_the_second_look_at_the_records_is_in_the_plan_and_the_chances_are_those_of_half_the_level(
    shop: Shop,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[float] = []
    simulated_as_ever = power.simulated
    monkeypatch.setattr(power, "simulated", lambda *given, alpha, **facts: asked.append(alpha) or simulated_as_ever(*given, alpha=alpha, **facts))

    first = shop.frozen(job_of("caller", shop, monkeypatch))
    shop.plans.clear()
    shop.looks = 2
    second = shop.frozen(job_of("caller", shop, monkeypatch))

    assert [(body["alpha"], body["looks"]) for body in (first, second)] == [(0.05, 1), (0.05, 2)]
    assert asked == [0.05, 0.025]


@pytest.mark.parametrize("number", [2**53, -(2**53), 10**30, 1e16, 1e300])
def test_a_whole_number_that_canonical_json_cannot_hold_is_frozen_as_text(
    number: float,
    shop: Shop,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = job_of("caller", shop, monkeypatch)
    asked.job.params = {"deep": [{"number": number}], "small": 2**53 - 1, "rate": 0.1, "flag": True}

    body = shop.frozen(asked)

    assert body["parameters"] == {"deep": [{"number": str(number)}], "small": 2**53 - 1, "rate": 0.1, "flag": True}
    stored = json.loads(json.dumps(body), parse_float=lambda text: int(float(text)) if float(text).is_integer() else float(text))  # as the database
    assert rfc8785.dumps(stored) == rfc8785.dumps(body)


def test_a_method_that_may_claim_suppression_alone_is_probed_and_taught_again(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    def left(guarantee: str, *guarantees: str) -> set[str]:
        entry = SimpleNamespace(guarantee=guarantee, facts={"guarantees": list(guarantees)})
        monkeypatch.setattr(planning.catalogue, "entry", lambda _session, kind, _name: entry if kind == "method" else None)
        shop.plans.clear()
        body = shop.frozen(job_of("caller", shop, monkeypatch))
        assert not any(one["gate"] for one in body["readings"] if one["name"] in planning.LEFT)
        return {one["name"] for one in body["readings"]} & set(planning.LEFT)

    assert left("suppression") == left("approximate", "suppression", "approximate") == {"linear_probe_auc", "relearn_time"}
    assert left("approximate") == left("certified", "certified", "approximate") == set()
    whole = functools.partial(planning.of_what_is_left, [], "classification")
    assert [one["name"] for one in whole(["approximate"], kind="class")] == ["linear_probe_auc"]
    assert whole(["exact"], kind="class") == whole(["certified"], kind="class") == []
    planned = {"kind": "metric", "name": "relearn_time", "split": "forget_train"}
    assert [one["name"] for one in planning.of_what_is_left([planned], "classification", ["suppression"], kind="records")] == ["linear_probe_auc"]
    assert [one["name"] for one in planning.of_what_is_left([], "language_model", ["suppression"], kind="records")] == ["relearn_time"]
    assert planning.of_what_is_left([], "image_generation", ["suppression"], kind="records") == []


def test_without_a_recipe_there_is_nothing_to_give_way_to(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    body = shop.frozen(job_of("router", shop, monkeypatch, recipe=None))

    assert body["reference"] == "none"
    assert body["power"]["reason"] == "there is no retrained model to compare with"


def test_an_exact_method_runs_under_any_plan(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr(planning.catalogue, "entry", lambda *_given: SimpleNamespace(guarantee="exact", facts={}))

    assert shop.frozen(job_of("ladder", shop, monkeypatch))["power"]["cannot_pass"]


def test_what_gave_way_goes_to_retraining_and_not_through_the_rungs_between(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    moved = SimpleNamespace(id=UUID(int=1), kind="unlearn", method="unsir", tenant_id=UUID(int=2))
    for name in ("fail_step", "end_attempt", "drop_pins"):
        monkeypatch.setattr(repository, name, lambda *_given, **_facts: None)
    monkeypatch.setattr(repository, "move", lambda *_given, **_facts: "failed")
    monkeypatch.setattr(repository, "load", lambda *_given: "work")
    monkeypatch.setattr(outcomes, "further", lambda _session, _work, codes: asked.append(list(codes)) or (("retrain", {}), {}))
    monkeypatch.setattr(outcomes, "_escalate", lambda _session, _job, rung, verdict, _late, *, clock: asked.append((rung[0], verdict["codes"])))

    state = outcomes.settle(None, moved, CannotPass(method="unsir", detail="x"), clock=None)  # pyright: ignore[reportArgumentType]

    assert state == "failed"
    assert asked == [["cannot_pass"], ("retrain", ["cannot-pass"])]
