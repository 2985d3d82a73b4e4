"""The verdict on readings that are written by hand, and on readings of models whose outputs are known."""

import dataclasses
import re

import numpy as np
import pytest
import torch

from services.jobs.power import with_rules
from services.learning.run import Run
from services.verification import wording
from services.verification.evaluation import evaluate
from services.verification.metric import Models
from services.verification.reading import Measured, Reading, Unmeasured
from services.verification.verdict import IntegrityFacts, judge
from tests.unit.verification.worlds import TASK, FixedLogits, logits_for, split_of, splits_of

torch.set_num_threads(1)

SOUND = IntegrityFacts(finite=True, differs_from_parent=True, plan_precedes_run=True, fresh_start=False, forget_read=True, guarantee="approximate")
EXACT = dataclasses.replace(SOUND, guarantee="exact", fresh_start=True, forget_read=False, version="7", records=10)
ACCURACY = {"kind": "metric", "name": "accuracy", "split": "forget_train", "direction": "band", "epsilon": 0.05, "gate": True}
ATTACK = {"kind": "attack", "name": "mia_v2", "split": "forget_train", "direction": "band", "epsilon": 0.05, "gate": True}
RETAINED = {"kind": "attack", "name": "mia_v2", "split": "retain_train", "direction": "max", "epsilon": 0.02, "gate": True}


def plan_of(*entries, **more):
    return with_rules({
        "reference": "retrained",
        "level": 0.9,
        "alpha": 0.05,
        "readings": list(entries),
        "seeds": {"train": 1, "unlearn": 2, "evaluate": 3},
        **more,
    })  # fmt: skip


def number(value, half=0.01, n=500, detail=None):
    return Reading(value, value - half, value + half, 0.9, n, detail or {})


def measured(entry, *, before=0.95, after=0.51, reference=0.5, half=0.01, n=500, **more):
    paired = more.pop("paired", number(after - reference, half, n))
    return Measured(
        entry["kind"], entry["name"], entry["split"], number(before), number(after), number(reference), paired, "band", entry["epsilon"], **more
    )


def utility(drop, *, half=0.004, classes=None, from_retrained=None, retrained_classes=None):
    """A drop from the original and, if not told otherwise, the same from the retrained model."""
    change = Reading(-drop, -drop - half, -drop + half, 0.9, 2000, {"per_class": classes or {}})
    lost = drop if from_retrained is None else from_retrained
    paired = Reading(-lost, -lost - half, -lost + half, 0.9, 2000, {"per_class": classes or {} if retrained_classes is None else retrained_classes})
    return Measured("metric", "accuracy", "retain_test", number(0.9), number(0.9 - drop), number(0.9), paired, change=change)


def test_a_model_inside_its_band_passes_and_the_sentence_says_what_would_have_been_noticed():
    found = judge(plan_of(ACCURACY, ATTACK, set_on="2026-03-01"), [measured(ACCURACY), measured(ATTACK)], SOUND)

    assert found.verdict == "passed"
    assert found.sentence == (
        "In 2 tests, the new model behaved like a model retrained without these records within the limits set on 2026-03-01. "
        "The tests would have noticed a difference larger than 0.05. This is evidence, not proof of absence."
    )
    assert [state.state for state in found.states] == ["inside", "inside"]
    assert found.detectable == 0.05


def test_a_reading_above_the_band_fails_as_a_leak():
    found = judge(plan_of(ACCURACY), [measured(ACCURACY, after=0.7)], SOUND)

    assert (found.verdict, found.codes) == ("failed", ("leak",))
    assert found.sentence.startswith("The new model was not published: the tests show that it still treats")


def test_an_attack_far_below_the_reference_fails_as_over_unlearned_however_private_it_looks():
    found = judge(plan_of(ACCURACY, ATTACK), [measured(ACCURACY), measured(ATTACK, after=1e-5)], SOUND)

    assert (found.verdict, found.codes) == ("failed", ("over_unlearned",))


def test_leaks_and_over_forgetting_are_not_averaged_away():
    found = judge(plan_of(ACCURACY, ATTACK), [measured(ACCURACY, after=0.7), measured(ATTACK, after=0.3)], SOUND)

    assert found.codes == ("leak", "over_unlearned")


