"""What a report may never say, held against every template, every catalogue of texts and every figure.

The rules are those of the design's evidence document, 1.2: no claim that something is gone, `guaranteed` only of exact and certified methods, an
attack that found nothing has not been detected *with this power*, no number where there is none, and no legal conclusion.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from services.audit import limitations, overview, words
from services.audit.page import page_of
from services.verification import figure, wording
from services.verification.figure import FIGURES
from tests.unit.audit.test_report import statement

TEMPLATES = Path(limitations.__file__).parent / "templates"
FORBIDDEN = {
    "something is gone": r"\b(data|records?|information|class) (is|are|was|were|has been|have been) (now )?(gone|erased from the model|removed from the model)\b",
    "removed from the model": r"\bremoved from the (new )?(model|weights)\b",
    "safe": r"\bsafe(ly|ty)?\b",
    "guaranteed": r"\bguarantee[ds]?\b",
    "proof": r"\b(proves?|proved|proven) that\b",
    "no privacy loss": r"(ε|epsilon|eps)\s*(≤|<=|=)\s*0\b|\bno (risk|leak(age)?)\b",
    "forgotten for good": r"\b(completely|fully|permanently|perfectly|entirely) (forgotten|removed|erased|deleted)\b",
    "law": r"\b(complian(t|ce)|lawful|legally|complies|satisfies the (gdpr|law)|meets the (gdpr|law))\b",
    "not detected, without power": r"\bnot detected\b(?! with this power)",
}


def broken(text: str) -> list[str]:
    """Return which rules a text breaks."""
    return [rule for rule, pattern in FORBIDDEN.items() if re.search(pattern, text, re.IGNORECASE)]


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from strings(key)
            yield from strings(part)
    elif isinstance(value, list | tuple | set | frozenset):
        for part in value:
            yield from strings(part)


def said_by(module: ModuleType) -> list[str]:
    """Return every text that a module keeps in its constants."""
    return [text for name, value in vars(module).items() if name.isupper() for text in strings(value)]


def figures_say() -> list[str]:
    figure.discover()
    return [text for name in FIGURES for text in (FIGURES[name].title, FIGURES[name].caption)]


TEXTS = {
    "limitations": said_by(limitations),
    "words": said_by(words),
    "verdicts": said_by(wording),
    "overview": said_by(overview),
    "figures": figures_say(),
    **{path.name: [re.sub(r"<[^>]+>|{[{%].*?[%}]}", " ", path.read_text(encoding="utf-8"))] for path in sorted(TEMPLATES.iterdir())},
}


@pytest.mark.parametrize("source", TEXTS)
def test_no_text_of_a_report_says_what_it_may_not(source: str) -> None:
    assert TEXTS[source]
    assert {text: rules for text in TEXTS[source] if (rules := broken(text))} == {}


@pytest.mark.parametrize(
    "sentence",
    [
        "The data is gone.", "The records were removed from the model.", "Your data are safe.", "Deletion is guaranteed.", "This proves that it forgot.",
        "Hence epsilon = 0.", "There is no leakage.", "The class was completely forgotten.", "The new model is GDPR compliant.", "The attack was not detected.",
    ],
)  # fmt: skip
def test_each_rule_catches_what_it_is_for(sentence: str) -> None:
    assert broken(sentence)


def test_what_has_to_be_said_is_said() -> None:
    assert "The process is attested; absence is not provable." in limitations.LIMITATIONS.values()
    assert "evidence, not proof of absence" in wording.PASSED
    assert "with this power" in wording.NOT_DETECTED
    for template in ("report.html.j2", "report.typ"):
        text = (TEMPLATES / template).read_text(encoding="utf-8")
        assert "draws no legal conclusion" in text.replace("It draws", "draws")
        assert "residual_risk" in text


@pytest.mark.parametrize("guarantee", ["exact", "certified", "approximate", "suppression", None])
@pytest.mark.parametrize("verdict", ["passed", "failed"])
def test_the_sentences_that_a_page_composes_keep_the_rules_too(guarantee: Any, verdict: str) -> None:
    page = page_of(statement(guarantee=guarantee, verdict=verdict), digest="00", figures={})
    assert {text: rules for text in strings(page) if (rules := broken(text))} == {}


@pytest.mark.parametrize(
    ("state", "verdict", "shown"),
    [("failed", "inconclusive", "inconclusive"), ("failed", "failed", "failed"), ("failed", "passed", "failed"), ("failed", None, "failed"),
     ("succeeded", "passed", "succeeded"), ("needs_attention", "inconclusive", "needs attention")],
)  # fmt: skip
def test_a_run_whose_tests_were_inconclusive_is_not_called_failed_and_no_failed_one_passed(state: str, verdict: str | None, shown: str) -> None:
    told = statement()
    told["predicate"]["processing"][0]["state"] = state
    told["predicate"]["verification"][0]["verdict"] = verdict
    assert [step["state"] for step in page_of(told, digest="00", figures={})["done"]] == [shown]


def test_an_attack_that_found_nothing_says_with_which_power() -> None:
    from services.db.tables import ReadingRow

    quiet = ReadingRow(
        kind="attack", name="mia_v2", split="forget_train", before="0.9000", after="0.5100", reference="0.5000", direction="band", state="inside", n=500,
        band={"reference": "0.5000", "epsilon": "0.0500"}, detail={"gate": True, "detectable": "0.0600"}, ci_low="0.4900", ci_high="0.5300", level="0.9000",
    )  # fmt: skip
    page = page_of(statement(readings=[quiet]), digest="00", figures={})
    result = next(test["result"] for test in page["found"][0]["tests"] if test["name"] == "Membership attack")
    assert result == "within the limits; not detected with this power: a difference of 0.060 would have been"


def test_a_number_that_was_not_measured_is_a_dash_with_its_reason_and_never_a_zero() -> None:
    from services.db.tables import ReadingRow

    missing = ReadingRow(
        kind="attack", name="mia_v2", split="forget_train", direction="band", state="null", reason="too_few_nonmembers", detail={"gate": True}
    )
    test = page_of(statement(readings=[missing]), digest="00", figures={})["found"][0]["tests"][-1]
    assert (test["before"], test["after"], test["reference"]) == ("\N{EN DASH}",) * 3
    assert test["result"] == "no number: too few records that were never trained on are held"
