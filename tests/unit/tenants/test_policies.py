"""The documents of policies: what is refused, and what the seeds say."""

import pytest
from pydantic import ValidationError

from services.tenants.policies import BY_TASK, DEMO, GDPR_DEFAULT, SEEDS, Flags, PolicyBody, ReadingSpec, VerificationBody, readings_for, taken_for


def ladder_of(body, granularity, task="classification"):
    return [rung.method for rung in body.ladder if granularity in rung.granularities and (not rung.tasks or task in rung.tasks)]


def gates(readings):
    return {(reading.name, reading.split): reading for reading in readings if reading.gate}


@pytest.mark.parametrize("key", SEEDS)
def test_a_seed_survives_its_columns(key):
    columns = SEEDS[key].columns()
    columns["batch_window_s"] = int(columns.pop("batch_window").total_seconds())
    assert PolicyBody.model_validate(columns) == SEEDS[key]


def test_the_ladders_of_the_demo_end_in_retraining():
    assert ladder_of(DEMO, "class") == ["bad_teacher", "retrain"]
    assert ladder_of(DEMO, "records") == ["bad_teacher", "blindspot", "retrain"]
    assert ladder_of(DEMO, "records", "language_model")[-3:] == ["npo", "simnpo", "retrain"]
    assert "concept_poisoning_text" in ladder_of(DEMO, "concept", "language_model")


@pytest.mark.parametrize("key", SEEDS)
def test_generators_have_rungs_of_their_own_before_retraining(key):
    assert ladder_of(SEEDS[key], "class", "image_generation")[-3:] == ["cascaded_gan", "fine_tune", "retrain"]
    assert ladder_of(SEEDS[key], "records", "image_generation")[-2:] == ["cascaded_gan", "retrain"]


def test_where_the_distance_of_the_outputs_gates_the_method_that_answers_evenly_is_not_first():
    assert ladder_of(GDPR_DEFAULT, "class")[0] != "bad_teacher"
    assert ("js_divergence", "forget_train") in gates(GDPR_DEFAULT.verification.for_class)


def test_the_demo_asks_nobody_waits_for_nothing_and_has_no_caps():
    assert DEMO.batch_window_s == 0
    assert not DEMO.flags.require_review
    assert DEMO.limits.records_share is DEMO.limits.class_share is None


def test_the_default_asks_a_second_person_and_waits_a_quarter_of_an_hour():
    assert GDPR_DEFAULT.flags.require_review
    assert GDPR_DEFAULT.flags.four_eyes
    assert GDPR_DEFAULT.batch_window_s == 900
    assert (GDPR_DEFAULT.limits.records_share, GDPR_DEFAULT.limits.class_share) == (0.01, 0.05)


def test_what_gates_a_class_request():
    accuracies = {("accuracy", "forget_train"), ("accuracy", "forget_test"), ("near_duplicate_accuracy", "forget_train")}
    expected = accuracies | {("mia_v2", "forget_train"), ("mia_v2", "retain_train")}
    assert set(gates(DEMO.verification.for_class)) == expected
    assert set(gates(GDPR_DEFAULT.verification.for_class)) == {*expected, ("js_divergence", "forget_train")}
    assert gates(DEMO.verification.for_class)["accuracy", "forget_test"].min_records == 100


@pytest.mark.parametrize("key", SEEDS)
def test_that_others_are_not_exposed_gates_both_kinds_of_request(key):
    for readings in (SEEDS[key].verification.for_class, SEEDS[key].verification.for_records):
        found = gates(readings)["mia_v2", "retain_train"]
        assert (found.kind, found.direction, found.epsilon) == ("attack", "max", 0.02)


def test_the_demo_is_wider_than_the_default_on_small_sets_only_where_it_must_be():
    wide, narrow = gates(DEMO.verification.for_class), gates(GDPR_DEFAULT.verification.for_class)
    assert {name for name in wide if wide[name].epsilon > narrow[name].epsilon} == {("mia_v2", "forget_train")}


@pytest.mark.parametrize("key", SEEDS)
def test_every_reading_is_known_and_what_does_not_gate_is_information(key):
    metrics = {
        "accuracy",
        "near_duplicate_accuracy",
        "zrf",
        "zrf_legacy",
        "activation_distance",
        "js_divergence",
        "prediction_distribution",
        "streisand",
    }
    for readings in (SEEDS[key].verification.for_class, SEEDS[key].verification.for_records):
        for reading in readings:
            assert reading.name in (metrics if reading.kind == "metric" else {"mia_legacy", "mia_v2"})
            assert reading.gate == (reading.direction != "info")


def changed(**parts):
    return {**DEMO.model_dump(mode="json", by_alias=True), **parts}


@pytest.mark.parametrize(
    "spoil",
    [
        {"ladder": []},
        {"ladder": [{"method": "unsir"}]},
        {"ladder": [{"method": "retrain", "granularities": ["class"]}]},
        {"ladder": [{"method": "retrain", "tasks": ["image_generation"]}]},
        {"regulation": "hipaa"},
        {"batch_window_s": -1},
        {"surprise": 1},
        {"flags": {"purge_superseded": "after:0"}},
        {"retention": {"requests_days": 30}},
        {"limits": {"records_share": 0}},
        {"verification": {"class": [], "records": []}},
        {"verification": {**DEMO.verification.model_dump(by_alias=True), "level": 0.4}},
    ],
)
def test_a_policy_that_could_not_work_is_refused(spoil):
    with pytest.raises(ValidationError):
        PolicyBody.model_validate(changed(**spoil))


