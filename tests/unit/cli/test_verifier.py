"""The offline verifier and its twin for Node over the same good and bad reports."""

import base64
import hashlib
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st

from cli import pack, verifier
from cli.verifier import HOLDS, INVALID, UNDECIDED, Given
from services.audit import evidence
from tests.unit.cli.report_maker import KEY, OTHER, PLAN, WITNESS, Made, readings, rewritten, write
from tests.unit.cli.verifiers import NODE, TWIN, VERIFIERS, run

RAW = Made().raw()


def python(report: Path, key: Path | None, **given: Any) -> tuple[int, list[str]]:
    said: list[str] = []
    return verifier.verify(Given(report, key, **given), said.append), said


def node(*paths: Path) -> int:
    return run(*paths).status


@pytest.fixture(params=VERIFIERS)
def asked(request: pytest.FixtureRequest) -> Any:
    """Either verifier, asked with options for its exit status."""
    return lambda report, key, **given: VERIFIERS[request.param](report, key, **given).status


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """What the twin says of every report of this file, by name: one process for all."""
    folder = tmp_path_factory.mktemp("twin")
    _, key = write(folder, RAW)
    reports = {**GOOD, **BAD, **UNKNOWN}
    for number, raw in enumerate(reports.values()):
        (folder / f"{number}.json").write_bytes(raw)
    code = (
        f"import {{examine}} from {json.dumps(TWIN.as_uri())};"
        f"console.log(JSON.stringify([...Array({len(reports)}).keys()].map((n) => examine({json.dumps(str(folder))} + `/${{n}}.json`, {json.dumps(str(key))})[0])))"
    )
    done = subprocess.run([NODE, "--input-type=module", "-e", code], capture_output=True, text=True, check=True)
    return dict(zip(reports, json.loads(done.stdout), strict=True))


def proof_line(number: int, text: str) -> Any:
    """Return what replaces a line of the proof."""

    def change(document: dict[str, Any]) -> None:
        lines = document["tlog_proof"].split("\n")
        lines[number] = text
        document["tlog_proof"] = "\n".join(lines)

    return change


def proof_text(change: Any) -> Any:
    def bend(document: dict[str, Any]) -> None:
        document["tlog_proof"] = change(document["tlog_proof"])

    return bend


def extra(change: Any) -> Any:
    """Return what changes the proof's extra data."""

    def bend(document: dict[str, Any]) -> None:
        lines = document["tlog_proof"].split("\n")
        body = json.loads(base64.b64decode(lines[1][6:]))
        change(body)
        lines[1] = "extra " + base64.b64encode(rfc8785.dumps(body)).decode()
        document["tlog_proof"] = "\n".join(lines)

    return bend


def envelope(**members: Any) -> Any:
    return lambda document: document["envelope"].update(members)


def predicate(**members: Any) -> Any:
    return lambda statement: statement["predicate"].update(members)


def unjudged(statement: dict[str, Any]) -> None:
    """Take the verdict away from the report and its run."""
    for part in (statement["predicate"], statement["predicate"]["verification"][0]):
        part.update(verdict=None, failure_codes=[])


def signatures(change: Any) -> Any:
    return lambda document: change(document["envelope"]["signatures"])


def spaced(payload: bytes) -> bytes:
    return payload.replace(b'","', b'", "', 1)


def doubled(payload: bytes) -> bytes:
    return b'{"_type":"x",' + payload[1:]


def first_path_hash(proof: str) -> str:
    return proof.split("\n")[3]


def swapped_prefix() -> bytes:
    """Return a report whose log hashes its leaves with the prefix of a node."""
    from unittest.mock import patch

    with patch("services.audit.tree.leaf_hash", lambda data: hashlib.sha256(b"\x01" + data).digest()):
        return Made().raw()