def test_a_low_score_of_a_metric_that_rises_with_forgetting_is_a_leak():
    entry = {**ACCURACY, "name": "zrf"}

    found = judge(plan_of(entry), [measured(entry, before=0.2, after=0.2, leak_side="below")], SOUND)

    assert found.codes == ("leak",)


def test_a_distance_takes_its_meaning_from_the_readings_that_have_a_sign():
    entry = {"kind": "metric", "name": "js_divergence", "split": "forget_train", "direction": "max", "epsilon": 0.05, "gate": True}
    distance = measured(entry, before=0.8, after=0.4, reference=0.05, leak_side="unsigned")

    over = judge(plan_of(entry), [distance, measured(ATTACK, after=0.3)], SOUND)
    leak = judge(plan_of(entry), [distance, measured(ATTACK, after=0.7)], SOUND)

    assert (over.codes, leak.codes) == (("over_unlearned",), ("leak",))


def test_a_small_distance_passes_because_only_its_upper_side_is_bounded():
    entry = {"kind": "metric", "name": "js_divergence", "split": "forget_train", "direction": "max", "epsilon": 0.05, "gate": True}

    found = judge(plan_of(entry), [measured(entry, before=0.8, after=0.0, reference=0.3, leak_side="unsigned")], SOUND)

    assert found.verdict == "passed"


def test_an_interval_that_straddles_an_edge_is_inconclusive():
    found = judge(plan_of(ACCURACY), [measured(ACCURACY, after=0.54, half=0.03)], SOUND)

    assert (found.verdict, found.states[0].state) == ("inconclusive", "undecided")
    assert "cannot tell the new model from, nor equate it with" in found.sentence
    assert "Not detected with this power" in found.sentence


def test_failing_is_corrected_for_the_number_of_tests_and_passing_is_not():
    barely = measured(ACCURACY, after=0.5705, half=0.02)
    others = [{**ATTACK, "name": f"attack_{i}"} for i in range(9)]
    calm = [measured(entry) for entry in others]

    alone = judge(plan_of(ACCURACY), [barely], SOUND)
    among_ten = judge(plan_of(ACCURACY, *others), [barely, *calm], SOUND)
    at_the_second_look = judge(plan_of(ACCURACY, looks=2), [barely], SOUND)

    assert (alone.verdict, among_ten.verdict, at_the_second_look.verdict) == ("failed", "inconclusive", "inconclusive")


def test_a_reading_whose_band_holds_the_original_does_not_count():
    blind = measured(ATTACK, before=0.52)

    alone = judge(plan_of(ATTACK), [blind], SOUND)
    beside = judge(plan_of(ATTACK, ACCURACY), [blind, measured(ACCURACY)], SOUND)

    assert (alone.verdict, alone.codes, alone.states[0].state) == ("inconclusive", ("cannot_pass",), "insensitive")
    assert "The request goes to an exact retrain." in alone.sentence
    assert beside.verdict == "passed"
    assert beside.sentence.startswith("In 1 test,")


@pytest.mark.parametrize(("before", "half", "told"), [(0.58, 0.02, True), (0.58, 0.04, False), (0.42, 0.02, True), (0.42, 0.04, False)])
def test_a_reading_counts_only_where_its_whole_interval_of_the_original_lies_beyond_the_band(before, half, told):
    reading = dataclasses.replace(measured(ATTACK), before=number(before, half))
    of_before = {**plan_of(ATTACK), "sensitivity": None}

    found = judge(plan_of(ATTACK), [reading], SOUND)

    assert (found.verdict, found.states[0].state) == (("passed", "inside") if told else ("inconclusive", "insensitive"))
    assert judge(of_before, [reading], SOUND).verdict == "passed"  # plans that do not name the rule went by the value alone


