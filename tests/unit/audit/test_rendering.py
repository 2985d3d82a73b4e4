"""The pages of a report: complete, escaped, the same bytes each time, in this process and in the one that control starts."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from control.render import NotRendered, Renderer
from services import drift
from services.audit import overview, report
from services.audit.figure_forms import data_digest
from services.audit.page import moment, page_of, shown
from services.audit.rendering import html_of, pdf_of, rendered
from services.db.tables import FigureRow, ReadingRow
from services.errors import Cancelled
from tests.unit.audit.test_drawing import KINDS
from tests.unit.audit.test_report import AT, ID, statement

HOSTILE = '<script>window.pwned = 1</script>"\'&{{ 7 * 7 }}#panic("x")$x^2$`*_@<b>'
SECTIONS = [
    "What was asked", "What was done", "What was found", "How sure this is", "What was not tested, and what this does not show", "How to check this",
    "Annex: all readings",
]  # fmt: skip
FIGURES = [
    FigureRow(job_id=ID, round=1, name=kind, data=KINDS[kind], digest=data_digest(KINDS[kind]), reason=None) for kind in ("histogram", "images")
]
LEFT_OUT = FigureRow(job_id=ID, round=1, name="roc", data=None, digest=None, reason="fewer_than_16_forgotten_records")


class Reader(HTMLParser):
    """Takes down tags, attributes and text."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.headings: list[str] = []
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.tags and self.tags[-1] == "h2" and data.strip():
            self.headings.append(data.strip())


def held_by(told: dict[str, Any]) -> dict[str, Any]:
    """Return the data of the figures that a statement names; the first is made of the statement itself."""
    drawn = overview.retain_forget(told["predicate"]["verification"], {f"job_{ID.hex}": "unsir"})
    assert drawn is not None
    assert told["predicate"]["figures"][0]["data_digest"] == data_digest(drawn)
    return {data_digest(drawn): drawn, **{row.digest: row.data for row in FIGURES}}


def pages(**facts: Any) -> tuple[dict[str, Any], dict[str, bytes], dict[str, Any]]:
    told = statement(figures=[*FIGURES, LEFT_OUT], **facts)
    held = held_by(told)
    return told, {one.form: one.body for one in rendered(told, digest=report.digest(told), figures=held)}, held


@pytest.fixture(scope="module")
def made() -> tuple[dict[str, Any], dict[str, bytes], dict[str, Any]]:
    return pages()


def test_the_page_tells_what_a_reader_asks_in_their_order_and_prints_its_digest(made: Any) -> None:
    told, forms, _ = made
    page = Reader(forms["html"])
    assert page.headings == SECTIONS
    assert report.digest(told) in page.text
    assert told["predicate"]["sentence"] in page.text
    assert "lethe verify report.json --log-key log.vkey" in page.text
    assert "The process is attested; absence is not provable." in page.text
    for limit in told["predicate"]["limitations"]:
        assert limit["text"] in page.text
    assert page.tags.count("svg") == 3
    assert "What an attack on the loss finds: fewer than 16 forgotten records stand behind it" in page.text
    assert {"faces", "unsir", "within 5.0\N{NO-BREAK SPACE}% of 9.0\N{NO-BREAK SPACE}%"} <= {part.strip() for part in page.text.split("\n")} | {
        "unsir"
    }


def test_the_page_runs_no_script_and_asks_nothing_of_anyone(made: Any) -> None:
    page = Reader(made[1]["html"])
    assert {"script", "iframe", "object", "embed", "form", "link", "base"}.isdisjoint(page.tags)
    assert [name for name, _ in page.attributes if name.startswith("on")] == []
    sources = [value or "" for name, value in page.attributes if name in {"src", "href", "xlink:href", "action", "data"}]
    assert [value for value in sources if not value.startswith(("#", "data:image/png;base64,"))] == []


def test_the_same_report_has_the_same_pages_here_and_in_the_process_of_control(made: Any, tmp_path: Path) -> None:
    told, forms, held = made
    renderer = Renderer(tmp_path)
    with pytest.raises(NotRendered, match=r"^KeyError$"):
        renderer.render({"predicate": {}, "secret": "person"}, digest="", figures={})
    assert renderer.render(told, digest=report.digest(told), figures=held) == forms
    renderer.close()
    with pytest.raises(Cancelled):
        renderer.render(told, digest="", figures={})
    page = page_of(told, digest="00", figures={})
    assert pdf_of(page, at=AT) == pdf_of(page, at=AT)


def test_the_pdf_says_that_it_is_pdf_a_2a_and_ua_1_with_the_time_of_the_report(made: Any) -> None:
    pdf = made[1]["pdf"]
    assert pdf.startswith(b"%PDF-1.7")
    packet = pdf[pdf.index(b"<?xpacket begin") : pdf.index(b"<?xpacket end")].decode()
    for name, value in (("pdfaid:part", "2"), ("pdfaid:conformance", "A"), ("pdfuaid:part", "1")):
        assert re.search(rf"{name}(=\"|>){value}", packet), name
    assert f"{AT:%Y-%m-%dT%H:%M:%S}" in packet
    assert b"/StructTreeRoot" in pdf
    assert b"/Lang" in pdf


def test_a_hostile_name_is_shown_as_it_is_and_does_nothing(made: Any) -> None:
    told = statement()
    predicate = told["predicate"]
    for place in (predicate["processing"][0], predicate["scope"]["targets"][0], predicate["artifacts"][0], predicate["figures"][0]):
        for key in ("method", "model"):
            if key in place:
                place[key] = HOSTILE
    predicate |= {"sentence": HOSTILE, "not_tested": [HOSTILE], "request": HOSTILE}
    predicate["scope"]["labels"] = [HOSTILE]
    page = page_of(told, digest=HOSTILE, figures={})

    html = html_of(page)
    assert "script" not in Reader(html).tags
    assert "b" not in Reader(html).tags
    assert HOSTILE in Reader(html).text
    assert b"49" not in html.replace(b"#4b5563", b"")
    assert pdf_of(page, at=AT).startswith(b"%PDF")


