"""The witness: its protocol against the published texts and vectors, its rules, and what it keeps on the disk."""

import base64
import json
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from cli import verifier
from control.witness import Answer, StateFile, Witness, create_app
from services.audit import tree
from services.audit.notes import WITNESS_KEY, Checkpoint, SigningKeyPair, VerifierKey, parse_checkpoint
from services.audit.witness import Submission, good_line, known_size, parse_submission
from services.clock import FixedClock
from services.errors import InvalidInput

KEY = SigningKeyPair.from_hex("lethe.test/log", "44" * 32)
WITNESS = SigningKeyPair("witness.test/w1", b"w" * 32, WITNESS_KEY)
AT = datetime(2026, 5, 1, tzinfo=UTC)

EXAMPLE = """old 20852014
PlRNCrwHpqhGrupue0L7gxbjbMiKA9temvuZZDDpkaw=
jrJZDmY8Y7SyJE0MWLpLozkIVMSMZcD5kvuKxPC3swk=
5+pKlUdi2LeF/BcMHBn+Ku6yhPGNCswZZD1X/6QgPd8=
/6WVhPs2CwSsb5rYBH5cjHV/wSmA79abXAwhXw3Kj/0=

example.com/behind-the-sofa
20852163
CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=

— example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=
— example.com/behind-the-sofa opLqBQsREYCgu6xQkYQwJr9fo45a62DN9EdmHXnZdXNqlcVGlCum2Wks+49/V6267UEjw6QUXTS5Rovnzv++qbSzm9Q=
"""
"""The request of the C2SP text tlog-witness."""
COSIGNED = """coachandhorses2026h1.staging.certificate.transparency.goog
185550722
YXAM0VmnrfvLaBCOOYSJhCaE5F10oGBOo+hkbDa1kng=

— coachandhorses2026h1.staging.certificate.transparency.goog MpXgsHy8ZwxXnO+WjtVrPxAzL49Rs1gWTkNVNeEa//5peAzaocRCB3qt3EaibjzY5GILLtGgBP7dBhgcSHy+JQh0OAc=
— witness.navigli.sunlight.geomys.org o+AP4gAAAABqb7DzNrGFRJnQ9vrJ8xpnwZytnr/ZYczDIsvwvouiSjwOjn7a72ccxBk+lKnZ7dKqkYKER1s/KxLTaVwQD7lJZTC/CQ==
"""
"""A checkpoint of a public log with the line of a public witness, both of other programs than ours."""
PUBLIC_WITNESS = "witness.navigli.sunlight.geomys.org+a3e00fe2+BNy/co4C1Hn1p+INwJrfUlgz7W55dSZReusH/GhUhJ/G"


@dataclass
class Log:
    """A log in memory; one that differs in `at` is a fork of the other."""

    at: int | None = None
    key: SigningKeyPair = KEY
    nodes: dict[tuple[int, int], bytes] = field(init=False)

    def __post_init__(self) -> None:
        hashes = [tree.leaf_hash(b"other" if n == self.at else str(n).encode()) for n in range(40)]
        self.nodes = {(0, n): one for n, one in enumerate(hashes)} | tree.extend(0, hashes, [])

    def head(self, size: int) -> Checkpoint:
        head = Checkpoint(self.key.name, size, tree.fold(0, size, self.nodes))
        return Checkpoint(head.origin, size, head.root, (self.key.line(head.text),))

    def submission(self, old: int, size: int) -> bytes:
        return Submission(old, tuple(tree.fold(*ends, self.nodes) for ends in tree.consistency_ranges(old, size)), self.head(size)).body


@pytest.fixture
def path(tmp_path: Path) -> Path:
    StateFile.begin(tmp_path / "witness.json")
    return tmp_path / "witness.json"


def witness(path: Path, *logs: VerifierKey) -> Witness:
    return Witness(WITNESS, logs or (KEY.public,), StateFile(path), FixedClock(AT))


def restarted(one: Witness, path: Path) -> Witness:
    one._state.close()
    return witness(path)


def test_the_example_of_the_protocol_is_read_and_written_as_it_stands():
    asked = parse_submission(EXAMPLE.encode())
    assert (asked.old, asked.checkpoint.size, len(asked.proof), len(asked.checkpoint.lines)) == (20852014, 20852163, 4, 2)
    assert asked.checkpoint.origin == "example.com/behind-the-sofa"
    assert asked.body == EXAMPLE.encode()


