"""The plan as the evaluation uses it."""

from services.jobs.compute.evaluate import scored_apart

PLAN = {"readings": [{"name": "accuracy", "parameters": {}}, {"name": "zrf", "parameters": {"seeds": 5}}, {"name": "zrf_legacy"}]}


def test_the_seed_of_the_methods_own_teacher_is_shut_out_of_every_zrf():
    readings = scored_apart(PLAN, {"teacher_seed": 7})["readings"]

    assert readings[0] == {"name": "accuracy", "parameters": {}}
    assert readings[1]["parameters"] == {"seeds": 5, "excluded_seeds": [7]}
    assert readings[2]["parameters"] == {"excluded_seeds": [7]}


def test_a_method_without_a_random_teacher_leaves_the_plan_as_it_is():
    assert scored_apart(PLAN, {}) == PLAN
