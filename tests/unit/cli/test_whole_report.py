"""Both verifiers on whole reports of a class request, one that passed and one that failed, signed by a key of the moment."""

import base64
import hashlib
import json
import secrets
from pathlib import Path
from typing import Any

import pytest
import rfc8785

from cli.verifier import HOLDS, INVALID
from services.audit.notes import SigningKeyPair
from tests.unit.cli.report_maker import Made, write
from tests.unit.cli.verifiers import VERIFIERS, Said
from tests.unit.cli.whole_report import judged

KEY = SigningKeyPair("lethe.test/log", secrets.token_bytes(32))


def whole(*, forgot: bool, **more: Any) -> Made:
    """Return the report of a model that forgot, or of one that did not."""
    found = judged(forgot=forgot)
    about = {
        "rows": found.rows,
        "plan": found.plan,
        "verdict": found.verdict.verdict,
        "codes": found.verdict.codes,
        "sentence": found.verdict.sentence,
    }
    return Made(**about, key=KEY, **more)


def told(verdict: str, *codes: str) -> Any:
    """Return what makes a statement and its only run tell another verdict, of one sentence and with these codes."""

    def change(statement: dict[str, Any]) -> None:
        facts = {"verdict": verdict, "failure_codes": list(codes), "sentence": "In 3 tests, the new model behaved as it should."}
        statement["predicate"].update(facts)
        statement["predicate"]["verification"][0].update(facts)

    return change


@pytest.fixture(params=VERIFIERS)
def verify(request: pytest.FixtureRequest) -> Any:
    return VERIFIERS[request.param]


def test_it_holds_a_plan_with_its_rules_and_readings_and_the_verdicts_are_what_they_should_be() -> None:
    predicates = [whole(forgot=forgot).statement["predicate"] for forgot in (True, False)]

    assert [one["verdict"] for one in predicates] == ["passed", "failed"]
    assert predicates[1]["failure_codes"] == ["leak"]
    for one in predicates:
        body, run = one["verification"][0]["plan"]["body"], one["verification"][0]
        assert (body["least_records"], body["utility"]["besides"], body["looks"]) == (16, "retrained", 1)
        assert {entry["name"] for entry in body["readings"] if entry["gate"]} == {"accuracy", "near_duplicate_accuracy", "mia_v2"}
        assert len(run["metrics"]) + len(run["attacks"]) == len(body["readings"]) > 12
        assert one["scope"]["targets"]


@pytest.mark.parametrize("forgot", [True, False])
def test_a_whole_report_is_valid(forgot: bool, tmp_path: Path, verify: Any) -> None:
    found: Said = verify(*write(tmp_path, whole(forgot=forgot).raw(), key=KEY))

    assert found.status == HOLDS, found.lines
    assert found.lines[-1] == "valid"
    assert ("passed" if forgot else "failed") in next(line for line in found.lines if " verdict " in line)


def test_it_is_valid_beside_the_plan_the_files_and_the_checkpoint_of_before(tmp_path: Path, verify: Any) -> None:
    folder, weights = tmp_path / "model", b"weights"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(weights)
    manifest = rfc8785.dumps({"files": [{"path": "model.safetensors", "digest": f"sha256:{hashlib.sha256(weights).hexdigest()}", "size_bytes": 7}]})
    (folder / "manifest.json").write_bytes(manifest)
    made = whole(forgot=True, manifest_digest=hashlib.sha256(manifest).hexdigest())
    note, proof = made.checkpoint(5)
    previous, consistency, plan = (tmp_path / name for name in ("previous", "consistency.json", "plan.json"))
    previous.write_text(note)
    consistency.write_bytes(rfc8785.dumps({"from": 5, "to": 13, "hashes": [base64.b64encode(one).decode() for one in proof]}))
    plan.write_text(json.dumps(made.plan, indent=1))

    found: Said = verify(*write(tmp_path, made.raw(), key=KEY), model=folder, previous=previous, consistency=consistency, plan=plan)

    assert found.status == HOLDS, found.lines
    for name in ("previous checkpoint", "plan before run", "weights"):
        assert next(line for line in found.lines if name in line).startswith("ok"), found.lines
    assert not any("not asked for" in line and "--witness" not in line for line in found.lines)


@pytest.mark.parametrize(
    ("forgot", "claimed", "codes"),
    [(True, "failed", ("leak",)), (False, "passed", ()), (False, "inconclusive", ())],
)
def test_with_another_verdict_signed_anew_it_is_invalid(forgot: bool, claimed: str, codes: tuple[str, ...], tmp_path: Path, verify: Any) -> None:
    bent = whole(forgot=forgot, bend_statement=told(claimed, *codes)).raw()

    found: Said = verify(*write(tmp_path, bent, key=KEY))

    assert found.status == INVALID, found.lines
    wrong = [line for line in found.lines if line.startswith("FAIL")]
    assert len(wrong) == 1
    assert " verdict " in wrong[0]


def test_with_a_reading_moved_into_its_band_and_signed_anew_a_failure_does_not_pass(tmp_path: Path, verify: Any) -> None:
    """The states say inside, the numbers do not."""

    def bend(statement: dict[str, Any]) -> None:
        told("passed")(statement)
        run = statement["predicate"]["verification"][0]
        for row in [*run["metrics"], *run["attacks"]]:
            row["state"] = "inside" if row["state"] == "outside" else row["state"]

    found: Said = verify(*write(tmp_path, whole(forgot=False, bend_statement=bend).raw(), key=KEY))

    assert found.status == INVALID, found.lines
