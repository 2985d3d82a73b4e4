"""A stolen key: its revocation in the log, a fresh key on the operator's word, and reports that stand by the time of their inclusion."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from cli import verifier
from control.signer import revoke
from services.audit import evidence, heads, signer
from services.audit import repository as audit
from services.db import leaves, revocations
from services.errors import InvalidInput, KeyRefused, LogTampered
from tests.integration.conftest import Ledger
from tests.integration.log_world import OTHER, SEED, key, settle
from tests.integration.test_log import Log
from tests.unit.cli.report_maker import Made

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def held(ledger: Ledger) -> Log:
    return Log(ledger, ledger.default_tenant())


def revoked(log: Log, seed: str = OTHER, *, fresh: bool = False) -> None:
    """Revoke the key of SEED as the command does, with the settings of a signer whose key is `seed`."""
    revoke(log.ledger.engine("lethe_signer"), log.signer(seed).settings, key().public.key_id, reason="compromised", fresh_key=fresh)


def types(log: Log) -> list[str]:
    with log.session() as session:
        return list(session.scalars(text("SELECT type FROM audit_event WHERE tenant_id IS NULL ORDER BY id")))


def keys(log: Log) -> str:
    """Return the key set as `lethe verify --log-key` takes it."""
    with log.session("lethe_gateway") as session:
        found = signer.web_keys(session)
    return "".join(one["vkey"] + (f" revoked-at-leaf={one['revoked_at_leaf']}" if one["revoked_at_leaf"] is not None else "") + "\n" for one in found)


def statement() -> dict[str, Any]:
    """Return a report's statement as JSONB gives it back: a number of 22 digits would come back as an integer."""
    made = Made().statement
    del made["predicate"]["verification"][0]["plan"]["body"]["large"]
    return made


def document(log: Log, request: object) -> bytes:
    with log.session("lethe_gateway", tenant=True) as session:
        row = audit.report(session, request)
        held = audit.evidence_of(session, row)
        assert held is not None
        return evidence.document(*held)


def said(path: Path, raw: bytes, vkeys: str) -> dict[str, str]:
    """Return what the offline verifier says of each check: ok, FAIL, ? or -."""
    report, key_file = path / "report.json", path / "log.vkey"
    report.write_bytes(raw)
    key_file.write_text(vkeys)
    lines: list[str] = []
    verifier.verify(verifier.Given(report, key_file), lines.append)
    return {line[6:26].strip(): line[:5].strip() for line in lines[:-1]}


def test_a_revoked_key_signs_nothing_more_and_no_other_follows_it_unless_the_operator_says_so(held: Log):
    running = held.signer()
    settle(running)
    revoked(held)
    size = held.head().size
    held.write(3)
    settle(running)
    assert (held.state(), held.head().size) == ("signing-key-refused", size)
    assert held.size() > size
    for seed, previous in ((SEED, ""), (OTHER, ""), (OTHER, SEED)):
        settle(held.signer(seed, previous))
        assert (held.state(), held.head().size) == ("signing-key-refused", size)
    revoked(held, fresh=True)
    settle(held.signer(OTHER))
    assert (held.state(), held.head().size) == ("ok", held.size())
    assert types(held) == ["key.added", "key.revoked", "key.rotated"]
    with held.session() as session:
        old, new = leaves.keys(session)
        assert (old.valid_to is not None, new.valid_to, new.body["endorsement"], new.body["replaces"]) == (True, None, None, old.key_id)
        leaf = revocations.revoked(session)[old.key_id]
        assert session.scalar(text("SELECT type FROM audit_event WHERE seq = :seq"), {"seq": leaf}) == "key.revoked"
    settle(held.signer(SEED))
    assert held.state() == "signing-key-refused"


def test_a_key_is_revoked_once_and_a_fresh_one_is_fresh(held: Log):
    settle(held.signer())
    with pytest.raises(InvalidInput, match="knows no key"):
        revoke(held.ledger.engine("lethe_signer"), held.signer().settings, "lethe.test/log+00000000", reason="x", fresh_key=False)
    with pytest.raises(KeyRefused, match="fresh"):
        revoked(held, SEED, fresh=True)
    assert types(held) == ["key.added"]
    revoked(held)
    revoked(held)
    assert types(held) == ["key.added", "key.revoked"]
    revoked(held, fresh=True)
    with pytest.raises(KeyRefused, match="current"):
        revoked(held, fresh=True)


