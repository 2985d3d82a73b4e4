from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
import rfc8785

from services import drift
from services.audit import overview, report
from services.audit.evidence import pae
from services.audit.figure_forms import data_digest
from services.audit.runs import Conduct
from services.db.tables import (
    ClockPause,
    DeletionRequest,
    FigureRow,
    Job,
    Model,
    ModelVersion,
    Policy,
    ReadingRow,
    Target,
    VerdictRow,
    VerificationPlan,
)
from tests.unit.audit.test_drawing import KINDS

AT = datetime(2026, 3, 1, tzinfo=UTC)
ID = UUID(int=7)


def statement(
    *, verdict: str = "passed", guarantee: str = "approximate", records: int = 5, steps: dict[str, Any] | None = None, figures: Any = (),
    readings: Any = (), method: str = "unsir", seeds: Any = None, power: Any = None,
    request: Any = None, plan: Any = None, subject: Any = None, superseded: Any = None, conduct: Conduct = Conduct(),  # noqa: B008  frozen
) -> dict[str, Any]:  # fmt: skip
    asked = DeletionRequest(
        id=ID, regulation="gdpr", received_at=AT, due_at=AT + timedelta(days=30), scope={"kind": "subject", "records": records},
        identity={"mode": "asserted_by_controller"}, **(request or {}),
    )  # fmt: skip
    policy = Policy(id=ID, key="demo", version=1)
    version = ModelVersion(id=ID, number=2, status="quarantined", manifest_digest="ab" * 32, guarantee=guarantee, fresh_start=False)
    target = Target(id=ID, state="published", records=records, records_commitment="cd" * 32)
    job = Job(
        id=ID, model_id=ID, state="succeeded", method=method, rung=1, round=1, created_at=AT, seeds={"train": 2**60, "evaluate": 5}, params={"epochs": 1, "rate": 0.1},
        step_state={"steps": {"unlearn": {"run": {"method_seconds": 1.25, "notes": {"loss": 0.123456789}}}, **(steps or {})}},
    )  # fmt: skip
    body = {"reference": "retrained", "guarantee": guarantee, "level": 0.9, "seeds": seeds or {}, "power": power or {}, **(plan or {})}
    frozen = VerificationPlan(body=body, digest="ef" * 32, created_at=AT)
    band = {"reference": "0.0900", "epsilon": "0.0500", "floor": None}
    reading = ReadingRow(
        kind="metric", name="accuracy", split="forget_train", before="0.9900", after="0.1000", reference="0.0900", direction="band", state="inside", n=50,
        band=band, detail={"gate": True, "detectable": "0.0600"}, ci_low="0.0500", ci_high="0.1500", level="0.9000",
    )  # fmt: skip
    kept = ReadingRow(
        kind="metric", name="accuracy", split="retain_test", before="0.9800", after="0.9700", reference="0.9750", direction="info", state="info"
    )
    row = VerdictRow(verdict=verdict, codes=[] if verdict == "passed" else ["leak"], sentence="In 2 tests the new model behaved alike.")
    run = report.Run(job, [], frozen, [reading, kept, *readings], row, 1, figures)
    old = (
        ModelVersion(id=ID, number=1, status="quarantined", manifest_digest="ba" * 32, guarantee=None, fresh_start=False, **superseded)
        if superseded
        else version
    )
    touched = report.Subject(target, Model(id=ID, name="faces"), version, version, [old], **(subject or {}))
    return report.build(asked, [touched], [run], policy, tenant_ref="aa" * 32, revision=1, at=AT, supersedes=None, conduct=conduct)


def floats(body: Any, path: str = "") -> list[str]:
    if isinstance(body, dict):
        return [found for key, value in body.items() for found in floats(value, f"{path}/{key}")]
    if isinstance(body, list):
        return [found for value in body for found in floats(value, path)]
    return [path] if isinstance(body, float) else []


def test_no_number_but_those_of_the_plan_is_a_float() -> None:
    assert [path for path in floats(statement()) if "/plan/body" not in path] == []