@pytest.mark.parametrize(
    ("ladder", "failed", "inconclusive"),
    [
        ({}, "The next method of the policy is tried; the last is always a retrain.", "The request goes to an exact retrain."),
        (
            {"next": "retrain", "no_retrain": None},
            "The next method of the policy is tried; the last is always a retrain.",
            "The request goes to an exact retrain.",
        ),
        (
            {"next": "bad_teacher", "no_retrain": None},
            "The next method of the policy is tried; the last is always a retrain.",
            "The request goes to an exact retrain.",
        ),
        ({"next": None, "no_retrain": None}, *["No further method of the policy can serve the request; a person has to decide."] * 2),
        (
            {"next": None, "no_retrain": "no_data"},
            *["and a retrain is not possible: nothing of the training data is held. A person has to decide."] * 2,
        ),
        (
            {"next": "gkt", "no_retrain": "no_data"},
            *["The next method of the policy is tried. A retrain is not possible: nothing of the training data is held."] * 2,
        ),
        (
            {"next": "bad_teacher", "no_retrain": "no_recipe"},
            *["The next method of the policy is tried. A retrain is not possible: the version came without a training recipe."] * 2,
        ),
    ],
)
def test_what_the_sentence_says_comes_next_is_what_the_plans_ladder_holds(ladder, failed, inconclusive):
    told = {"ladder": ladder} if ladder else {}
    lost = judge(plan_of(ATTACK, **told), [measured(ATTACK, after=0.8)], SOUND).sentence
    blind = judge(plan_of(ATTACK, **told), [measured(ATTACK, before=0.52)], SOUND).sentence

    assert failed in lost
    assert inconclusive in blind
    if ladder.get("no_retrain"):
        assert "always a retrain" not in lost + blind


def test_a_retraining_that_lost_too_much_alone_is_said_to_be_made_again():
    held = {"next": None, "no_retrain": None, "again": True}
    assert wording.failed(("utility",), ladder=held).endswith("The retraining is made once more, under a fresh seed.")
    assert "made once more" not in wording.failed(("leak", "utility"), ladder=held)
    assert "made once more" not in wording.failed(("utility",), ladder={**held, "again": False})
    softer = {**held, "again": False, "gentler": True}
    assert wording.failed(("utility",), ladder=softer).endswith("The same method is tried once more, at reduced strength.")
    assert "reduced strength" not in wording.failed(("leak", "utility"), ladder=softer)


def test_after_a_broken_run_a_person_looks_first_whatever_the_ladder_holds():
    broken = dataclasses.replace(SOUND, finite=False)

    assert "A person has to look into the run" in judge(plan_of(ATTACK, ladder={"next": "retrain"}), [measured(ATTACK)], broken).sentence


def test_a_class_of_a_model_without_data_that_is_still_recognised_ends_with_a_person():
    accuracy = {**ACCURACY, "split": "forget_test", "direction": "max", "epsilon": 0.1, "absolute": True}
    plan = plan_of(accuracy, reference="none", ladder={"next": None, "no_retrain": "no_data"})
    nothing = Unmeasured("no_retrained_reference")
    still = Measured("metric", "accuracy", "forget_test", number(0.95), number(0.6), nothing, nothing, "max", 0.1)

    found = judge(plan, [still], dataclasses.replace(SOUND, guarantee="suppression", records=None))

    assert found.verdict == "failed"
    assert "retrain is not possible" in found.sentence
    assert "the last is always a retrain" not in found.sentence


def test_a_plan_that_said_it_could_not_pass_passes_nobody():
    power = {"retrained_passes": 0.41, "original_fails": 0.2, "cannot_pass": True}
    good, bad = [measured(ACCURACY), measured(ATTACK)], [measured(ACCURACY, after=0.7), measured(ATTACK)]

    found = judge(plan_of(ACCURACY, ATTACK, power=power), good, SOUND)

    assert (found.verdict, found.codes) == ("inconclusive", ("cannot_pass",))
    assert "would pass it with a chance of 0.41, and the original would fail it with a chance of 0.2" in found.sentence
    assert "The original model lies within the limits too" not in found.sentence
    assert judge(plan_of(ACCURACY, ATTACK, power=power), bad, SOUND).codes == ("leak",)
    assert judge(plan_of(ACCURACY, ATTACK, power=power), good, EXACT).verdict == "passed"
    assert judge(plan_of(ACCURACY, ATTACK, power={**power, "cannot_pass": False}), good, SOUND).verdict == "passed"