SHORT = Made(plan_leaf=0, run_leaf=1, index=2, size=3)
BAD: dict[str, bytes] = {
    "signed by another key": Made(key=OTHER).raw(),
    "wrong index": rewritten(RAW, proof_line(2, "index 8")),
    "index beyond the tree": rewritten(RAW, proof_line(2, "index 13")),
    "index with a leading zero": rewritten(RAW, proof_line(2, "index 09")),
    "wrong tree size": rewritten(RAW, proof_text(lambda proof: proof.replace("\n13\n", "\n12\n"))),
    "wrong root": rewritten(RAW, proof_text(lambda proof: proof.replace(proof.split("\n13\n")[1].split("\n")[0], base64.b64encode(bytes(32)).decode()))),
    "one hash too few": rewritten(RAW, proof_text(lambda proof: proof.replace(first_path_hash(proof) + "\n", "", 1))),
    "one hash too many": rewritten(RAW, proof_text(lambda proof: proof.replace(first_path_hash(proof), f"{first_path_hash(proof)}\n{first_path_hash(proof)}", 1))),
    "a hash that is too short": rewritten(RAW, proof_line(3, base64.b64encode(bytes(31)).decode())),
    "leaf and node prefix swapped": swapped_prefix(),
    "trailing data": RAW + b"{}",
    "trailing blank": RAW + b" ",
    "no JSON": b"%PDF-1.7",
    "empty": b"",
    "a byte-order mark": b"\xef\xbb\xbf" + RAW,
    "not UTF-8": RAW.replace(b'"envelope"', b'"envel\xffpe"'),
    "an array": b"[" + RAW + b"]",
    "a key twice in the file": RAW[:-1] + b',"tlog_proof":"x"}',
    "a key too many in the file": rewritten(RAW, lambda document: document.update(more=1)),
    "a key twice in the payload": Made(bend_payload=doubled).raw(),
    "a payload that is not canonical": Made(bend_payload=spaced).raw(),
    "NaN in the payload": Made(bend_payload=lambda payload: payload.replace(b'"revision":1', b'"revision":NaN')).raw(),
    "Infinity in the payload": Made(bend_payload=lambda payload: payload.replace(b'"revision":1', b'"revision":Infinity')).raw(),
    "an integer of twenty digits": Made(bend_payload=lambda payload: payload.replace(b'"revision":1', b'"revision":' + b"9" * 20)).raw(),
    "a metric as float": Made(bend_statement=lambda s: s["predicate"]["verification"][0]["metrics"][0].update(after=0.105)).raw(),
    "a seed as float": Made(bend_statement=lambda s: s["predicate"]["processing"][0].update(rung=1.5)).raw(),
    "nested a thousand deep": Made(bend_payload=lambda payload: payload.replace(b'"recipients":[]', b'"recipients":' + b"[" * 1000 + b"]" * 1000)).raw(),
    "no statement": Made(bend_payload=lambda _: b'"text"').raw(),
    "a statement of another type": Made(bend_statement=lambda statement: statement.update(_type="https://in-toto.io/Statement/v0.1")).raw(),
    "the run before the plan": Made(plan_leaf=6, run_leaf=4).raw(),
    "the report before the run": Made(plan_leaf=4, run_leaf=11, index=9).raw(),
    "another plan than the one in the log": Made(bend_statement=lambda s: s["predicate"]["verification"][0]["plan"]["body"].update(alpha=0.5)).raw(),
    "a plan leaf that opens to something else": rewritten(RAW, extra(lambda body: body["leaves"][0]["body"].update(digest="00" * 32))),
    "a run that began under another plan": rewritten(RAW, extra(lambda body: body["leaves"][1]["body"].update(plan="00" * 32))),
    "an opened leaf with another salt": rewritten(RAW, extra(lambda body: body["leaf"].update(salt="00" * 16))),
    "an opened leaf with a member too many": rewritten(RAW, extra(lambda body: body["leaf"].update(more=1))),
    "a leaf of another report": rewritten(RAW, lambda document: document.update(tlog_proof=SHORT.parts()["tlog_proof"])),
    "the payload of another report": rewritten(RAW, lambda document: document.update(envelope=SHORT.parts()["envelope"])),
    "another payload type": rewritten(RAW, envelope(payloadType="application/json")),
    "no signature": rewritten(RAW, envelope(signatures=[])),
    "a signature of zeros": rewritten(RAW, signatures(lambda held: held[0].update(sig=base64.b64encode(bytes(64)).decode()))),
    "a key id of nobody": rewritten(RAW, signatures(lambda held: held[0].update(keyid="lethe.test/log+00000000"))),
    "a signature that is no list": rewritten(RAW, envelope(signatures="x")),
    "base64 with a bit that counts for nothing": rewritten(RAW, lambda d: d["envelope"].update(payload=d["envelope"]["payload"].replace("=", "") + "!")),
    "no proof": rewritten(RAW, lambda document: document.update(tlog_proof="")),
    "a proof that is a number": rewritten(RAW, lambda document: document.update(tlog_proof=7)),
    "a proof of another form": rewritten(RAW, proof_line(0, "c2sp.org/tlog-proof@v2")),
    "an unsigned checkpoint": rewritten(RAW, proof_text(lambda proof: proof[: proof.rindex("—")])),
    "a checkpoint of another log": rewritten(RAW, proof_text(lambda proof: proof.replace("\nlethe.test/log\n", "\nother.test/log\n"))),
    "a verdict that the readings do not give": Made(rows=readings(paired=("0.3000", "0.2600", "0.3400"))).raw(),
    "a verdict that the states do not give": Made(rows=readings(paired=("0.3000", "0.2600", "0.3400"), state="outside")).raw(),
    "a verdict failed without a reason": Made(verdict="failed", codes=("leak",)).raw(),
    "a head alone that claims no more than that": Made(verdict="failed", codes=("representation",), guarantee="suppression").raw(),
    "a gate outside and no failure": Made(verdict="inconclusive", rows=readings(paired=("0.3000", "0.2600", "0.3400"), state="outside")).raw(),
    "a headline that is not its runs'": Made(verdict="inconclusive", bend_statement=predicate(verdict="passed")).raw(),
    "a plan of another's": Made(bend_statement=lambda s: s["predicate"]["verification"][0]["plan"].update(digest="00" * 32)).raw(),
    "a revision of another's": Made(bend_statement=predicate(revision=2)).raw(),
    "a version of tomorrow that nobody signed": rewritten(
        Made(bend_statement=predicate(report_version="2")).raw(), signatures(lambda held: held[0].update(sig=base64.b64encode(bytes(64)).decode()))
    ),
}  # fmt: skip
ONLY_PYTHON: dict[str, bytes] = {
    "a member too many in the predicate": Made(bend_statement=predicate(more="x")).raw(),
    "failure codes of nobody": Made(bend_statement=predicate(failure_codes=["leak"])).raw(),
    "a sentence of nobody": Made(bend_statement=predicate(sentence="All is well.")).raw(),
    "another subject than was published": Made(bend_statement=lambda s: s["subject"][0]["digest"].update(sha256="00" * 32)).raw(),
    "a version with the bytes of the one before": Made(manifest_digest="cd" * 32).raw(),
    "no run for a verdict": Made(bend_statement=predicate(processing=[])).raw(),
    "a wider band than the plan's": Made(bend_statement=lambda s: s["predicate"]["verification"][0]["metrics"][0]["band"].update(epsilon="0.5000")).raw(),
}  # fmt: skip
GOOD: dict[str, bytes] = {
    "approximate": RAW,
    "exact": Made(guarantee="exact").raw(),
    "inconclusive": Made(verdict="inconclusive", rows=readings(paired=("0.0300", "-0.0100", "0.0700"), state="undecided")).raw(),
    "failed": Made(verdict="failed", codes=("leak",), rows=readings(paired=("0.3000", "0.2600", "0.3400"), state="outside")).raw(),
    "failed by its last layer alone": Made(verdict="failed", codes=("representation",)).raw(),
    "three leaves": SHORT.raw(),
    "witnessed": Made(witnessed=True).raw(),
    "with a newline at the end": RAW + b"\n",
    "with a run that was not judged": Made(rows=readings(paired=("0.3000", "0.2600", "0.3400"), state="outside"), bend_statement=unjudged).raw(),
    "with figures": Made(bend_statement=predicate(figures=[{"name": "roc", "data_digest": "ab" * 32}, {"name": "x", "data_digest": None, "reason": "n < 16"}])).raw(),
}  # fmt: skip
UNKNOWN: dict[str, bytes] = {
    "a version of tomorrow": Made(bend_statement=predicate(report_version="2")).raw(),
    "another predicate": Made(bend_statement=lambda statement: statement.update(predicateType="https://lethe.dev/verification/v2")).raw(),
    "no leaves named": Made(bend_statement=lambda s: s["predicate"]["verification"][0]["run"].update(leaf_index=None)).raw(),
    "leaves no longer opened": rewritten(RAW, extra(lambda body: body.update(leaves=[]))),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_a_good_report_is_valid_to_both(name: str, tmp_path: Path, twin: dict[str, int]) -> None:
    status, said = python(*write(tmp_path, GOOD[name]))
    assert status == HOLDS, said
    assert said[-1] == "valid"
    assert twin[name] == HOLDS


@pytest.mark.parametrize("name", BAD)
def test_a_bad_report_is_invalid_to_both(name: str, tmp_path: Path, twin: dict[str, int]) -> None:
    status, said = python(*write(tmp_path, BAD[name]))
    assert status == INVALID, said
    assert twin[name] == INVALID


@pytest.mark.parametrize("name", ONLY_PYTHON)
def test_what_the_twin_leaves_out_is_invalid_to_the_first(name: str, tmp_path: Path) -> None:
    status, said = python(*write(tmp_path, ONLY_PYTHON[name]))
    assert status == INVALID, said


@pytest.mark.parametrize(("verdict", "status"), [("passed", INVALID), ("inconclusive", HOLDS)])
def test_a_plan_that_could_not_pass_allows_no_pass(verdict: str, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PLAN, "power", {"cannot_pass": True, "retrained_passes": 0.5, "original_fails": 0.25})
    report, key = write(tmp_path, Made(verdict=verdict, codes=("cannot_pass",) if verdict == "inconclusive" else ()).raw())

    assert python(report, key)[0] == status
    assert node(report, key) == status


@pytest.mark.parametrize(("looks", "status"), [(1, HOLDS), (2, INVALID), (0, INVALID)])
def test_no_plan_of_the_first_attempt_counts_a_look_that_nobody_took(
    looks: int, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PLAN, "looks", looks)
    assert python(*write(tmp_path, Made().raw()))[0] == status


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_known_cannot_be_decided(name: str, tmp_path: Path, twin: dict[str, int]) -> None:
    assert python(*write(tmp_path, UNKNOWN[name]))[0] == UNDECIDED
    assert twin[name] == UNDECIDED


def test_without_a_key_or_with_a_broken_one_it_cannot_be_decided(tmp_path: Path) -> None:
    report, key = write(tmp_path, RAW)
    assert python(report, None)[0] == UNDECIDED
    assert python(report, tmp_path / "none")[0] == UNDECIDED
    assert python(tmp_path / "none", key)[0] == UNDECIDED
    assert (node(report), node(report, tmp_path / "none"), node(tmp_path / "none", key)) == (UNDECIDED, UNDECIDED, UNDECIDED)
    for text in ("", "x", "lethe.test/log+00000000+AAAA", KEY.public.text.replace("+", "-", 1), WITNESS.public.text):
        key.write_text(text)
        assert (python(report, key)[0], node(report, key)) == (UNDECIDED, UNDECIDED)


def test_of_several_keys_the_one_that_signed_counts(tmp_path: Path) -> None:
    report, key = write(tmp_path, RAW)
    key.write_text(f"{OTHER.public.text}\n{KEY.public.text}\n")
    assert (python(report, key)[0], node(report, key)) == (HOLDS, HOLDS)


def test_a_hundred_megabytes_are_refused_without_being_read(tmp_path: Path) -> None:
    report, key = write(tmp_path, b"")
    with report.open("wb") as file:
        file.truncate(100 * 1024 * 1024)
    code = "import resource,sys; resource.setrlimit(resource.RLIMIT_AS, (300 << 20, 300 << 20)); from cli.verifier import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", code, report, "--log-key", key], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (INVALID, "")
    assert node(report, key) == INVALID