def test_the_line_of_a_public_witness_holds_to_both_readers():
    key, note = VerifierKey.parse(PUBLIC_WITNESS), parse_checkpoint(COSIGNED)
    assert note.signed_by(key)
    assert verifier.note_of(COSIGNED, "note").signed_by(verifier.keys_of(PUBLIC_WITNESS, WITNESS_KEY, "key")) == key.name
    line = good_line(COSIGNED.partition("\n\n")[2].encode(), note, key, not_after=2**40)
    assert line == note.lines[1]
    assert good_line(line.encode(), note, key, not_after=int.from_bytes(base64.b64decode(line.split(" ")[2])[4:12], "big") - 1) is None
    other = COSIGNED.replace("185550722", "185550723")
    assert not parse_checkpoint(other).signed_by(key)
    with pytest.raises(verifier.Wrong):
        verifier.note_of(other, "note").signed_by(verifier.keys_of(PUBLIC_WITNESS, WITNESS_KEY, "key"))


def test_a_note_is_signed_byte_for_byte_as_the_first_implementation_signs_it():
    """Vector: golang.org/x/mod/sumdb/note, its example key and note."""
    key = SigningKeyPair("PeterNeumann", base64.b64decode("AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz")[1:])
    text = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
    assert key.public.text == "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
    assert key.line(text) == "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM="


def test_growing_heads_are_cosigned_each_with_the_time_of_its_signing(path: Path):
    one, log = witness(path), Log()
    for old, size in ((0, 3), (3, 3), (3, 8), (8, 40)):
        answer = one.add(log.submission(old, size))
        assert answer.status == 200, answer
        line = good_line(answer.body.encode(), log.head(size), WITNESS.public, not_after=int(AT.timestamp()))
        assert answer.body == f"{line}\n"
        assert good_line(answer.body.encode(), log.head(size), WITNESS.public, not_after=int(AT.timestamp()) - 1) is None
        assert good_line(answer.body.encode(), log.head(2), WITNESS.public, not_after=2**40) is None


def test_another_size_than_the_one_it_knows_is_a_conflict_that_names_it(path: Path):
    one, log = witness(path), Log()
    assert one.add(log.submission(0, 8)).status == 200
    for old, size in ((0, 8), (3, 8), (9, 12), (0, 3)):
        answer = one.add(log.submission(old, size))
        assert answer == Answer(409, "8\n", "text/x.tlog.size")
        assert known_size(answer.body.encode()) == 8
    assert [known_size(body) for body in (b"50\n", b"0\n", b"50", b"050\n", b"", b"-1\n", b"5\n5\n")] == [50, 0, None, None, None, None, None]


@pytest.mark.parametrize(("body", "status"), [
    (Log(key=SigningKeyPair.from_hex("other.test/log", "44" * 32)).submission(0, 3), 404),
    (Log(key=SigningKeyPair.from_hex("lethe.test/log", "55" * 32)).submission(0, 3), 403),
    (Log().submission(0, 3).replace(b"\n3\n", b"\n4\n"), 403),
    (Log().submission(0, 3).replace(b"old 0", b"old 4"), 400),
    (Log().submission(0, 3).replace(b"old 0\n", b"old 0\n" + base64.b64encode(bytes(32)) + b"\n"), 422),
    (b"", 400), (b"old 0", 400), (b"old 00\n\n", 400), (b"old -1\n\n", 400), (b"\xff\xfe", 400), (b"old 0\n\nx\n", 400),
    (Log().submission(0, 3).replace(b"old 0\n", b"old 0\nAAAA\n"), 400),
    (Log().submission(0, 3).replace(b"old 0\n", b"old 0\n" + 64 * (base64.b64encode(bytes(32)) + b"\n")), 400),
    (Log().submission(0, 3)[:-1], 400), (Log().submission(0, 3).replace(b"\n3\n", b"\n3\nextension\n"), 400),
])  # fmt: skip
def test_what_is_not_a_good_submission_is_refused_with_the_status_of_the_protocol(path: Path, body: bytes, status: int):
    one = witness(path)
    assert one.add(body).status == status
    assert json.loads(path.read_text())["logs"] == {}


def test_a_forked_log_gets_no_line_and_the_witness_keeps_the_history_it_knows(path: Path):
    one, log, fork = witness(path), Log(), Log(at=5)
    assert one.add(log.submission(0, 8)).status == 200
    before = path.read_bytes()
    assert one.add(fork.submission(8, 8)) == Answer(409, "another root was cosigned for this size\n")
    assert one.add(fork.submission(8, 12)).status == 422
    assert path.read_bytes() == before
    assert one.add(log.submission(8, 12)).status == 200