def test_an_insensitive_reading_can_still_fail():
    found = judge(plan_of(ATTACK), [measured(ATTACK, before=0.52, after=0.2)], SOUND)

    assert found.codes == ("over_unlearned",)


def test_a_plan_without_a_gate_on_forgotten_records_cannot_pass():
    found = judge(plan_of({**ACCURACY, "gate": False}), [measured(ACCURACY)], SOUND)

    assert (found.verdict, found.codes) == ("inconclusive", ("cannot_pass",))


def test_fewer_than_sixteen_records_never_pass():
    found = judge(plan_of(ACCURACY), [measured(ACCURACY, n=10, half=0.0, after=0.5)], SOUND)

    assert (found.verdict, found.states[0].reason) == ("inconclusive", "too_few_records")


def test_without_a_reference_a_gate_is_null_with_its_reason():
    reading = dataclasses.replace(measured(ACCURACY), reference=Unmeasured("no_retrained_reference"), paired=None)

    found = judge(plan_of(ACCURACY), [reading], SOUND)

    assert (found.verdict, found.states[0].state, found.states[0].reason) == ("inconclusive", "null", "no_retrained_reference")
    assert "No retrained reference was available." in found.sentence


BOUND = {"kind": "metric", "name": "accuracy", "split": "forget_test", "direction": "max", "epsilon": 0.1, "gate": True, "absolute": True}


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [(0.95, 0.02, "passed"), (0.95, 0.4, "failed"), (0.95, 0.095, "inconclusive"), (0.05, 0.02, "inconclusive")],
)
def test_where_no_reference_can_be_trained_a_number_of_the_plan_is_the_bound(before, after, verdict):
    reading = dataclasses.replace(measured(BOUND, before=before, after=after), reference=Unmeasured("no_retrained_reference"), paired=None)

    found = judge(plan_of(BOUND, reference="none"), [reading], SOUND)

    assert found.verdict == verdict
    if verdict == "passed":
        assert "recognises at most 0.1" in found.sentence
        assert "no retrained model to compare it with" in found.sentence
    if verdict == "failed":
        assert found.codes == ("leak",)


def test_a_reading_on_another_split_does_not_stand_in_for_the_planned_one():
    elsewhere = dataclasses.replace(measured(ACCURACY), split="forget_test")

    found = judge(plan_of(ACCURACY), [elsewhere], SOUND)

    assert (found.verdict, found.states[0].reason) == ("inconclusive", "not_measured")


def test_the_band_is_the_plans_even_where_a_reading_claims_a_wider_one():
    found = judge(plan_of(ACCURACY), [dataclasses.replace(measured(ACCURACY, after=0.7), epsilon=0.5, gate=False)], SOUND)

    assert found.verdict == "failed"


def test_the_band_is_never_narrower_than_two_retrained_models_differ():
    reading = measured(ACCURACY, after=0.57, floor=0.1)

    assert judge(plan_of(ACCURACY), [reading], SOUND).states[0].epsilon == 0.1
    assert judge(plan_of(ACCURACY), [dataclasses.replace(reading, floor=0.4)], SOUND).states[0].epsilon == 0.15


def test_a_drop_on_retained_classes_fails_only_when_it_is_shown_to_exceed_the_floor():
    plan = plan_of(ACCURACY, utility={"total": 0.01, "worst_class": 0.03})

    assert judge(plan, [measured(ACCURACY), utility(0.03)], SOUND).codes == ("utility",)
    assert judge(plan, [measured(ACCURACY), utility(0.012)], SOUND).verdict == "passed"
    assert judge(plan, [measured(ACCURACY)], SOUND).verdict == "inconclusive"


def test_one_ruined_class_fails_though_the_total_holds():
    plan = plan_of(ACCURACY, utility={"total": 0.01, "worst_class": 0.03})
    classes = {"3": {"value": -0.3, "low": -0.36, "high": -0.24, "n": 100}, "4": {"value": 0.0, "low": -0.02, "high": 0.02, "n": 100}}

    assert judge(plan, [measured(ACCURACY), utility(0.0, classes=classes)], SOUND).codes == ("utility",)


