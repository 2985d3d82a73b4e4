"""The router: which method, and the reason it gives."""

import pytest

from services.catalogue import router
from services.catalogue.router import EQUIVALENCE_MINIMUM, TOO_FEW, Offer, Yardstick, choose, following, yardstick_of
from services.tenants.policies import DEMO, GDPR_DEFAULT, Rung
from services.verification.statistics.intervals import paired_proportions

LADDER = (Rung(method="unsir", granularities=("class",)), Rung(method="bad_teacher"), Rung(method="retrain"))
ALL_HELD = {"forget", "retain", "recipe"}


def offer(name, *, granularities=("class", "records"), needs=("forget_set", "retain_set"), tasks=("classification",), available=True):
    return Offer(name, frozenset(tasks), frozenset(granularities), frozenset(needs), available)


GATE = {"kind": "metric", "name": "accuracy", "split": "forget_train", "direction": "band", "epsilon": 0.05, "gate": True}
OFFERS = {
    "unsir": offer("unsir", granularities=("class",)),
    "bad_teacher": offer("bad_teacher"),
    "retrain": offer("retrain", needs=("retain_set", "recipe")),
}


def chosen(granularity="class", records=100, held=ALL_HELD, offers=OFFERS, task="classification", yardstick=None):
    return choose(
        task=task,
        granularity=granularity,
        ladder=LADDER,
        records=records,
        class_records=None,
        held=held,
        available=offers,
        yardstick=yardstick,
    )


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


@pytest.mark.parametrize("policy", [DEMO, GDPR_DEFAULT])
@pytest.mark.parametrize(("granularity", "fewest"), [("class", 52), ("records", 433)])
def test_what_the_band_of_the_policy_cannot_carry_is_retrained_at_once_and_the_choice_says_so(policy, granularity, fewest):
    yardstick = yardstick_of(policy.verification.model_dump(mode="json", by_alias=True), granularity)
    assert yardstick == Yardstick(0.05, 0.9)
    short, enough = (chosen(granularity, records=count, yardstick=yardstick) for count in (fewest - 1, fewest))
    assert short.rungs == ("retrain",)
    assert short.reason == f"{TOO_FEW}: {fewest - 1}, and within 0.05 of a retrained model at level 0.9 it takes {fewest}"
    assert enough.rungs[-2:] == ("bad_teacher", "retrain")


def test_with_fewer_records_of_a_class_not_even_agreement_on_every_one_lies_in_the_band():
    assert paired_proportions(0, 0, 51, level=0.9).high > 0.05
    assert paired_proportions(0, 0, 52, level=0.9).high < 0.05


@pytest.mark.parametrize(("epsilon", "level", "fewest"), [(0.15, 0.9, 49), (0.1, 0.9, 109), (0.05, 0.95, 520), (0.9, 0.9, EQUIVALENCE_MINIMUM)])
def test_a_wider_band_takes_fewer_records_and_a_higher_level_more(epsilon, level, fewest):
    assert Yardstick(epsilon, level).fewest("records") == fewest


@pytest.mark.parametrize(
    "spoil", [{"records": []}, {"reference": "none"}, {"records": [{**GATE, "gate": False}]}, {"records": [{**GATE, "direction": "max"}]}]
)
def test_a_policy_that_asks_for_no_equivalence_has_no_yardstick(spoil):
    assert yardstick_of({"records": [GATE], "level": 0.9}, "records") == Yardstick(0.05, 0.9)
    assert yardstick_of({"records": [GATE], "level": 0.9, **spoil}, "records") is None


def test_too_few_for_the_band_but_nothing_to_retrain_by_takes_what_there_is():
    assert chosen("records", records=100, held={"forget", "retain"}, yardstick=Yardstick(0.05, 0.9)).rungs == ("bad_teacher",)


def test_after_the_last_rung_there_is_none_and_retraining_comes_last_where_it_can():
    assert following(("unsir", "retrain"), "unsir", retrainable=True) == "retrain"
    assert following(("unsir", "retrain"), "unsir", retrainable=False) is None
    assert following(("unsir",), "by_name", retrainable=True) == "retrain"
    assert following(("unsir", "retrain"), "retrain", retrainable=True) is None