@pytest.mark.parametrize(
    "reading",
    [
        {"kind": "metric", "name": "accuracy", "split": "test", "gate": True},
        {"kind": "metric", "name": "accuracy", "split": "test", "gate": True, "direction": "band"},
        {"kind": "metric", "name": "accuracy", "split": "attack"},
    ],
)
def test_a_gate_that_could_not_fail_is_refused(reading):
    verification = DEMO.verification.model_dump(mode="json", by_alias=True)
    verification["class"] = [*verification["class"][:1], reading]
    with pytest.raises(ValidationError):
        PolicyBody.model_validate(changed(verification=verification))


def test_a_reading_listed_twice_is_refused():
    verification = DEMO.verification.model_dump(mode="json", by_alias=True)
    verification["class"] = [verification["class"][0]] * 2
    with pytest.raises(ValidationError, match="twice"):
        PolicyBody.model_validate(changed(verification=verification))


@pytest.mark.parametrize(("said", "days"), [("now", 0), ("after:30", 30), ("never", None)])
def test_when_superseded_versions_go(said, days):
    assert Flags(purge_superseded=said).purge_after_days() == days


def test_tasks_without_classes_have_readings_of_their_own_that_a_policy_may_replace():
    document = GDPR_DEFAULT.verification.model_dump(mode="json", by_alias=True)
    before = {name: value for name, value in document.items() if name != "by_task"}  # as stored before there were any
    own = ReadingSpec(kind="metric", name="mean_absolute_error", split="forget_train", direction="band", epsilon=0.2, gate=True)

    for task in ("regression", "forecasting"):
        for stored in (document, before):
            readings, utility = readings_for(stored, task, "records")
            assert [reading["name"] for reading in readings] == [reading.name for reading in BY_TASK[task]]
            assert utility is None
    assert readings_for(before, "classification", "class") == (document["class"], document["utility"])
    assert VerificationBody.model_validate(before) == GDPR_DEFAULT.verification
    replaced = VerificationBody.model_validate({**before, "by_task": {"regression": [own]}}).model_dump(mode="json", by_alias=True)
    assert readings_for(replaced, "regression", "records")[0] == [own.model_dump(mode="json")]
    assert len(readings_for(replaced, "forecasting", "records")[0]) == len(BY_TASK["forecasting"])


@pytest.mark.parametrize(
    "by_task", [{"regression": []}, {"classification": [{}]}, {"regression": [BY_TASK["regression"][0], BY_TASK["regression"][0]]}]
)
def test_readings_of_a_task_that_cannot_be_judged_are_refused(by_task):
    body = GDPR_DEFAULT.verification.model_dump(by_alias=True)
    with pytest.raises(ValidationError):
        VerificationBody.model_validate({**body, "by_task": by_task})


def test_a_generator_is_read_by_kind_of_request():
    document = GDPR_DEFAULT.verification.model_dump(mode="json", by_alias=True)
    by_kind = {kind: readings_for(document, "image_generation", kind) for kind in ("class", "records")}
    names = {kind: {reading["name"] for reading in readings} for kind, (readings, _) in by_kind.items()}

    assert names["class"] - names["records"] == {"class_rate"}
    assert names["records"] - names["class"] == {"item_nn_distance"}
    for readings, utility in by_kind.values():
        assert utility is None
        listed = [(reading["name"], reading["split"]) for reading in readings]
        assert len(set(listed)) == len(listed)
        assert {reading["split"] for reading in readings if reading["gate"]} == {"forget_train", "retain_test"}
    twice = BY_TASK["image_generation"][0]
    with pytest.raises(ValidationError, match="twice"):
        VerificationBody.model_validate({**GDPR_DEFAULT.verification.model_dump(by_alias=True), "by_task": {"image_generation": [twice, twice]}})


@pytest.mark.parametrize("task", BY_TASK)
def test_the_readings_of_other_tasks_are_known_on_their_splits_and_each_is_listed_once_for_each_kind_of_request(task):
    from services.verification import evaluation

    evaluation.discover()
    for reading in BY_TASK[task]:
        component = evaluation.component_of(reading.model_dump(), 0.9)
        assert task in component.tasks
        assert reading.split in component.splits
        assert reading.gate == (reading.direction != "info")
    for kind in ("class", "records", "concept"):
        taken = [(reading.name, reading.split) for reading in BY_TASK[task] if taken_for(reading.requests, kind)]
        assert len(set(taken)) == len(taken)


def test_a_request_for_an_entity_is_gated_by_its_name_and_one_for_records_by_their_answers():
    document = DEMO.verification.model_dump(mode="json", by_alias=True)
    held = {kind: readings_for(document, "language_model", kind)[0] for kind in ("records", "concept")}
    gated = {kind: {(one["name"], one["split"]) for one in readings if one["gate"]} for kind, readings in held.items()}

    shared = {("exact_match", "forget_train"), ("model_utility", "retain_train"), ("answer_probability", "retain_train")}
    assert gated["concept"] == shared | {("appearance_rate", "forget_train")}
    assert gated["records"] == shared | {(name, "forget_train") for name in ("answer_probability", "rouge_l", "min_k")}
    assert {one["name"] for one in held["concept"]} >= {"answer_probability", "rouge_l", "min_k"}
    assert readings_for(document, "classification", "concept") == (document["records"], document["utility"])