def test_a_whole_number_of_53_bits_and_more_is_text_and_one_below_is_not() -> None:
    told = report.texts({"at": 2**53, "below": 2**53 - 1, "least": -(2**53)})

    assert told == {"at": str(2**53), "below": 2**53 - 1, "least": str(-(2**53))}
    assert rfc8785.dumps(told)


def test_the_digest_is_that_of_the_canonical_json() -> None:
    import hashlib

    assert report.digest(statement()) == hashlib.sha256(rfc8785.dumps(statement())).hexdigest()


def test_what_is_signed_begins_with_the_encoding_that_dsse_gives_as_its_example() -> None:
    assert pae("http://example.com/HelloWorld", b"hello world") == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"


def test_the_subject_is_the_published_version_and_its_manifest() -> None:
    assert statement()["subject"] == [{"name": "faces@2", "digest": {"sha256": "ab" * 32}}]


def test_a_failed_verdict_heads_the_report_with_its_codes() -> None:
    head = statement(verdict="failed")["predicate"]
    assert (head["verdict"], head["failure_codes"]) == ("failed", ["leak"])


def test_few_records_and_suppression_are_named_as_limitations() -> None:
    codes = {entry["code"] for entry in statement(guarantee="suppression")["predicate"]["limitations"]}
    assert {"power_too_low", "suppression_only", "log_without_copy", "reconstruction"} <= codes
    assert "power_too_low" not in {entry["code"] for entry in statement(records=100)["predicate"]["limitations"]}


def test_what_the_run_claims_decides_over_what_its_method_may_claim() -> None:
    def codes(plan: str, run: str) -> set[str]:
        told = statement(guarantee=plan, steps={"unlearn": {"run": {"guarantee": run}}})["predicate"]
        assert told["processing"][0]["guarantee"] == run
        return {entry["code"] for entry in told["limitations"]}

    assert "suppression_only" not in codes("suppression", "approximate")
    assert "suppression_only" in codes("suppression", "suppression")
    assert "suppression_only" in codes("approximate", "suppression")


def test_no_sentence_claims_that_the_data_is_gone() -> None:
    text = " ".join(report.LIMITATIONS.values()).lower()
    assert not any(word in text for word in ("the data is gone", "removed from the model", "guaranteed"))


KEPT = {"kind": "reference", "key": "ab" * 32, "layout": "aggregate", "disposition": "kept", "expires": "2026-03-02T00:00:00+00:00"}
DESTROYED = {"kind": "importance", "key": "cd" * 32, "layout": "aggregate", "disposition": "destroyed"}


def test_what_was_derived_from_the_records_is_listed_with_its_disposition() -> None:
    derived = statement(steps={"verify": {"verdict": "passed", "derived": [DESTROYED, KEPT]}})["predicate"]["artifacts"][0]["derived"]

    assert derived[0]["kind"] == "the job's copy of the retrained reference"
    assert derived[1:] == [{"job": f"job_{ID.hex}", **DESTROYED}, {"job": f"job_{ID.hex}", **KEPT}]
    assert len(statement()["predicate"]["artifacts"][0]["derived"]) == 1


def test_a_reference_that_was_kept_is_named_as_such_with_its_key() -> None:
    used = [{"kind": "reference", "key": "ab" * 32, "hit": True}, {"kind": "noise", "key": "cd" * 32, "hit": True}]
    floor = ReadingRow(
        kind="metric", name="zrf", split="forget_train", after="0.5", state="info", band={"reference": "0.5", "epsilon": None, "floor": "0.0300"}
    )
    facts: dict[str, Any] = {"readings": [floor], "seeds": {"reference": 2**55}}
    reference = statement(steps={"evaluate": {"run": {"derived": used}}}, **facts)["predicate"]["verification"][0]["reference"]
    fresh = statement(steps={"evaluate": {"run": {"derived": [{**used[0], "hit": False}]}}})["predicate"]["verification"][0]["reference"]

    told = {"models": 2, "seeds": [str(2**55)], "floor": {"zrf/forget_train": "0.0300"}}
    assert reference == {"mode": "retrained-cached", "cache_keys": ["ab" * 32], **told}
    assert fresh == {"mode": "retrained", "models": 2, "seeds": [], "floor": {}}


