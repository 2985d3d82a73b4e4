"""When each limitation holds."""

from typing import Any

import pytest

from services.audit.limitations import ALWAYS, LIMITATIONS
from services.db.tables import ReadingRow
from tests.unit.audit.test_report import statement


def row(name: str, after: str | None = "0.5000", **columns: Any) -> ReadingRow:
    return ReadingRow(kind=columns.pop("kind", "metric"), name=name, split="forget_train", after=after, direction="info", state="info", **columns)


def limits(**facts: Any) -> dict[str, str]:
    return {one["code"]: one["text"] for one in statement(**facts)["predicate"]["limitations"]}


def attack(detectable: str | None, *, after: str | None = "0.5", gate: bool = True) -> ReadingRow:
    detail = {"gate": gate, "detectable": detectable}
    return row(
        "mia_v2", after, kind="attack", band={"reference": "0.5", "epsilon": "0.0500"}, detail=detail, reason=None if after else "too_few_nonmembers"
    )


def test_every_code_of_the_catalogue_has_a_text_that_ends() -> None:
    assert all(text.endswith(".") for text in LIMITATIONS.values())
    assert set(ALWAYS) <= set(limits())
    assert limits().keys() <= LIMITATIONS.keys()


@pytest.mark.parametrize(
    ("code", "facts", "otherwise"),
    [
        ("attack_power", {"readings": [attack("0.0600")]}, {"readings": [attack("0.0400")]}),
        ("attack_power", {"readings": [attack("0.0600")]}, {"readings": [attack("0.0600", gate=False)]}),
        ("attack_without_number", {"readings": [attack(None, after=None)]}, {"readings": [attack(None)]}),
        ("same_seed", {"seeds": {"reference": 2**60}}, {"seeds": {"reference": 9}}),
        ("censored_relearning", {"readings": [row("relearn_time", detail={"after": {"censored": True}})]}, {"readings": [row("relearn_time", detail={})]}),
        ("censored_relearning", {"readings": [row("ain", detail={"after": {"bound": "lower"}})]}, {"readings": [row("ain", detail={"after": {"bound": None}})]}),
        ("power_unknown", {"power": {"not_simulated": ["mean_absolute_error/forget_train"]}}, {"power": {"retrained_passes": 0.95}}),
        ("reconstructed_method", {"method": "cascaded_gan"}, {"method": "ssd"}),
        ("paper_values", {"method": "emmn"}, {"method": "retrain"}),
    ],
)  # fmt: skip
def test_a_limitation_is_listed_when_it_holds_and_not_otherwise(code: str, facts: dict[str, Any], otherwise: dict[str, Any]) -> None:
    assert code in limits(**facts)
    assert code not in limits(**otherwise)


def test_a_suppressed_class_comes_with_what_a_linear_probe_and_relearning_find() -> None:
    found = [row("linear_probe_auc", "0.9990", reference="0.9100"), row("relearn_time", "2.0000")]
    probed = limits(guarantee="suppression", readings=found)["suppression_only"]
    assert "an AUC of 0.9990 (the retrained model: 0.9100)" in probed
    assert "relearning it took 2.0000 steps" in probed
    without = limits(guarantee="suppression", readings=[row("linear_probe_auc", None), row("relearn_time", None)])["suppression_only"]
    assert "no linear probe gave a number" in without
    assert "no relearning test gave a number" in without


def test_a_class_that_is_still_read_inside_an_approximate_model_is_said_to_be() -> None:
    def probe(low: str) -> list[ReadingRow]:
        return [row("linear_probe_auc", "0.9498", before="0.9484", reference="0.8918", ci_low=low)]

    whole = {"request_kind": "class"}
    said = limits(readings=probe("0.9433"), plan=whole)["class_left_inside"]
    assert "an AUC of 0.9498, on the original with 0.9484, on the retrained model with 0.8918" in said
    assert "class_left_inside" not in limits(readings=probe("0.8900"), plan=whole)
    assert "class_left_inside" not in limits(guarantee="suppression", readings=probe("0.9433"), plan=whole)  # whose own limitation says it
    assert "class_left_inside" not in limits(readings=[row("linear_probe_auc", None)], plan=whole)
    assert "class_left_inside" not in limits(readings=probe("0.9433"), plan={"request_kind": "records"})  # the probe tells these from held-out ones


def test_numbers_stand_in_the_text_of_an_attack_without_power() -> None:
    text = limits(readings=[attack("0.0600")])["attack_power"]
    assert "0.0600" in text
    assert "0.0500" in text


def test_what_was_read_is_not_said_to_be_untested() -> None:
    def untested(**facts: Any) -> list[str]:
        return statement(**facts)["predicate"]["not_tested"]

    assert "linear probe" in untested()
    assert "linear probe" not in untested(readings=[row("linear_probe_auc")])
    assert "linear probe" in untested(readings=[row("linear_probe_auc", None)])
    assert "backdoor canaries" in untested()
