"""A model beside models that had not seen the records: closed forms, scikit-learn, coverage, and a network that has learned noisy labels by heart."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from services.learning.cache import NoCache, Remembering
from services.verification import evaluation
from services.verification.metric import Models
from services.verification.reading import Measured, Reading, Unmeasured
from services.verification.shadows import Shadows, shadows
from services.verification.statistics.likelihood_ratio import halves
from services.verification.statistics.roc import Sides
from services.verification.statistics.unseen import Control, areas_beside, shares_beside
from tests.unit.verification.test_shadows import TASK, models, noisy, run_of

LEVEL = 0.9
MODELS, ROWS = 8, 400
RUNS = 300


def of_ones(rows: int) -> Any:
    return np.ones(rows, dtype=np.float64)


def test_the_share_beside_is_the_mean_over_records_of_what_models_that_had_not_seen_them_say() -> None:
    right = np.array([True, True, False, True])
    theirs = np.array([[True, False, True, True], [False, True, False, True]])
    out = np.array([[True, False, True, True], [True, True, False, True]])

    found = shares_beside(right, theirs, out, level=LEVEL)

    others = [0.5, 1.0, 1.0, 1.0]
    assert found.reference == pytest.approx(np.mean(others))
    assert found.value == pytest.approx(0.75 - np.mean(others))
    assert found.interval.low < found.value < found.interval.high
    assert found.correction == 0


def test_records_on_which_all_agree_leave_an_interval_all_the_same() -> None:
    agreed = np.ones((MODELS, ROWS), dtype=bool)

    found = shares_beside(agreed[0], agreed, halves(MODELS, ROWS, rng=np.random.default_rng(1)), level=LEVEL)

    assert found.value == 0
    assert found.interval.high == pytest.approx(1.6449**2 / (ROWS + 1.6449**2), rel=1e-3)
    assert found.floor == 0


def test_what_models_lack_for_their_size_is_read_from_records_that_nobody_saw() -> None:
    rng = np.random.default_rng(2)
    out = halves(MODELS, ROWS, rng=rng)
    theirs = rng.random((MODELS, ROWS)) < 0.7
    right = rng.random(ROWS) < 0.8
    held_out = Control(rng.random(4000) < 0.8, rng.random((MODELS, 4000)) < 0.7, of_ones(4000), 1.0)

    plain = shares_beside(right, theirs, out, level=LEVEL)
    whole = shares_beside(right, theirs, out, level=LEVEL, control=held_out)
    half = shares_beside(right, theirs, out, level=LEVEL, control=held_out._replace(share=0.5))

    lead = float(held_out.right.mean() - held_out.theirs.mean())
    assert whole.correction == pytest.approx(lead)
    assert plain.value - whole.value == pytest.approx(lead)
    assert whole.reference - plain.reference == pytest.approx(lead)
    assert half.correction == pytest.approx(lead / 2)


def test_records_that_nobody_saw_weigh_as_the_classes_of_the_forgotten_do() -> None:
    right, theirs = np.array([True, True, False, False]), np.zeros((2, 4), dtype=bool)
    control = Control(right, theirs, np.array([3.0, 3.0, 1.0, 1.0]), 1.0)

    found = shares_beside(np.ones(4, dtype=bool), np.ones((2, 4), dtype=bool), np.ones((2, 4), dtype=bool), level=LEVEL, control=control)

    assert found.correction == pytest.approx(0.75)


@pytest.mark.parametrize("out", [np.array([[True, False], [True, False]]), np.array([[True, True], [False, False]])])
def test_a_record_that_every_model_has_seen_is_refused(out: Any) -> None:
    answers = np.ones((2, 2), dtype=bool)

    with pytest.raises(ValueError, match="had not seen it"):
        shares_beside(answers[0], answers, out, level=LEVEL)


def test_the_area_beside_is_the_mean_of_scikit_learns_areas_on_what_each_model_had_not_seen() -> None:
    rng = np.random.default_rng(3)
    mine = Sides(rng.normal(0.5, 1, 60), rng.normal(0, 1, 80))
    theirs = Sides(rng.normal(0, 1, (MODELS, 60)), rng.normal(0, 1, (MODELS, 80)))
    out = halves(MODELS, 60, rng=rng), halves(MODELS, 80, rng=rng)
    labels = np.zeros(60, dtype=np.int64), np.zeros(80, dtype=np.int64)

    found = areas_beside(mine, theirs, out, labels, level=LEVEL)

    def area(inside: Any, outside: Any) -> float:
        return float(roc_auc_score([1] * len(inside) + [0] * len(outside), np.concatenate([inside, outside])))

    others = [area(theirs.members[r, out[0][r]], theirs.non_members[r, out[1][r]]) for r in range(MODELS)]
    own = [area(mine.members[out[0][r]], mine.non_members[out[1][r]]) for r in range(MODELS)]
    assert found.reference == pytest.approx(np.mean(others))
    assert found.value == pytest.approx(np.mean(own) - np.mean(others))


def crossed(rng: np.random.Generator, rows: int) -> tuple[Any, Any]:
    """Margins of a judged model (rows,) and of models (MODELS, rows): records are hard or easy for all, models good or bad on all."""
    record, model = rng.normal(1.0, 1.5, rows), rng.normal(0, 0.1, MODELS)
    return record + rng.normal(0, 1, rows), record + model[:, None] + rng.normal(0, 1, (MODELS, rows))


def test_intervals_of_a_model_like_the_others_hold_no_difference_as_often_as_they_say() -> None:
    rng = np.random.default_rng(4)
    held, wide = {"share": 0, "area": 0}, {"share": 0.0, "area": 0.0}
    for _ in range(RUNS):
        own, others = crossed(rng, ROWS)
        aside, theirs = crossed(rng, ROWS)
        out = halves(MODELS, ROWS, rng=rng), halves(MODELS, ROWS, rng=rng)
        share = shares_beside(own > 0, others > 0, out[0], level=LEVEL)
        labels = np.zeros(ROWS, dtype=np.int64)
        area = areas_beside(Sides(own, aside), Sides(others, theirs), out, (labels, labels), level=LEVEL)
        for name, one in (("share", share), ("area", area)):
            held[name] += one.interval.low <= 0 <= one.interval.high
            wide[name] += (one.interval.high - one.interval.low) / RUNS

    # at 300 runs a true coverage of .90 lies below .865 in about 3 of 100 trials; far above .97 would be an interval that says nothing
    assert all(0.865 <= count / RUNS <= 0.985 for count in held.values()), held
    assert wide["share"] < 0.09
    assert wide["area"] < 0.07


SHARED = Remembering(NoCache())
GATES = [("metric", "accuracy"), ("attack", "mia_v2"), ("metric", "streisand")]


def judged_by(subject: torch.nn.Module, *, unseen: Shadows | None, readings: Any) -> list[Measured]:
    plan = {"reference": "shadow-band", "reference_models": 8, "level": LEVEL, "readings": readings, "seeds": {"evaluate": 5}}
    beside = Models(models().original, subject, unseen=unseen)
    return evaluation.evaluate(plan, beside, noisy(), TASK, run_of(cache=SHARED))


def entries(*names: tuple[str, str], split: str = "forget_train") -> list[dict[str, Any]]:
    return [{"kind": kind, "name": name, "split": split, "direction": "band", "epsilon": 0.05, "gate": True} for kind, name in names]


def on_halves() -> Shadows:
    found = shadows(noisy(), TASK, run_of(cache=SHARED), models=8)
    assert isinstance(found, Shadows)
    return found


def test_the_original_lies_above_models_that_had_not_seen_the_records_and_a_retrained_model_does_not() -> None:
    found = judged_by(models().original, unseen=on_halves(), readings=entries(*GATES))
    honest = judged_by(models().retrained, unseen=on_halves(), readings=entries(*GATES))

    for caught, clean in zip(found, honest, strict=True):
        assert isinstance(caught.paired, Reading)
        assert isinstance(clean.paired, Reading)
        assert isinstance(caught.reference, Reading)
        assert caught.paired.low > 0.1, caught.name
        assert clean.paired.low < 0.05, clean.name
        assert clean.paired.value < caught.paired.value - 0.1
        assert caught.floor is not None
        assert caught.floor < 0.1
        assert abs(caught.after.value - caught.reference.value - caught.paired.value) < 0.03  # pyright: ignore[reportAttributeAccessIssue]


def test_a_reading_that_has_no_such_form_is_null_with_the_reason_and_retained_records_have_no_reference() -> None:
    readings = [*entries(("metric", "js_divergence"), ("metric", "near_duplicate_accuracy")), *entries(("metric", "accuracy"), split="retain_test")]

    distance, near, kept = judged_by(models().retrained, unseen=on_halves(), readings=readings)

    assert distance.reference == near.reference == Unmeasured("no_form_for_models_that_had_not_seen_it")
    assert not isinstance(distance.paired, Reading)
    assert kept.reference == Unmeasured("no_retrained_reference")
    assert kept.paired is None
    assert isinstance(kept.change, Reading)


def test_of_records_that_the_models_do_not_know_nothing_is_said() -> None:
    data = noisy()
    strange = dataclasses.replace(data.forget, ids=tuple(f"other-{name}" for name in data.forget.ids))

    assert on_halves().unseen_on(strange) == Unmeasured("not_kept_of_these_records")


def test_what_models_say_of_a_record_is_kept_with_which_of_them_had_not_seen_it() -> None:
    held = on_halves().unseen_on(noisy().forget)

    assert not isinstance(held, Unmeasured)
    assert set(held.out.sum(axis=0).tolist()) == {4}
    seen, unseen = held.right[~held.out].mean(), held.right[held.out].mean()
    assert seen > unseen + 0.2
    np.testing.assert_array_equal(held.right, held.margins > 0)  # of two classes the margin's sign says it


def test_a_plan_asks_for_the_models_of_its_reference_and_of_its_attacks_each_number_once() -> None:
    lira = {"kind": "attack", "name": "lira", "split": "forget_train", "parameters": {"models": 4}}
    plan = {"reference": "shadow-band", "reference_models": 8, "readings": [lira, {**lira, "name": "rmia"}, *entries(("metric", "accuracy"))]}

    assert evaluation.shadows_asked(plan) == {4, 8}
    assert evaluation.shadows_asked({**plan, "reference": "retrained"}) == {4}