def test_a_size_of_zero_is_the_empty_tree_and_no_other(path: Path):
    one = witness(path)
    empty = Checkpoint(KEY.name, 0, tree.EMPTY_ROOT)
    assert one.add(Submission(0, (), Checkpoint(KEY.name, 0, tree.EMPTY_ROOT, (KEY.line(empty.text),))).body).status == 200
    bad = Checkpoint(KEY.name, 0, bytes(32))
    assert one.add(Submission(0, (), Checkpoint(KEY.name, 0, bytes(32), (KEY.line(bad.text),))).body).status in {409, 422}


def test_of_two_keys_of_a_log_either_may_sign_and_a_bad_line_of_either_spoils_the_note(path: Path):
    new = SigningKeyPair.from_hex("lethe.test/log", "66" * 32)
    one = witness(path, KEY.public, new.public)
    log = Log(key=new)
    assert one.add(log.submission(0, 3)).status == 200
    head = log.head(8)
    proof = tuple(tree.fold(*ends, log.nodes) for ends in tree.consistency_ranges(3, 8))
    spoiled = Checkpoint(head.origin, head.size, head.root, (*head.lines, KEY.line("another text")))
    assert one.add(Submission(3, proof, spoiled).body).status == 403
    unknown = Checkpoint(head.origin, head.size, head.root, (*head.lines, SigningKeyPair.from_hex("lethe.test/log", "77" * 32).line(head.text)))
    assert one.add(Submission(3, proof, unknown).body).status == 200


def test_what_it_cosigned_is_on_the_disk_before_it_answers_and_known_after_a_restart(path: Path):
    one, log = witness(path), Log()
    assert one.add(log.submission(0, 8)).status == 200
    assert json.loads(path.read_text())["logs"]["lethe.test/log"]["size"] == 8
    one = restarted(one, path)
    assert one.add(log.submission(0, 3)).body == "8\n"
    assert one.add(Log(at=5).submission(8, 12)).status == 422


def test_where_the_state_cannot_be_written_there_is_no_line(path: Path, monkeypatch: pytest.MonkeyPatch):
    one, log = witness(path), Log()

    def full(_: int) -> None:
        raise OSError(28, "no space left on device")

    monkeypatch.setattr("control.witness.os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        one.add(log.submission(0, 8))
    monkeypatch.undo()
    assert json.loads(path.read_text())["logs"] == {}
    assert one.add(log.submission(0, 8)).status == 200


def test_a_witness_without_its_state_with_a_broken_one_or_beside_another_does_not_start(path: Path, tmp_path: Path):
    with pytest.raises(InvalidInput, match="is not there"):
        StateFile(tmp_path / "none.json")
    with pytest.raises(InvalidInput, match="is there already"):
        StateFile.begin(path)
    held = StateFile(path)
    with pytest.raises(InvalidInput, match="another witness holds"):
        StateFile(path)
    held.close()
    for text in ("", "{}", "[]", '{"form": 2, "logs": {}}', '{"form": 1, "logs": {"a": {"size": "x"}}}'):
        path.write_text(text)
        with pytest.raises(InvalidInput):
            StateFile(path)
        path.with_name(f"{path.name}.lock").unlink()


def test_of_many_that_come_at_once_each_finds_the_state_that_the_one_before_left(path: Path):
    one, log = witness(path), Log()
    answers: list[tuple[int, int]] = []
    threads = [threading.Thread(target=lambda size=size: answers.append((size, one.add(log.submission(0, size)).status))) for size in range(1, 30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cosigned = [size for size, status in answers if status == 200]
    assert len(cosigned) == 1
    assert json.loads(path.read_text())["logs"]["lethe.test/log"]["size"] == cosigned[0]


def test_over_http_it_has_one_route_and_bounds_what_it_reads(path: Path):
    with TestClient(create_app(witness(path))) as http:
        answer = http.post("/add-checkpoint", content=Log().submission(0, 8))
        assert (answer.status_code, answer.text[:2]) == (200, "— ")
        again = http.post("/add-checkpoint", content=Log().submission(0, 8))
        assert (again.status_code, again.text, again.headers["content-type"]) == (409, "8\n", "text/x.tlog.size")
        assert http.get("/add-checkpoint").status_code == 405
        assert http.get("/").status_code == 404
        assert http.post("/add-checkpoint", content=b"x" * 200_000).status_code == 413
