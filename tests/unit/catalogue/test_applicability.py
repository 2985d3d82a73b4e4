"""What methods publish of what they take: the router's table on the real catalogue, and the declarations held against what methods do."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from services.catalogue import router
from services.catalogue.applicability import Offer, Traits, obstacle, offer_of
from services.jobs.compute import plugins
from services.learning.architecture import ARCHITECTURES
from services.tenants.policies import GDPR_DEFAULT, Rung
from services.unlearning.mechanisms.convolutions import kernels

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "applicability.md"
DATA = {"forget", "retain", "retain_part", "unseen", "recipe"}
DIGIT = Traits(modality="image", sizes={"classes": 10, "side": 28})
PHOTO = Traits(modality="image", sizes={"classes": 10, "side": 224})
TABLE = Traits(lacks=frozenset({"convolutions"}), modality="tabular", sizes={"classes": 2})
TEXT = Traits(lacks=frozenset({"convolutions"}), modality="text", sizes={"classes": 77})


@pytest.fixture(scope="module")
def offers() -> dict[str, Offer]:
    plugins.load(())
    return {item.name: offer_of(item.name, item.facts, item.needs) for item in plugins.catalogue() if item.kind == "method" and item.error is None}


def chosen(offers: dict[str, Offer], granularity: Any, held: set[str], *, task: str = "classification", records: int = 2000, **more: Any) -> Any:
    ladder = router.rungs_for(GDPR_DEFAULT.ladder, task=task, granularity=granularity, held=held)
    asked = {"task": task, "granularity": granularity, "held": held, "available": offers, **more}
    return router.choose(ladder=ladder, records=records, class_records=None, **asked)


@pytest.mark.parametrize(
    ("held", "task", "granularity", "traits", "rungs"),
    [
        pytest.param(DATA, "classification", "class", DIGIT, "unsir bad_teacher retrain", id="all records"),
        pytest.param(DATA, "classification", "records", DIGIT, "bad_teacher retrain", id="all records, some of them"),
        pytest.param(DATA - {"forget"}, "classification", "class", DIGIT, "unsir retrain", id="forget set erased"),
        pytest.param(DATA - {"forget"}, "classification", "records", DIGIT, "retrain", id="forget set erased, records"),
        pytest.param({"retain_part"}, "classification", "class", DIGIT, "unsir", id="a part of the retain set"),
        pytest.param({"retain_part"}, "classification", "records", DIGIT, "", id="a part of the retain set, records"),
        pytest.param(DATA - {"retain"}, "classification", "class", DIGIT, "unsir", id="forget set and a part of the retain set"),
        pytest.param(DATA - {"retain"}, "classification", "records", DIGIT, "", id="forget set and a part of the retain set, records"),
        pytest.param({"forget", "importance"}, "classification", "class", DIGIT, "ssd lfssd", id="importance"),
        pytest.param({"forget", "importance"}, "classification", "records", DIGIT, "ssd lfssd", id="importance, records"),
        pytest.param({"unseen"}, "classification", "class", TABLE, "lra_npp", id="unseen records"),
        pytest.param({"unseen"}, "classification", "records", TABLE, "", id="unseen records, records"),
        pytest.param({"unseen"}, "classification", "class", DIGIT, "gkt", id="unseen records of small images"),
        pytest.param(set[str](), "classification", "class", DIGIT, "gkt", id="nothing, small images"),
        pytest.param(set[str](), "classification", "class", PHOTO, "", id="nothing, large images"),
        pytest.param(set[str](), "classification", "records", DIGIT, "", id="nothing, records"),
        pytest.param(DATA, "regression", "records", TABLE, "blindspot retrain", id="numbers"),
        pytest.param(DATA | {"shards"}, "classification", "class", DIGIT, "sisa unsir bad_teacher retrain", id="slices of shards"),
        pytest.param(DATA | {"shards"}, "classification", "records", DIGIT, "sisa bad_teacher retrain", id="slices of shards, records"),
        pytest.param(DATA | {"budget"}, "classification", "records", TABLE, "certified_removal bad_teacher retrain", id="budget of a linear head"),
        pytest.param(DATA | {"budget"}, "classification", "class", TABLE, "unsir bad_teacher retrain", id="budget of a linear head, class"),
        pytest.param(DATA, "image_generation", "class", DIGIT, "cascaded_gan fine_tune retrain", id="generator"),
        pytest.param(DATA - {"retain"}, "image_generation", "records", DIGIT, "cascaded_gan", id="generator, retain sample"),
        pytest.param(DATA, "language_model", "records", TEXT, "npo retrain", id="language model"),
        pytest.param(DATA, "language_model", "concept", TEXT, "concept_poisoning_text npo retrain", id="language model, entity"),
    ],
)
def test_the_router_chooses_by_what_is_held(offers: Any, held: set[str], task: str, granularity: str, traits: Traits, rungs: str) -> None:
    """Every row of the table of what is held, by the ladder of `gdpr-default`.

    Two rows no request of the service can say. The forget set alone erased: such a request ends with `dataset-purged`, since without its records
    nothing could be judged. Importances without the retain set: they are kept on a worker's disk, by the digest of the whole set, so no method
    publishes yet that they will do `instead`; the case says it for `ssd` and `lfssd`. The others come about as services/requests/holdings.py tells.
    """
    if "importance" in held:
        offers = offers | {name: replace(offers[name], instead={"retain_set": "importance"}) for name in ("ssd", "lfssd")}
    found = chosen(offers, granularity, held, task=task, traits=traits)
    assert (" ".join(found.rungs) if found else "") == rungs
    assert found is None or found.reason


def test_what_is_left_to_a_name_where_nothing_is_held(offers: dict[str, Offer]) -> None:
    asked: dict[str, Any] = {"task": "classification", "granularity": "class", "held": set()}
    assert obstacle(offers["emmn"], **asked, traits=TABLE) is None
    assert {name for name, offer in offers.items() if obstacle(offer, **asked, traits=PHOTO) is None} == {"emmn"}


@pytest.mark.parametrize(("fact", "words"), [("shards", "only what learned from the records is trained again"), ("budget", "certified removal")])
def test_a_rung_that_the_policy_does_not_list_is_explained(offers: dict[str, Offer], fact: str, words: str) -> None:
    assert words in chosen(offers, "records", DATA | {fact}, traits=DIGIT).reason


def test_a_suppression_is_chosen_where_nothing_else_can_serve_and_says_what_it_is(offers: dict[str, Offer]) -> None:
    found = chosen(offers, "class", {"unseen"}, traits=TABLE)
    assert "nothing is erased" in found.reason
    assert found.skipped["gkt"] == "it takes image records, and these are tabular"


def test_too_few_records_for_a_test_go_to_the_exact_methods_alone(offers: dict[str, Offer]) -> None:
    found = chosen(offers, "records", DATA | {"shards", "budget"}, records=1, traits=DIGIT)
    assert found.rungs == ("sisa", "retrain")
    assert found.reason.startswith(router.TOO_FEW)
    assert router.SHARDS in found.reason
    assert found.skipped["certified_removal"] == found.skipped["bad_teacher"] == router.TOO_FEW


def test_a_policy_that_lists_such_a_method_keeps_its_place() -> None:
    ladder = [Rung(method="retrain"), Rung(method="sisa")]
    assert router.rungs_for(ladder, task="classification", granularity="records", held=DATA | {"shards"}) == ladder


REFUSED = {
    ("unsir", "text"): "it takes image or tabular records, and these are text",
    ("lra_npp", "text"): "it takes image or tabular records, and these are text",
    ("emmn", "text"): "it takes image or tabular records, and these are text",
    ("boundary_shrink", "text"): "it takes image or tabular records, and these are text",
    ("gkt", "text"): "it takes image records, and these are text",
    ("gkt", "tabular"): "it takes image records, and these are tabular",
    ("gkt", "photo"): "it serves images of at most 32 x 32 pixels, and these have 224 on a side",
    ("gkt", "hundred"): "it serves at most 10 classes, and this model knows 100",
    ("ct", "tabular"): "it trains the convolutions, and this checkpoint holds none",
    ("msg", "text"): "it trains the convolutions, and this checkpoint holds none",
}
OF = {"text": TEXT, "tabular": TABLE, "photo": PHOTO, "hundred": replace(DIGIT, sizes={"classes": 100, "side": 32})}


@pytest.mark.parametrize(("method", "kind"), REFUSED)
def test_a_method_says_why_it_does_not_take_records_or_network(offers: dict[str, Offer], method: str, kind: str) -> None:
    asked: dict[str, Any] = {"task": "classification", "granularity": "class", "held": DATA}
    assert obstacle(offers[method], **asked, traits=OF[kind]) == REFUSED[method, kind]
    assert obstacle(offers[method], **asked, traits=DIGIT) is None


def test_what_is_not_known_of_model_and_records_stands_in_no_way(offers: dict[str, Offer]) -> None:
    for traits in (Traits(), Traits(modality="spectrum")):
        for method in ("unsir", "gkt", "ct"):
            assert obstacle(offers[method], task="classification", granularity="class", held=DATA, traits=traits) is None


def test_every_method_publishes_the_kinds_of_record_that_it_takes(offers: dict[str, Offer]) -> None:
    assert all(offer.modalities for offer in offers.values())
    assert offers["npo"].modalities == {"text"}
    assert offers["cascaded_gan"].modalities == {"image"}
    assert offers["blindspot"].modalities == {"image", "series", "tabular", "text"}


COLUMNS = ("adult", "breast_cancer", "banking77", "fashion_mnist")
OF_COLUMN = (TABLE, TABLE, TEXT, DIGIT)


def test_the_page_of_what_methods_did_with_each_kind_of_data_is_what_they_publish(offers: dict[str, Offer]) -> None:
    rows = re.findall(r"^\| `(\w+)` \|(.+)\|$", PAGE.read_text(), re.MULTILINE)
    told, published = {}, {}
    for method, cells in rows:
        for column, traits, cell in zip(COLUMNS, OF_COLUMN, cells.split("|"), strict=True):
            served = {"class", "records"} & set(re.findall(r"\w+", cell.partition("(")[0]))
            told[method, column] = served
            kinds = ("class", "records")
            asked: dict[str, Any] = {"task": "classification", "held": DATA, "traits": traits}
            published[method, column] = {kind for kind in kinds if obstacle(offers[method], granularity=kind, **asked) is None}
    assert len(told) > 60
    assert published == told


NETWORKS: dict[str, dict[str, Any]] = {
    "mlp": {"inputs": 4, "hidden": (4,)},
    "lstm": {"inputs": 2, "width": 4, "hidden": 4},
    "text_transformer": {"vocab_size": 9, "max_length": 4, "width": 8, "layers": 1, "heads": 2},
    "temporal_transformer": {"inputs": 2, "width": 8, "heads": 2},
    "tiny_cnn": {"channels": 1, "width": 4},
    "all_cnn": {"channels": 1, "width": 8},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_an_architecture_lacks_convolutions_where_it_has_no_kernel(offers: dict[str, Offer], name: str) -> None:
    assert offers
    family = ARCHITECTURES[name]
    assert ("convolutions" in family.lacks) == (not kernels(family(family.Parameters(outputs=3, **NETWORKS[name])).fresh(1)))