def test_what_retraining_itself_costs_is_no_loss_of_the_method():
    plan = plan_of(ACCURACY, utility={"total": 0.01, "worst_class": 0.03})
    worse = {"3": {"value": -0.3, "low": -0.36, "high": -0.24, "n": 100}}
    alike = {"3": {"value": 0.01, "low": -0.02, "high": 0.04, "n": 100}}

    for facts in (SOUND, EXACT):
        assert judge(plan, [measured(ACCURACY), utility(0.03, from_retrained=0.0)], facts).verdict == "passed"
        assert judge(plan, [measured(ACCURACY), utility(0.0, classes=worse, retrained_classes=alike)], facts).verdict == "passed"
        assert judge(plan, [measured(ACCURACY), utility(0.0, from_retrained=0.03)], facts).verdict == "passed"
        assert judge(plan, [measured(ACCURACY), utility(0.03, from_retrained=0.02)], facts).codes == ("utility",)
        assert judge(plan, [measured(ACCURACY), utility(0.0, classes=worse, retrained_classes=worse)], facts).codes == ("utility",)


def test_a_rise_of_the_attack_on_retained_records_fails_as_a_retain_leak():
    rising = Measured("attack", "mia_v2", "retain_train", number(0.5), number(0.6), number(0.5), change=number(0.1))
    falling = dataclasses.replace(rising, change=number(-0.1))

    assert judge(plan_of(ACCURACY, RETAINED), [measured(ACCURACY), rising], SOUND).codes == ("retain_leak",)
    assert judge(plan_of(ACCURACY, RETAINED), [measured(ACCURACY), falling], SOUND).verdict == "passed"


def test_retained_answers_that_became_likelier_fail_as_a_retain_leak_and_less_likely_ones_do_not():
    entry = {**RETAINED, "kind": "metric", "name": "answer_probability", "epsilon": 0.05}
    rising = Measured("metric", "answer_probability", "retain_train", number(0.87), number(0.99), number(0.83), change=number(0.12))
    falling = dataclasses.replace(rising, change=number(-0.12))

    assert judge(plan_of(ACCURACY, entry), [measured(ACCURACY), rising], SOUND).codes == ("retain_leak",)
    assert judge(plan_of(ACCURACY, entry), [measured(ACCURACY), falling], SOUND).verdict == "passed"


@pytest.mark.parametrize("fact", [{"finite": False}, {"differs_from_parent": False}, {"plan_precedes_run": False}])
def test_a_run_that_cannot_be_confirmed_fails_whatever_the_readings_say(fact):
    found = judge(plan_of(ACCURACY), [measured(ACCURACY)], dataclasses.replace(SOUND, **fact))

    assert (found.verdict, found.codes) == ("failed", ("integrity",))
    assert "A person has to look" in found.sentence


def test_an_exact_run_passes_on_its_process_and_prints_the_other_readings():
    found = judge(plan_of(ACCURACY), [measured(ACCURACY, after=0.7)], EXACT)

    assert found.verdict == "passed"
    assert found.sentence.startswith("Version 7 was computed from a fresh start")
    assert "without reading the 10 listed records" in found.sentence
    assert found.states[0].state == "outside"


@pytest.mark.parametrize("fact", [{"fresh_start": False}, {"forget_read": True}])
def test_an_exact_claim_without_its_process_fails(fact):
    assert judge(plan_of(ACCURACY), [measured(ACCURACY)], dataclasses.replace(EXACT, **fact)).codes == ("integrity",)


def test_an_exact_run_fails_on_utility():
    plan = plan_of(ACCURACY, utility={"total": 0.01, "worst_class": 0.03})

    assert judge(plan, [measured(ACCURACY), utility(0.2)], EXACT).codes == ("utility",)


def test_suppression_says_that_the_representation_may_hold_it():
    found = judge(plan_of(ACCURACY), [measured(ACCURACY)], dataclasses.replace(SOUND, guarantee="suppression"))

    assert "representation may still hold" in found.sentence