def test_a_witness_is_checked_where_it_is_asked_for(tmp_path: Path) -> None:
    report, key = write(tmp_path, GOOD["witnessed"])
    witness = tmp_path / "w.vkey"
    witness.write_text(WITNESS.public.text)
    assert python(report, key, witness=str(witness))[0] == HOLDS
    assert python(report, key, witness=WITNESS.public.text)[0] == HOLDS
    assert python(*write(tmp_path, RAW), witness=WITNESS.public.text)[0] == UNDECIDED
    bent = GOOD["witnessed"].decode()
    at = bent.rindex("witness.test/w1 ") + 60
    report.write_text(bent[:at] + ("A" if bent[at] != "A" else "B") + bent[at + 1 :])
    assert python(report, key, witness=WITNESS.public.text)[0] == INVALID
    assert node(report, key, witness) == INVALID
    report.write_bytes(GOOD["witnessed"])
    assert (node(report, key, witness), node(report, key, key)) == (HOLDS, UNDECIDED)
    report.write_bytes(RAW)
    assert node(report, key, witness) == UNDECIDED


def renewed() -> bytes:
    """Return the report of leaf 9 of 13 with the old key's signature and the new one's, under a checkpoint of the new one."""
    old, new = Made(witnessed=True).parts(), Made(key=OTHER).parts()
    signed = {**new["envelope"], "signatures": [*new["envelope"]["signatures"], *old["envelope"]["signatures"]]}
    return evidence.document(signed, new["tlog_proof"])