def test_a_report_in_which_no_model_was_changed_has_a_page_too() -> None:
    told = statement()
    told["predicate"] |= {"verdict": None, "verification": [], "processing": [], "figures": [], "artifacts": []}
    page = page_of(told, digest="00", figures={})
    assert "No model was tested." in Reader(html_of(page)).text
    assert page["verdict"]["word"] == "No model was changed"
    assert pdf_of(page, at=AT).startswith(b"%PDF")


def test_the_page_tells_what_the_plan_foresaw_of_itself_and_which_limits_it_widened() -> None:
    told = statement()
    body = told["predicate"]["verification"][0]["plan"]["body"]

    def sure(**power: Any) -> str:
        body["power"] = power
        return " ".join(page_of(told, digest="0" * 64, figures={})["sure"])

    widened = [{"name": "mia_v2", "split": "forget_train", "from": 0.05, "to": 0.08}]
    carried = sure(retrained_passes=0.942, original_fails=1.0, widened=widened, cannot_pass=False)
    assert "pass them all with a chance of 94\N{NO-BREAK SPACE}%" in carried
    assert "fail with a chance of 100\N{NO-BREAK SPACE}%" in carried
    assert "from 0.05 to 0.08" in carried
    assert "nobody could pass this plan" in sure(retrained_passes=0.3, original_fails=None, widened=[], cannot_pass=True)
    assert "a chance that is not known" in sure(retrained_passes=0.3, original_fails=None, widened=[], cannot_pass=True)
    assert "was not simulated before the run: why not" in sure(retrained_passes=None, reason="why not")
    assert "why not (Mean absolute error)" in sure(retrained_passes=None, reason="why not", not_simulated=["mean_absolute_error/forget_train"])


def test_the_page_tells_of_looks_of_drift_of_the_other_side_of_an_attack_and_of_the_original_as_the_measure_of_others() -> None:
    rate = {"fpr": "0.0500", "value": "0.2000", "low": "0.1000", "high": "0.3000"}
    band = {"reference": "0.5500", "epsilon": "0.0200", "floor": None}
    attack = ReadingRow(
        kind="attack", name="mia_v2", split="retain_train", before="0.6000", after="0.6100", reference="0.5500", direction="max", state="inside", n=124,
        band=band, detail={"gate": True, "after": {"members": 124, "non_members": 400, "tpr_at_fpr": rate}},
    )  # fmt: skip
    moved = {"ledger": drift.Standing("empirical", 3, {"js": 0.25, "removals": 97.0}), "exact_since": AT}
    made = page_of(statement(readings=[attack], subject=moved, plan={"alpha": 0.05, "looks": 2}), digest="0" * 64, figures={})

    sure = " ".join(made["sure"])
    assert "looked at 2 times" in sure
    assert "last exact training of faces (1 March 2026, 00:00 UTC) 3 removals were published" in sure
    assert "in bits, 0.25, removals 97" in sure
    (test,) = [test for test in made["found"][0]["tests"] if test["name"] == "Membership attack"]
    assert test["limits"] == "at most 0.020 above 0.600"
    ((name, told),) = [fact for fact in made["annex"][0]["facts"] if fact[0].startswith("mia v2")]
    assert name == "mia v2, retain train"
    assert told.startswith("124 members, 400 others; finds 20.0\N{NO-BREAK SPACE}% of members at 5.0\N{NO-BREAK SPACE}% false alarms")
    assert "level 0.0250 over all tests (holm)" in told


@pytest.mark.parametrize(
    ("run", "shown_as"),
    [
        (
            {"reference_seconds": 8.5, "reference_from": "trained", "retrain_seconds": 4.2},
            "reference models, trained now, 8.500 s, one of them 4.200 s",
        ),
        ({"reference_seconds": 0.02, "reference_from": "cache"}, "reference models, kept from before, 0.020 s"),
        ({"retrain_seconds": 4.2}, "training the retrained reference 4.200 s"),
    ],
)
def test_a_page_says_what_the_references_took_and_whether_they_were_trained_for_it(run: dict[str, Any], shown_as: str) -> None:
    told = statement(steps={"evaluate": {"run": {"evaluation_seconds": 2.0, **run}}})

    facts = dict(page_of(told, digest="ab", figures={})["done"][0]["facts"])

    assert facts["Time"] == f"method 1.250 s, tests 2.000 s, {shown_as}"


def test_a_page_says_with_what_models_the_readings_are_compared_and_when_others_took_their_place() -> None:
    halves = page_of(statement(plan={"reference": "shadow-band", "reference_models": 8}), digest="ab", figures={})["sure"]
    instead = page_of(statement(plan={"reference_in_stead": {"asked": "shadow-band", "why": "class"}}), digest="ab", figures={})["sure"]

    assert "compared with models that had not seen the record, not with a retrain: 8 models" in halves[0]
    assert not any("trained anew" in said for said in halves)
    assert "two retrained models" in instead[0]
    assert instead[1].endswith("of which every random half of the records holds a part.")


def test_numbers_and_times_are_written_for_readers() -> None:
    assert shown("accuracy", "0.0895") == "9.0\N{NO-BREAK SPACE}%"
    assert shown("mia_v2", "0.5000") == "0.500"
    assert shown("mia_v2", None) == "\N{EN DASH}"
    assert moment("2026-03-01T01:02:03.5+02:00") == "28 February 2026, 23:02 UTC"