def test_a_head_alone_cannot_be_sold_as_forgetting_however_well_it_scores():
    found = judge(plan_of(ACCURACY, ATTACK), [measured(ACCURACY), measured(ATTACK)], dataclasses.replace(SOUND, head_only=True))

    assert (found.verdict, found.codes) == ("failed", ("representation",))
    assert "only its last layer was changed" in found.sentence


@pytest.mark.parametrize("guarantee", ["suppression", "certified"])
def test_a_head_alone_may_pass_as_what_it_claims_to_be(guarantee):
    found = judge(plan_of(ACCURACY), [measured(ACCURACY)], dataclasses.replace(SOUND, head_only=True, guarantee=guarantee))

    assert found.verdict == "passed"


def test_no_sentence_claims_more_than_was_measured():
    constants = [value for name, value in vars(wording).items() if name.isupper()]
    texts = [text for value in constants for text in (value.values() if isinstance(value, dict) else [value])]

    assert len(texts) > 15
    for text in texts:
        assert not re.search(r"data is gone|removed from the model|\bsafe\b|guarantee", text, re.IGNORECASE), text


def test_a_reading_survives_its_json_form():
    reading = dataclasses.replace(measured(ACCURACY), reference=Unmeasured("no_retrained_reference"), paired=None, floor=0.02)

    assert Measured.from_dict(reading.as_dict()) == reading


def world(n, rng, *, classes=10):
    """A population on which the original knows the forget set and retrained models do not."""
    labels = {name: np.arange(count) % classes for name, count in (("forget", n), ("attack", 1200), ("held", 600))}
    every = np.concatenate([labels["forget"], labels["attack"], labels["held"]])

    def model(forget_accuracy, confidence, base):
        z = logits_for(every, right=0.8, rng=np.random.default_rng(77), confidence=3.0)
        z[:n] = logits_for(labels["forget"], right=forget_accuracy, rng=np.random.default_rng(78), confidence=confidence)
        return FixedLogits(z + 0.15 * np.random.default_rng(base).normal(size=z.shape))

    data = splits_of(
        forget=split_of("f", labels["forget"]),
        attack=split_of("a", labels["attack"], first=n),
        verification=split_of("v", labels["held"], first=n + 1200),
    )
    return data, model


def verdict_on(data, models):
    plan = plan_of(ACCURACY, ATTACK, utility={"total": 0.01, "worst_class": 0.03})
    return judge(plan, evaluate(plan, models, data, TASK, Run(seed=0)), SOUND)


def test_retrained_against_retrained_passes():
    data, model = world(400, np.random.default_rng(0))
    models = Models(model(1.0, 6.0, 1), model(0.8, 3.0, 2), model(0.8, 3.0, 3), model(0.8, 3.0, 4))

    found = verdict_on(data, models)

    assert (found.verdict, found.codes) == ("passed", ())


def test_original_against_retrained_fails_as_a_leak():
    data, model = world(400, np.random.default_rng(0))
    models = Models(model(1.0, 6.0, 1), model(1.0, 6.0, 1), model(0.8, 3.0, 3))

    assert verdict_on(data, models).codes == ("leak",)


@pytest.mark.parametrize("strength", [0.0, 0.25, 0.5, 1.0])
def test_the_original_never_passes_however_little_it_learned(strength):
    data, model = world(200, np.random.default_rng(0))
    original = model(0.8 + 0.2 * strength, 3.0 + 3.0 * strength, 1)

    found = verdict_on(data, Models(original, model(0.8 + 0.2 * strength, 3.0 + 3.0 * strength, 5), model(0.8, 3.0, 3)))

    assert found.verdict != "passed"


def test_a_destroyed_model_fails_as_over_unlearned():
    data, model = world(400, np.random.default_rng(0))
    models = Models(model(1.0, 6.0, 1), model(0.0, 8.0, 2), model(0.8, 3.0, 3))

    assert verdict_on(data, models).codes == ("over_unlearned",)


def test_ten_records_are_inconclusive_for_an_approximate_method():
    data, model = world(10, np.random.default_rng(0))
    models = Models(model(1.0, 6.0, 1), model(0.8, 3.0, 2), model(0.8, 3.0, 3))

    assert verdict_on(data, models).verdict == "inconclusive"