OLD_STATEMENT = evidence.document(Made().parts()["envelope"], Made(key=OTHER).parts()["tlog_proof"])
REVOKED: dict[str, tuple[bytes, list[str], bool, int]] = {
    "before the revocation, but nobody else vouches for the head": (RAW, [f"{KEY.public.text} revoked-at-leaf=13"], False, UNDECIDED),
    "before the revocation, by a witness": (GOOD["witnessed"], [f"{KEY.public.text} revoked-at-leaf=13"], True, HOLDS),
    "a leaf after the revocation": (GOOD["witnessed"], [f"{KEY.public.text} revoked-at-leaf=9"], True, INVALID),
    "a head after the revocation": (GOOD["witnessed"], [f"{KEY.public.text} revoked-at-leaf=12"], True, INVALID),
    "signed anew": (renewed(), [f"{KEY.public.text} revoked-at-leaf=12", OTHER.public.text], False, HOLDS),
    "signed anew, with the new key alone": (renewed(), [OTHER.public.text], False, HOLDS),
    "an old statement under a new head": (OLD_STATEMENT, [f"{KEY.public.text} revoked-at-leaf=12", OTHER.public.text], False, HOLDS),
    "a late statement under a new head": (OLD_STATEMENT, [f"{KEY.public.text} revoked-at-leaf=9", OTHER.public.text], False, INVALID),
    "by the new key": (Made(key=OTHER).raw(), [f"{KEY.public.text} revoked-at-leaf=3", OTHER.public.text], False, HOLDS),
    "by the new key, revoked as well": (
        renewed(),
        [f"{KEY.public.text} revoked-at-leaf=3", f"{OTHER.public.text} revoked-at-leaf=4"],
        False,
        INVALID,
    ),
    "a word that is not known": (RAW, [f"{KEY.public.text} expired"], False, UNDECIDED),
}