def test_what_the_method_the_references_and_the_tests_took_stand_apart() -> None:
    run = {"evaluation_seconds": 2.0, "reference_seconds": 8.5, "reference_from": "trained", "retrain_seconds": 4.2}

    told = statement(steps={"evaluate": {"run": run}})["predicate"]["processing"][0]
    older = statement(steps={"evaluate": {"run": {"evaluation_seconds": 2.0}}})["predicate"]["processing"][0]

    names = ("evaluation_seconds", "reference_seconds", "reference_from", "retrain_seconds")
    assert [told[name] for name in names] == ["2.000", "8.500", "trained", "4.200"]
    assert [older[name] for name in names] == ["2.000", None, None, None]


def test_models_on_halves_are_named_as_such_with_the_sentence_and_not_as_a_retrained_reference() -> None:
    plan = {"reference": "shadow-band", "reference_models": 8}
    used = [{"kind": "shadow", "key": "ab" * 32, "hit": True}]

    told = statement(plan=plan, seeds={"shadows": 7}, steps={"evaluate": {"run": {"derived": used}}})["predicate"]
    fresh = statement(plan=plan, seeds={"shadows": 7})["predicate"]

    sentence = "compared with models that had not seen the record, not with a retrain"
    block = {"mode": "shadow-band", "models": 8, "seeds": ["7"], "floor": {}, "sentence": sentence}
    assert told["verification"][0]["reference"] == {**block, "cache_keys": ["ab" * 32]}
    assert fresh["verification"][0]["reference"] == block
    first = told["limitations"][0]
    assert first["code"] == "models_on_halves"
    assert sentence in first["text"]
    assert "like records" in first["text"]
    assert "no_retrained_reference" not in {one["code"] for one in told["limitations"]}
    assert not any("retrained reference" in str(one.get("kind")) for one in told["artifacts"][0]["derived"])


@pytest.mark.parametrize("why", ["class", "range", "entity", "person", "task", "exact"])
def test_retrained_models_in_the_stead_of_models_on_halves_are_said_to_be_so_and_why(why: str) -> None:
    told = statement(plan={"reference_in_stead": {"asked": "shadow-band", "why": why}})["predicate"]

    reference = told["verification"][0]["reference"]
    assert (reference["mode"], reference["in_stead_of"]["asked"], reference["in_stead_of"]["why"]) == ("retrained", "shadow-band", why)
    assert reference["in_stead_of"]["text"].startswith(
        "The policy asks for models that had not seen the record; retrained models took their place, since"
    )
    assert "models_on_halves" not in {one["code"] for one in told["limitations"]}


def test_a_report_of_a_certified_run_prints_no_seed_from_which_its_random_term_follows() -> None:
    for certified in (
        statement(guarantee="certified"),
        statement(steps={"unlearn": {"run": {"secret_seeds": True}}}),
    ):
        assert certified["predicate"]["processing"][0]["seeds"] == {"evaluate": "5"}
        assert str(2**60) not in rfc8785.dumps(certified).decode()
    assert statement()["predicate"]["processing"][0]["seeds"] == {"train": str(2**60), "evaluate": "5"}


def test_the_data_of_each_figure_can_be_had_again_and_what_is_not_what_the_statement_names_is_not_given() -> None:
    document = {**KINDS["bars"]}
    row = FigureRow(job_id=ID, round=1, name="acme", data=document, digest=data_digest(document), reason=None)
    told = statement(figures=[row])
    named = report.figures_of(told)
    assert [figure["name"] for figure in named] == ["retain_forget", "acme"]

    held = report.figure_data(told, {row.digest: document})
    assert {digest: data_digest(data) for digest, data in held.items()} == {figure["data_digest"]: figure["data_digest"] for figure in named}
    assert set(report.figure_data(told, {row.digest: {**document, "note": "changed"}})) == {named[0]["data_digest"]}
    assert report.figure_data({}, {}) == {}