def test_a_retraining_that_lost_utility_alone_is_made_once_more():
    assert following(("unsir", "retrain"), "retrain", retrainable=True, codes=["utility"]) == "retrain"
    assert following(("unsir", "retrain"), "retrain", retrainable=True, codes=["utility"], again=True) is None
    assert following(("unsir", "retrain"), "retrain", retrainable=True, codes=["utility", "integrity"]) is None
    assert following(("unsir", "retrain"), "unsir", retrainable=True, codes=["utility"], again=True) == "retrain"


def test_where_no_test_can_tell_even_the_original_apart_retraining_is_next():
    rungs = ("unsir", "bad_teacher", "retrain")
    assert following(rungs, "unsir", retrainable=True, codes=["cannot_pass"]) == "retrain"
    assert following(rungs, "unsir", retrainable=True, codes=["leak"]) == "bad_teacher"
    assert following(rungs, "unsir", retrainable=False, codes=["cannot_pass"]) == "bad_teacher"


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
    ladder = router.rungs_for([Rung(method="unsir"), Rung(method="retrain")], task="classification", zero_shot=True)
    choice = router.choose(
        task="classification", granularity="class", ladder=ladder, records=0, class_records=None, held=frozenset(), available=offers
    )
    assert choice is not None
    assert (choice.method, choice.rungs) == ("gkt", ("gkt",))
    assert choice.reason == router.WITHOUT_DATA


def test_a_policy_that_has_gkt_keeps_its_parameters_where_no_data_are_held():
    ladder = [Rung(method="unsir"), Rung(method="gkt", granularities=("class",), parameters={"n_pseudo_batches": 50}), Rung(method="retrain")]
    assert [rung.parameters for rung in router.rungs_for(ladder, task="classification", zero_shot=True)] == [{"n_pseudo_batches": 50}]
    assert router.rungs_for(ladder, task="classification", zero_shot=False) == ladder


GENERATORS = {
    "cascaded_gan": Offer("cascaded_gan", frozenset({"image_generation"}), frozenset({"class", "records"}), frozenset({"forget_set", "retain_set"}), True, frozenset({"discriminator"})),
    "fine_tune": Offer("fine_tune", frozenset({"image_generation", "classification"}), frozenset({"class", "records"}), frozenset({"retain_set"}), True, frozenset({"discriminator"})),
    "retrain": offer("retrain", needs=("retain_set", "recipe"), tasks=("image_generation", "classification")),
}  # fmt: skip


def drawn(granularity="class", lacks=()):
    ladder = router.rungs_for(DEMO.ladder, task="image_generation", zero_shot=False)
    return choose(
        task="image_generation",
        granularity=granularity,
        ladder=ladder,
        records=100,
        class_records=100,
        held=ALL_HELD,
        available=GENERATORS,
        lacks=lacks,
    )


def test_a_generator_gets_the_cascade_and_the_choice_says_where_plain_fine_tuning_is_as_good():
    found = drawn()
    assert found.rungs == ("cascaded_gan", "fine_tune", "retrain")
    assert "fine_tune, a later rung, was as good for a class" in found.reason
    items = drawn("records")
    assert items.rungs == ("cascaded_gan", "retrain")
    assert "as good" not in items.reason


def test_a_checkpoint_without_its_discriminator_is_retrained():
    lacks = router.lacking({"discriminator": False, "encoder": False, "side": 8, "dropout": 0})
    found = drawn(lacks=lacks)
    assert lacks == {"discriminator", "encoder"}
    assert found.rungs == ("retrain",)
    assert found.skipped["cascaded_gan"] == "it trains the discriminator, and this checkpoint holds none"


def test_rungs_of_another_task_are_no_rungs_of_a_classifier():
    names = [rung.method for rung in router.rungs_for(DEMO.ladder, task="classification", zero_shot=False)]

    assert names == ["unsir", "bad_teacher", "blindspot", "retrain"]