@pytest.mark.parametrize("name", REVOKED)
def test_after_a_revocation_the_time_of_inclusion_counts(name: str, tmp_path: Path) -> None:
    raw, keys, with_witness, expected = REVOKED[name]
    report, key = write(tmp_path, raw)
    key.write_text("\n".join(keys))
    witness = tmp_path / "w.vkey"
    witness.write_text(WITNESS.public.text)
    status, said = python(report, key, **({"witness": str(witness)} if with_witness else {}))
    assert status == expected, said
    assert node(report, key, *([witness] if with_witness else [])) == expected


def beside(folder: Path, note: str, size: int, to: int, proof: list[bytes]) -> dict[str, Path]:
    """Write a checkpoint of before and the proof that leads from it; return both as options."""
    (folder / "previous").write_text(note)
    (folder / "consistency.json").write_text(json.dumps({"from": size, "to": to, "hashes": [base64.b64encode(one).decode() for one in proof]}))
    return {"previous": folder / "previous", "consistency": folder / "consistency.json"}


@pytest.mark.parametrize("size", [1, 4, 7, 8, 12, 13])
def test_the_log_must_begin_with_the_checkpoint_of_before(size: int, tmp_path: Path, asked: Any) -> None:
    report, key = write(tmp_path, RAW)
    note, proof = Made().checkpoint(size)
    assert asked(report, key, **beside(tmp_path, note, size, 13, proof)) == HOLDS
    if size < 13:
        assert asked(report, key, previous=tmp_path / "previous") == UNDECIDED
        assert asked(report, key, **beside(tmp_path, note, size, 12, proof)) == INVALID
        assert asked(report, key, **beside(tmp_path, note, size, 13, [*proof, bytes(32)])) == INVALID
        assert asked(report, key, **beside(tmp_path, note, size, 13, proof[:-1])) == INVALID
        assert asked(report, key, **beside(tmp_path, note, size, 13, [proof[0][:31], *proof[1:]])) == INVALID
        assert asked(report, key, **beside(tmp_path, note, size, 13, [bytes(32), *proof[1:]])) == INVALID