def test_the_overview_has_a_mark_for_the_original_the_retrained_and_the_method_and_the_band_of_the_plan() -> None:
    told = statement()
    (drawn,) = report.figure_data(told, {}).values()
    assert [(point["name"], point["x"], point["y"]) for point in drawn["points"]] == [
        ("original", "0.9900", "0.9800"), ("retrained", "0.0900", "0.9750"), ("unsir", "0.1000", "0.9700"),
    ]  # fmt: skip
    assert drawn["bands"] == [{"axis": "x", "low": "0.0400", "high": "0.1400", "label": "allowed by the plan"}]
    assert "shaded area is what the plan" in drawn["caption"]
    assert drawn["x"]["label"] == "Accuracy, forgotten records"


def test_the_overview_names_a_test_as_the_page_does_and_says_where_no_limit_is_shaded() -> None:
    reading = {"name": "rouge_l", "before": "0.9", "reference": "0.1", "after": "0.2", "band": None, "direction": "info"}
    block = {"job": "job_1", "metrics": [{**reading, "split": split} for split in ("forget_train", "retain_train")]}

    drawn = overview.retain_forget([block], {"job_1": "npo"})

    assert drawn is not None
    assert drawn["x"]["label"] == "Overlap of answers, forgotten records"
    assert drawn["bands"] == []
    assert "nothing is shaded" in drawn["caption"]


def test_an_attack_says_who_stood_on_either_side_and_what_few_false_alarms_give() -> None:
    rate = {"fpr": "0.0500", "value": "0.2000", "low": "0.1000", "high": "0.3000"}
    after = {"members": 124, "non_members": 400, "tpr_at_fpr": rate, "eps_lower": "0.3000", "models": 8}
    detail = {"gate": True, "detectable": "0.0600", "after": after}
    rows = [
        ReadingRow(kind="attack", name="lira", split="forget_train", after="0.5", state="inside", detail=detail),
        ReadingRow(kind="attack", name="mia_legacy", split="forget_train", after="0.5", state="info", detail={"gate": False}),
    ]

    gating, printed = statement(readings=rows, plan={"alpha": 0.05, "looks": 2, "papers": {"lira": "arXiv 2112.03570"}})["predicate"]["verification"][
        0
    ]["attacks"]

    beside = ("paper", "tpr_at_fpr", "eps_lo", "n_members", "n_nonmembers", "shadows", "alpha", "correction", "detectable")
    assert [gating[name] for name in beside] == ["arXiv 2112.03570", rate, "0.3000", 124, 400, 8, "0.0250", "holm", "0.0600"]
    assert [printed[name] for name in beside] == [None] * len(beside)


def test_what_is_known_of_the_request_beside_its_clock_is_told_and_no_more() -> None:
    plain = statement()["predicate"]
    assert (plain["identity"]["verified_at"], plain["identity"]["verified_by"], plain["decision"]["note"]) == (None, None, None)
    assert (plain["ledger"], plain["next_review"], plain["scope"]["targets"][0]["dataset_digest"]) == ([], None, None)

    refused = {"decided_at": AT, "exemption": "legal_obligation", "decision_note": "kept by law"}
    pauses = [ClockPause(from_at=AT, to_at=AT + timedelta(days=2), reason="who", opened_by="a", closed_by="b"), ClockPause(from_at=AT, reason="open")]
    ledger = {"ledger": drift.Standing("empirical", 3, {"js": 0.25}), "exact_since": AT}
    told = statement(
        request=refused,
        conduct=Conduct(pauses),
        subject=ledger,
        superseded={"destroy_by": AT + timedelta(days=9)},
        plan={"dataset": {"manifest_digest": "12" * 32}},
    )["predicate"]

    assert (told["identity"]["verified_at"], told["identity"]["verified_by"]) == ((AT + timedelta(days=2)).isoformat(), "b")
    assert told["decision"]["note"] == "kept by law"
    assert statement(request={**refused, "exemption": None})["predicate"]["decision"]["note"] is None
    assert told["ledger"] == [{"model": "faces", "mechanism": "empirical", "removals": 3, "remaining": {"js": "0.2500"}, "reset_at": AT.isoformat()}]
    assert told["next_review"] == (AT + timedelta(days=9)).isoformat()
    assert told["scope"]["targets"][0]["dataset_digest"] == "12" * 32