def test_a_report_from_before_is_signed_anew_and_one_that_waited_is_signed_by_the_new_key(held: Log, tmp_path: Path):
    made = statement()
    first, waiting = held.request(), held.request()
    held.report(first, made)
    settle(held.signer())
    before, vkeys = document(held, first), keys(held)
    assert {said(tmp_path, before, vkeys)[name] for name in ("signature", "leaf", "inclusion", "checkpoint", "revoked keys")} == {"ok"}
    held.report(waiting, made)
    revoked(held, fresh=True)
    settle(held.signer(OTHER))

    told = said(tmp_path, before, keys(held))
    assert (told["signature"], told["checkpoint"], told["revoked keys"]) == ("ok", "ok", "?")
    assert said(tmp_path, before, key(OTHER).public.text)["signature"] == "FAIL"
    for request in (first, waiting):
        for known in (keys(held), key(OTHER).public.text):
            told = said(tmp_path, document(held, request), known)
            assert {told[name] for name in ("signature", "leaf", "inclusion", "checkpoint", "revoked keys")} == {"ok"}
    assert json.loads(document(held, first))["envelope"]["payload"] == json.loads(before)["envelope"]["payload"]
    settle(held.signer(OTHER))
    with held.session() as session:
        assert session.scalar(text("SELECT count(*) FROM report_renewal")) == 1


def test_a_report_that_the_stolen_key_signs_later_is_invalid_by_the_key_list(held: Log, tmp_path: Path):
    settle(held.signer())
    revoked(held)
    settle(held.signer())  # it numbers events and signs nothing
    late = held.request()
    held.report(late, statement())
    settle(held.signer())
    assert held.served(late) is None
    vkeys = keys(held)
    with held.session() as session:  # what a thief with the key and the database's role would do
        head = heads.extend(session, key(), held.copies)
        assert head is not None
        signer.sign_reports(session, head, key())
    told = said(tmp_path, document(held, late), vkeys)
    assert (told["signature"], told["checkpoint"], told["revoked keys"]) == ("ok", "ok", "FAIL")


def test_a_statement_that_was_changed_is_not_signed_anew(held: Log):
    request = held.request()
    held.report(request, {"_type": "x", "predicate": {}})
    settle(held.signer())
    held.tamper('UPDATE audit_report SET statement = \'{"_type": "y", "predicate": {}}\'')
    revoked(held, fresh=True)
    settle(held.signer(OTHER))
    assert held.state() == LogTampered.code
    with held.session() as session:
        assert session.scalar(text("SELECT count(*) FROM report_renewal")) == 0


def test_nobody_but_the_signer_revokes_or_renews_and_nothing_of_it_is_changed(held: Log):
    request = held.request()
    held.report(request, {"_type": "x", "predicate": {}})
    settle(held.signer())
    revoked(held, fresh=True)
    settle(held.signer(OTHER))
    for role in ("lethe_gateway", "lethe_worker", "lethe_control"):
        for table in ("key_revocation", "report_renewal"):
            for statement in (f"DELETE FROM {table}", f"INSERT INTO {table} SELECT * FROM {table}"):
                with pytest.raises(DBAPIError, match="permission denied"), held.session(role, tenant=True) as session:
                    session.execute(text(statement))
    for statement in ("UPDATE key_revocation SET body = '{}'", "DELETE FROM report_renewal", "TRUNCATE key_revocation CASCADE"):
        with pytest.raises(DBAPIError, match="immutable"), held.session("lethe_owner", tenant=True) as session:
            session.execute(text(statement))


@pytest.mark.soak
def test_the_command_revokes_and_says_what_it_does_not_know(held: Log):
    settle(held.signer())
    env = {**os.environ, "LETHE_EMBEDDED": "true", "LETHE_DATABASE__URL": held.ledger.url("lethe_signer"), "LETHE_KEYS__SIGNING": OTHER,
           "LETHE_SIGNER__ORIGIN": key().name, "PYTHONPATH": str(ROOT)}  # fmt: skip
    command = [sys.executable, "-m", "control.signer", "revoke", key().public.key_id, "--reason", "compromised", "--fresh-key"]
    refused = subprocess.run([*command[:4], "nobody+00000000", *command[5:]], env=env, capture_output=True, text=True, check=False)
    assert (refused.returncode, "knows no key" in refused.stderr, "Traceback" in refused.stderr) == (2, True, False)
    assert subprocess.run(command, env=env, capture_output=True, check=False).returncode == 0
    assert types(held) == ["key.added", "key.revoked", "key.rotated"]
