"""The router: which method, and the reason it gives."""

import pytest

from services.catalogue import router
from services.catalogue.router import EQUIVALENCE_MINIMUM, TOO_FEW, Offer, choose
from services.tenants.policies import GDPR_DEFAULT, Rung

ALL_HELD = {"forget", "retain", "recipe"}


def offer(name, *, granularities=("class", "records"), needs=("forget_set", "retain_set"), tasks=("classification",), available=True):
    return Offer(name, frozenset(tasks), frozenset(granularities), frozenset(needs), available)


OFFERS = {
    "unsir": offer("unsir", granularities=("class",)),
    "bad_teacher": offer("bad_teacher"),
    "retrain": offer("retrain", needs=("retain_set", "recipe")),
}


def chosen(granularity="class", records=100, held=ALL_HELD, offers=OFFERS, task="classification"):
    return choose(task=task, granularity=granularity, ladder=GDPR_DEFAULT.ladder, records=records, class_records=None, held=held, available=offers)


def test_a_class_request_starts_at_the_first_rung_for_classes():
    found = chosen()
    assert (found.method, found.rungs) == ("unsir", ("unsir", "bad_teacher", "retrain"))
    assert "first rung" in found.reason


def test_a_records_request_skips_what_only_forgets_classes():
    found = chosen("records")
    assert found.rungs == ("bad_teacher", "retrain")
    assert "unsir" in found.skipped


@pytest.mark.parametrize("records", [1, EQUIVALENCE_MINIMUM - 1])
def test_too_few_records_go_to_retraining_at_once_and_the_choice_says_so(records):
    found = chosen("records", records=records)
    assert (found.method, found.reason, found.rungs) == ("retrain", "too few records for an equivalence test", ("retrain",))
    assert found.skipped["bad_teacher"] == TOO_FEW


def test_enough_records_and_small_classes_do_not():
    assert chosen("records", records=EQUIVALENCE_MINIMUM).method == "bad_teacher"
    assert chosen("class", records=3).method == "unsir"


def test_too_few_records_of_a_model_that_cannot_be_retrained_take_what_there_is():
    assert chosen("records", records=3, held={"forget", "retain"}).rungs == ("bad_teacher",)


def test_methods_that_need_what_is_not_held_are_left_out_with_the_reason():
    found = chosen(held={"recipe", "retain"})
    assert found.rungs == ("retrain",)
    assert found.skipped["unsir"] == "it needs forget_set, which is not held"


def test_another_task_leaves_nothing():
    assert chosen(task="regression") is None
    assert chosen(offers={}) is None


def test_a_rung_that_no_live_worker_offers_is_skipped_while_another_is_offered():
    away = {**OFFERS, "unsir": offer("unsir", granularities=("class",), available=False)}
    found = chosen(offers=away)
    assert found.rungs == ("bad_teacher", "retrain")
    assert found.skipped["unsir"] == "no live worker offers it"


def test_with_no_live_worker_the_ladder_stands_and_the_job_waits():
    asleep = {name: Offer(one.name, one.tasks, one.granularities, one.needs, available=False) for name, one in OFFERS.items()}
    assert chosen(offers=asleep).rungs == ("unsir", "bad_teacher", "retrain")


def test_the_choice_is_stored_as_json():
    assert chosen().as_json() == {
        "by": "router",
        "method": "unsir",
        "reason": chosen().reason,
        "rungs": ["unsir", "bad_teacher", "retrain"],
        "skipped": {},
    }


def test_with_no_training_data_held_there_is_one_rung_and_the_choice_says_why():
    offers = {"gkt": Offer("gkt", frozenset({"classification"}), frozenset({"class"}), frozenset())}
    ladder = router.rungs_for([Rung(method="unsir"), Rung(method="retrain")], zero_shot=True)
    choice = router.choose(
        task="classification", granularity="class", ladder=ladder, records=0, class_records=None, held=frozenset(), available=offers
    )
    assert choice is not None
    assert (choice.method, choice.rungs) == ("gkt", ("gkt",))
    assert choice.reason == router.WITHOUT_DATA


def test_a_policy_that_has_gkt_keeps_its_parameters_where_no_data_are_held():
    ladder = [Rung(method="unsir"), Rung(method="gkt", granularities=("class",), parameters={"n_pseudo_batches": 50}), Rung(method="retrain")]
    assert [rung.parameters for rung in router.rungs_for(ladder, zero_shot=True)] == [{"n_pseudo_batches": 50}]
    assert router.rungs_for(ladder, zero_shot=False) == ladder