def test_a_rewritten_or_shrunken_log_is_seen_from_the_checkpoint_of_before(tmp_path: Path, asked: Any) -> None:
    report, key = write(tmp_path, RAW)
    note, proof = Made(verdict="inconclusive", bend_statement=predicate(residual_risk="another")).checkpoint(12)
    assert asked(report, key, **beside(tmp_path, note, 12, 13, proof)) == INVALID
    for other in (
        Made(size=40).checkpoint(40)[0],
        Made(key=OTHER).checkpoint(13)[0],
        Made().checkpoint(13)[0].replace("lethe.test/log", "other.test/log"),
        "x",
    ):
        (tmp_path / "previous").write_text(other)
        assert asked(report, key, previous=tmp_path / "previous") == INVALID
    assert asked(report, key, previous=tmp_path / "none") == UNDECIDED


def test_a_consistency_proof_that_can_be_read_in_two_ways_is_invalid(tmp_path: Path, asked: Any) -> None:
    report, key = write(tmp_path, RAW)
    note, proof = Made().checkpoint(7)
    given = beside(tmp_path, note, 7, 13, proof)
    whole = given["consistency"].read_text()
    for text in (
        whole.replace("{", '{"from": 8, ', 1),
        whole.replace("{", '{"fr\\u006fm": 8, ', 1),
        f"[{whole}]",
        whole + "x",
        '{"from": 7, "to": 13}',
    ):
        given["consistency"].write_text(text)
        assert asked(report, key, **given) == INVALID, text


def test_the_plan_that_one_was_given_must_be_the_one_of_the_report(tmp_path: Path, asked: Any) -> None:
    report, key = write(tmp_path, RAW)
    plan = tmp_path / "plan.json"
    text = json.dumps(PLAN, indent=2)
    plan.write_text(text)
    assert asked(report, key, plan=plan) == HOLDS
    for other in (
        json.dumps({**PLAN, "alpha": 0.06}),
        text.replace("{", '{"alpha": 0.06,', 1),
        text.replace('"alpha"', '"n": 9007199254740993, "alpha"', 1),
        "{",
        "",
    ):
        plan.write_text(other)
        assert asked(report, key, plan=plan) == INVALID, other[:40]
    assert asked(report, key, plan=tmp_path / "none") == UNDECIDED


@pytest.fixture
def version(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A folder with a version's files, the report about it, and the key."""
    folder = tmp_path / "model"
    (folder / "parts").mkdir(parents=True)
    files = {"model.safetensors": b"weights", "parts/two.safetensors": b"more weights"}
    for name, raw in files.items():
        (folder / name).write_bytes(raw)
    listed = [{"path": name, "digest": f"sha256:{hashlib.sha256(raw).hexdigest()}", "size_bytes": len(raw)} for name, raw in files.items()]
    (folder / "manifest.json").write_bytes(rfc8785.dumps({"files": listed}))
    return folder, *write(tmp_path, Made(manifest_digest=hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()).raw())


def test_the_files_of_a_version_are_hashed_again(version: tuple[Path, Path, Path], asked: Any) -> None:
    folder, report, key = version
    assert asked(report, key, model=folder) == HOLDS
    assert asked(report, key, model=folder / "nothing") == UNDECIDED
    assert asked(*write(report.parent, RAW), model=folder) == INVALID  # files of another version than the report's


def extra_file(folder: Path) -> None:
    (folder / "parts" / "extra").write_bytes(b"")


def changed_byte(folder: Path) -> None:
    (folder / "parts" / "two.safetensors").write_bytes(b"more wejghts")


def longer_file(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"weights\n")


def missing_file(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def link_to_the_same_bytes(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "elsewhere")
    (folder / "model.safetensors").symlink_to(folder.parent / "elsewhere")


def link_to_a_folder(folder: Path) -> None:
    (folder / "parts").rename(folder.parent / "elsewhere")
    (folder / "parts").symlink_to(folder.parent / "elsewhere")


def folder_in_the_place_of_a_file(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()


def other_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_bytes(b"{}")


SPOILT = (
    extra_file,
    changed_byte,
    longer_file,
    missing_file,
    link_to_the_same_bytes,
    link_to_a_folder,
    folder_in_the_place_of_a_file,
    other_manifest,
)


@pytest.mark.parametrize("spoil", SPOILT, ids=lambda spoil: spoil.__name__)
def test_files_that_are_too_many_missing_or_changed_are_invalid(spoil: Any, version: tuple[Path, Path, Path], asked: Any) -> None:
    folder, report, key = version
    spoil(folder)
    assert asked(report, key, model=folder) == INVALID


def test_the_twin_says_a_line_for_each_check_and_those_after_a_wrong_one_are_not_reached(tmp_path: Path) -> None:
    report, key = write(tmp_path, RAW)
    good = run(report, key)
    report.write_bytes(BAD["wrong index"])
    bad = run(report, f"--log-key={key}")
    report.write_bytes(UNKNOWN["no leaves named"])
    unknown = run(report, key)

    assert [line.split()[0] for line in good.lines] == ["ok"] * 10 + ["valid"]
    assert [line.split()[0] for line in bad.lines] == ["ok", "ok", "ok", "FAIL", *"------", "INVALID"]
    assert [line.split()[0] for line in unknown.lines] == [*["ok"] * 7, "?", "ok", "ok", "cannot"]
    assert "no statistics" in good.lines[9]


def test_what_was_not_decided_does_not_hide_what_is_wrong_behind_it(tmp_path: Path, asked: Any) -> None:
    report, key = write(tmp_path, BAD["a headline that is not its runs'"])
    (tmp_path / "previous").write_text(Made().checkpoint(7)[0])
    assert asked(report, key, previous=tmp_path / "previous") == INVALID


@pytest.mark.parametrize("arguments", [(), ("--plan",), ("--tea", "leaves"), ("a", "b", "c", "d")])
def test_the_twin_says_how_it_is_used(arguments: tuple[str, ...]) -> None:
    said = run(*arguments)
    assert said.status == UNDECIDED
    assert "--previous CHECKPOINT" in "\n".join(said.lines)


def test_a_report_is_verified_within_a_second(tmp_path: Path) -> None:
    report, key = write(tmp_path, RAW)
    started = time.process_time()
    assert python(report, key)[0] == HOLDS
    assert time.process_time() - started < 1.0


def flips(count: int, seed: int, folder: Path) -> dict[str, dict[int, int]]:
    """Flip one bit of a report `count` times, each by itself, and return how often each verifier said what. A verifier that raises fails the test."""
    draw = random.Random(seed)
    report, key = write(folder, RAW)
    drawn = [(draw.randrange(len(RAW)), 1 << draw.randrange(8)) for _ in range(count)]
    found: Counter[int] = Counter()
    with report.open("r+b", buffering=0) as file:
        for at, bit in drawn:
            os.pwrite(file.fileno(), bytes([RAW[at] ^ bit]), at)  # in place: to write the whole file anew takes longer than to verify it
            status, said = python(report, key)
            assert len(said) == len(verifier.CHECKS) + 1
            found[status] += 1
            os.pwrite(file.fileno(), RAW[at : at + 1], at)
    assert report.read_bytes() == RAW
    (folder / "flips.json").write_text(json.dumps(drawn))
    return {"python": dict(found), "node": flips_in_node(folder, report, key)}


def flips_in_node(folder: Path, report: Path, key: Path) -> dict[int, int]:
    """Return how often the twin said what: all of the flips in one process, and the report as it was before and after them."""
    code = (
        f"import {{examine}} from {json.dumps(TWIN.as_uri())}; import {{readFileSync}} from 'node:fs';"
        f"const raw = readFileSync({json.dumps(str(report))}), key = {json.dumps(str(key))}, found = {{}}, before = examine(raw, key)[0];"
        f"for (const [at, bit] of JSON.parse(readFileSync({json.dumps(str(folder / 'flips.json'))}))) {{"
        "raw[at] ^= bit; const status = examine(raw, key)[0]; found[status] = (found[status] ?? 0) + 1; raw[at] ^= bit; }"
        "console.log(JSON.stringify([before, examine(raw, key)[0], found]))"
    )
    done = subprocess.run([NODE, "--input-type=module", "-e", code], capture_output=True, text=True, check=True)
    before, after, found = json.loads(done.stdout)
    assert (before, after) == (HOLDS, HOLDS)
    return {int(status): times for status, times in found.items()}


def none_missed(found: dict[str, dict[int, int]], count: int) -> bool:
    """Say whether each verifier called every one of the flips invalid."""
    return all(said == {INVALID: count} for said in found.values())


def test_no_flipped_bit_is_missed(tmp_path: Path) -> None:
    found = flips(250, 1, tmp_path)
    assert none_missed(found, 250), found


@pytest.mark.soak
def test_no_flipped_bit_is_missed_in_a_hundred_thousand(tmp_path: Path) -> None:
    found = flips(100_000, 2, tmp_path)
    assert none_missed(found, 100_000), found


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=400))
def test_whatever_the_file_holds_there_is_an_answer_and_never_a_traceback(raw: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        report, key = write(Path(folder), raw)
        assert python(report, key)[0] == INVALID


@settings(max_examples=100, deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_are_written_as_rfc_8785_asks(number: float) -> None:
    assert verifier.ecmascript(number).encode() == rfc8785.dumps(number)


SCALARS = st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(max_size=6)


@settings(max_examples=50, deadline=None)
@given(st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=4), max_leaves=8))
def test_canonical_json_is_that_of_rfc_8785(value: Any) -> None:
    try:
        expected = rfc8785.dumps(value)
    except (rfc8785.CanonicalizationError, UnicodeError):
        return
    assert verifier.canonical(value) == expected


def test_the_zipapp_runs_with_nothing_but_cryptography_and_is_the_same_each_time(tmp_path: Path) -> None:
    report, key = write(tmp_path, RAW)
    for name in ("one.pyz", "two.pyz"):
        pack.pack(tmp_path / name)
    assert (tmp_path / "one.pyz").read_bytes() == (tmp_path / "two.pyz").read_bytes()
    code = (
        "import runpy, sys; sys.argv = sys.argv[1:]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end: status = end.code\n"
        "foreign = {n.split('.')[0] for n, m in sys.modules.items() if 'site-packages' in str(getattr(m, '__file__', ''))}\n"
        "print(sorted(foreign - {'cryptography', 'cffi', '_cffi_backend', '_distutils_hack'}), status)"
    )
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    arguments = [sys.executable, "-c", code, tmp_path / "one.pyz", report, "--log-key", key]
    done = subprocess.run(arguments, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-2:] == ["valid", "[] 0"], done.stdout + done.stderr
    report.write_bytes(BAD["wrong index"])
    assert (
        subprocess.run([sys.executable, tmp_path / "one.pyz", report, "--log-key", key], cwd=tmp_path, capture_output=True, check=False).returncode
        == 1
    )


def test_the_command_is_the_same_verifier(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from cli.main import app

    report, key = write(tmp_path, RAW)
    done = CliRunner().invoke(app, ["verify", str(report), "--log-key", str(key)])
    assert (done.exit_code, done.output.splitlines()[-1]) == (HOLDS, "valid")
    report.write_bytes(BAD["no signature"])
    assert CliRunner().invoke(app, ["verify", str(report), "--log-key", str(key)]).exit_code == INVALID
    assert CliRunner().invoke(app, ["verify", str(report)]).exit_code == UNDECIDED
