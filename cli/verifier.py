"""Check an audit report offline: `lethe verify report.json --log-key log.vkey`, or `python verifier.py` with the same arguments.

One file; beside the standard library it needs `cryptography` alone. It believes nothing that the report says of itself: every line it prints is
recomputed from the bytes, the key that you bring, and what else you give it.

Exit status: 0 all checks hold; 1 something is invalid; 2 it cannot be decided (an unknown version, or a key, witness or proof that is missing).

Sources: DSSE v1.0.2, in-toto Statement v1, RFC 8785 (canonical JSON), RFC 6962 and RFC 9162 (tree), C2SP signed-note, tlog-checkpoint, tlog-proof
and tlog-cosignature.
"""

import argparse
import base64
import binascii
import hashlib
import json
import os
import re
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import NormalDist
from typing import Any, NoReturn

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

HOLDS, INVALID, UNDECIDED = 0, 1, 2
REPORT_BYTES = 16 * 1024 * 1024
SMALL_BYTES = 1024 * 1024
CHUNK_BYTES = 1024 * 1024
DEPTH = 64
SAFE_INTEGER = 2**53 - 1
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://lethe.dev/verification/v1"
VERSIONS = frozenset({"1"})
PROOF_HEAD = "c2sp.org/tlog-proof@v1"
NOTE_KEY, WITNESS_KEY = 1, 4
MEMBERS = frozenset(
    {
        "report_version", "revision", "supersedes", "request", "tenant_ref", "verdict", "sentence", "failure_codes", "clock", "identity", "decision",
        "scope", "processing", "verification", "artifacts", "recipients", "retention", "figures", "not_tested", "limitations", "residual_risk", "chain",
    }
)  # fmt: skip
LATER_MEMBERS = frozenset({"ledger", "next_review"})  # reports from before have none of them
ROUNDING = 1.01e-4  # numbers are printed with four digits: a difference of two is off by at most this
WIDEST = 0.15
LEAST_RECORDS = 16
ORDER = ("failed", "inconclusive", "passed")
INFINITE = float("inf")


class Wrong(Exception):
    """A check that does not hold."""


class Unknown(Exception):
    """A check that cannot be made with what is here."""


class NotReached(Exception):
    """A check that needs what an earlier one did not find."""


# --- strict reading --------------------------------------------------------------------------------------------------------------------


def read(path: Path, limit: int, what: str) -> bytes:
    """Return the bytes of a regular file of at most `limit` bytes; no more than that is ever read."""
    try:
        with path.open("rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise Wrong(f"{what} is not a regular file")
            raw = file.read(limit + 1)
    except OSError as error:
        raise Unknown(f"{what} cannot be read ({error.strerror or type(error).__name__})") from error
    if len(raw) > limit:
        raise Wrong(f"{what} has more than {limit} bytes")
    return raw


def parse(raw: bytes, what: str) -> Any:
    """Return strict JSON: UTF-8, no key twice, no NaN, no integer beyond 53 bits, no deep nesting."""

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(found)
        if len(made) != len(found):
            raise Wrong(f"{what} holds a key twice")
        return made

    def integer(text: str) -> int:
        if len(text) > 17 or abs(int(text)) > SAFE_INTEGER:
            raise Wrong(f"{what} holds an integer of more than 53 bits")
        return int(text)

    def constant(text: str) -> NoReturn:
        raise Wrong(f"{what} holds {text}")

    try:
        made = json.loads(raw.decode("utf-8", "strict"), object_pairs_hook=pairs, parse_int=integer, parse_constant=constant)
        _bounded(made, what, DEPTH)
    except RecursionError as error:
        raise Wrong(f"{what} is nested too deeply") from error
    except ValueError as error:
        raise Wrong(f"{what} is not JSON in UTF-8") from error
    return made


def _bounded(value: Any, what: str, left: int) -> None:
    if left == 0:
        raise Wrong(f"{what} is nested too deeply")
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _bounded(part, what, left - 1)


def canonical(value: Any) -> bytes:
    """Return the canonical JSON of a value (RFC 8785)."""
    return "".join(_canonical(value)).encode("utf-8", "strict")


def _canonical(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        names: list[str] = sorted(value, key=lambda name: name.encode("utf-16-be", "strict"))
        yield "{"
        for number, name in enumerate(names):
            yield ("," if number else "") + json.dumps(name, ensure_ascii=False) + ":"
            yield from _canonical(value[name])
        yield "}"
    elif isinstance(value, list):
        yield "["
        for number, part in enumerate(value):
            yield "," if number else ""
            yield from _canonical(part)
        yield "]"
    elif isinstance(value, float):
        yield ecmascript(value)
    else:
        yield json.dumps(value, ensure_ascii=False)


def ecmascript(number: float) -> str:
    """Return a finite number as ECMAScript writes it (ECMA-262, Number::toString)."""
    if number != number or abs(number) == INFINITE:  # noqa: PLR0124  NaN is the one that differs from itself
        raise Wrong("a number is not finite")
    if number == 0:
        return "0"
    sign = "-" if number < 0 else ""
    mantissa, _, exponent = repr(abs(number)).partition("e")
    whole, _, part = mantissa.partition(".")
    digits = (whole + part).lstrip("0")
    point = len(whole) + int(exponent or 0) - (len(whole + part) - len(digits))
    digits = digits.rstrip("0")
    if len(digits) <= point <= 21:
        return sign + digits + "0" * (point - len(digits))
    if 0 < point <= 21:
        return f"{sign}{digits[:point]}.{digits[point:]}"
    if -6 < point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    tail = f".{digits[1:]}" if len(digits) > 1 else ""
    return f"{sign}{digits[0]}{tail}e{'+' if point > 0 else '-'}{abs(point - 1)}"


def plain(text: Any, what: str) -> bytes:
    """Return the bytes of standard base64 in its one form: nothing else decodes to the same."""
    try:
        raw = base64.b64decode(text, validate=True) if isinstance(text, str) else None
    except (binascii.Error, ValueError):
        raw = None
    if raw is None or base64.b64encode(raw).decode() != text:
        raise Wrong(f"{what} is not base64")
    return raw


def only(value: Any, names: Iterable[str], what: str) -> dict[str, Any]:
    """Return an object that has exactly these members."""
    if not isinstance(value, dict) or set(value) != set(names):
        raise Wrong(f"{what} does not have exactly the members {', '.join(sorted(names))}")
    return value


# --- keys, notes and the tree ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Key:
    """A verifier key of one line, name+hash+base64; `revoked` is the leaf of the log by which it was revoked."""

    name: str
    public: bytes
    kind: int
    revoked: int | None = None

    @property
    def hash(self) -> bytes:
        """Four bytes that stand for the key in a signature line."""
        return hashlib.sha256(self.name.encode() + b"\n" + bytes([self.kind]) + self.public).digest()[:4]

    def holds(self, signature: bytes, message: bytes) -> bool:
        """Say whether the signature is this key's over `message`."""
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(signature, message)
        except (InvalidSignature, ValueError):
            return False
        return True


def keys_of(text: str, kind: int, what: str) -> list[Key]:
    """Return the keys of a file or argument, one a line; a revoked one is followed by a blank and `revoked-at-leaf=N`."""
    made: list[Key] = []
    for line in text.split("\n"):
        if not line.strip() or line.startswith("#"):
            continue
        shown, _, end = line.strip().partition(" ")
        found = re.fullmatch(r"revoked-at-leaf=(0|[1-9][0-9]{0,15})", end, re.ASCII)
        if end and not found:
            raise Unknown(f"{what} says of a key what this verifier does not know")
        parts = shown.split("+", 2)
        try:
            raw = base64.b64decode(parts[2], validate=True)
            key = Key(parts[0], raw[1:], raw[0], int(found[1]) if found else None)
        except (IndexError, ValueError) as error:
            raise Unknown(f"{what} is not a verifier key (name+hash+base64)") from error
        if key.kind != kind or len(key.public) != 32 or parts[1] != key.hash.hex():
            raise Unknown(f"{what} is not an Ed25519 key of this use")
        made.append(key)
    if not made:
        raise Unknown(f"{what} holds no key")
    return made


@dataclass(frozen=True)
class Note:
    """A checkpoint with its signature lines as (name, bytes)."""

    origin: str
    size: int
    root: bytes
    text: str
    lines: tuple[tuple[str, bytes], ...]

    def signed_by(self, keys: Sequence[Key]) -> str | None:
        """Return the name of the key whose signature holds, None where no line is of any of them. A bad line of a known key is Wrong."""
        found = None
        for name, raw in self.lines:
            for key in keys:
                if key.name != name or raw[:4] != key.hash:
                    continue
                at = 0 if key.kind == NOTE_KEY else int.from_bytes(raw[4:12], "big")
                time = b"" if key.kind == NOTE_KEY else f"cosignature/v1\ntime {at}\n".encode()
                if not key.holds(raw[4:] if key.kind == NOTE_KEY else raw[12:], time + self.text.encode()) or at >= 1 << 63:
                    raise Wrong(f"the signature of {name} on the checkpoint is not its own")
                found = name
        return found


def note_of(text: str, what: str) -> Note:
    """Return the checkpoint of a signed note."""
    body, gap, rest = text.partition("\n\n")
    head, lines = body.split("\n"), rest.split("\n")
    if not gap or len(head) != 3 or not head[0] or not re.fullmatch(r"0|[1-9][0-9]{0,15}", head[1], re.ASCII) or lines.pop() != "" or not lines:
        raise Wrong(f"{what} is not a checkpoint")
    found: list[tuple[str, bytes]] = []
    for line in lines:
        parts = line.split(" ")
        if len(parts) != 3 or parts[0] != "—" or len(lines) > 64:
            raise Wrong(f"{what} has a line that is no signature")
        found.append((parts[1], plain(parts[2], f"a signature of {what}")))
    root = plain(head[2], f"the root of {what}")
    if len(root) != 32:
        raise Wrong(f"the root of {what} does not have 32 bytes")
    return Note(head[0], int(head[1]), root, body + "\n", tuple(found))


def leaf_hash(data: bytes) -> bytes:
    """Return the hash of a leaf."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of an inner node."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def included(leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> bool:
    """Say whether the path leads from leaf `index` to the root of `size` leaves."""
    if not 0 <= index < size:
        return False
    at, last = index, size - 1
    for other in path:
        if last == 0:
            return False
        if at & 1 or at == last:
            leaf = node_hash(other, leaf)
            while at and not at & 1:
                at, last = at >> 1, last >> 1
        else:
            leaf = node_hash(leaf, other)
        at, last = at >> 1, last >> 1
    return last == 0 and leaf == root


def consistent(first: int, second: int, path: Sequence[bytes], old_root: bytes, new_root: bytes) -> bool:
    """Say whether the tree of `second` leaves begins with the tree of `first`."""
    if first == second:
        return not path and old_root == new_root
    if first == 0:
        return not path and old_root == hashlib.sha256(b"").digest()
    if first > second or not path:
        return False
    steps = [old_root, *path] if first & (first - 1) == 0 else list(path)
    at, last = first - 1, second - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    old = new = steps[0]
    for other in steps[1:]:
        if last == 0:
            return False
        if at & 1 or at == last:
            old, new = node_hash(other, old), node_hash(other, new)
            while at and not at & 1:
                at, last = at >> 1, last >> 1
        else:
            new = node_hash(new, other)
        at, last = at >> 1, last >> 1
    return last == 0 and old == old_root and new == new_root


# --- the checks ------------------------------------------------------------------------------------------------------------------------


@dataclass
class Given:
    """What the caller brings."""

    report: Path
    log_key: Path | None = None
    model: Path | None = None
    previous: Path | None = None
    consistency: Path | None = None
    witness: str | None = None
    plan: Path | None = None


@dataclass(frozen=True)
class Proof:
    """What the tlog-proof holds: the opening of the report's leaf, openings with paths of others by number, and the checkpoint."""

    index: int
    path: tuple[bytes, ...]
    leaf: dict[str, Any]
    others: dict[int, tuple[dict[str, Any], tuple[bytes, ...]]]
    note: Note


@dataclass
class Case:
    """One report under examination; each check fills in what the next ones need."""

    given: Given
    raw: bytes = b""
    read: bool = False
    envelope: dict[str, Any] = field(default_factory=dict[str, Any])
    proof_text: str = ""
    payload: bytes = b""
    keys: list[Key] = field(default_factory=list[Key])
    signers: list[Key] = field(default_factory=list[Key])
    witnessed: bool = False
    statement: dict[str, Any] | None = None
    proof: Proof | None = None

    @property
    def predicate(self) -> dict[str, Any]:
        """The statement's predicate."""
        if self.statement is None:
            raise NotReached
        return self.statement["predicate"]

    @property
    def proved(self) -> Proof:
        """The proof, once it was read."""
        if self.proof is None:
            raise NotReached
        return self.proof


def check_size(case: Case) -> str:
    """Read the file, but not more of it than a report may have."""
    case.raw = read(case.given.report, REPORT_BYTES, "the report")
    case.read = True
    return f"{len(case.raw)} bytes"


def check_json(case: Case) -> str:
    """The file is strict JSON with an envelope and a proof, in its canonical form; so is the envelope's payload."""
    if not case.raw:
        raise Wrong("the report is empty") if case.read else NotReached
    document = parse(case.raw, "the report")
    if canonical(document) != case.raw.removesuffix(b"\n"):
        raise Wrong("the report is not in its canonical form")
    only(document, ("envelope", "tlog_proof"), "the report")
    envelope = only(document["envelope"], ("payloadType", "payload", "signatures"), "the envelope")
    if not isinstance(document["tlog_proof"], str) or not isinstance(envelope["signatures"], list):
        raise Wrong("the report has a member of the wrong type")
    case.envelope, case.proof_text = envelope, document["tlog_proof"]
    case.payload = plain(envelope["payload"], "the payload")
    return "no key twice, no NaN, canonical"


def check_version(case: Case) -> str:
    """The statement is of a kind and version that this verifier knows."""
    if not case.payload:
        raise NotReached
    statement = parse(case.payload, "the payload")
    if not isinstance(statement, dict) or not isinstance(statement.get("predicate"), dict):
        raise Wrong("the payload is no in-toto statement")
    version = statement["predicate"].get("report_version")
    if statement.get("predicateType") != PREDICATE_TYPE or version not in VERSIONS:
        raise Unknown(f"this verifier does not know report version {str(version)[:20]!r}")
    only(statement, ("_type", "subject", "predicateType", "predicate"), "the statement")
    if statement["_type"] != STATEMENT_TYPE:
        raise Wrong("the payload is no in-toto statement v1")
    only(statement["predicate"], MEMBERS | LATER_MEMBERS.intersection(statement["predicate"]), "the predicate")
    case.statement = statement
    return f"report version {version}, revision {statement['predicate']['revision']}"


def check_canonical(case: Case) -> str:
    """The payload is in canonical form, and every number in it but those of a plan is an integer or a decimal string."""
    predicate = case.predicate
    if canonical(case.statement) != case.payload:
        raise Wrong("the payload is not in its canonical form")
    for place, _ in fractions(predicate, ""):
        if not re.fullmatch(r"/verification/[0-9]+/plan/body(/.*)?", place):
            raise Wrong(f"the number at {place[:80]} is not a decimal string")
    return "RFC 8785; metrics are decimal strings"


def fractions(value: Any, place: str) -> Iterator[tuple[str, float]]:
    """Yield place and value of every number with a fraction."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield from fractions(part, f"{place}/{name}")
    elif isinstance(value, list):
        for number, part in enumerate(value):
            yield from fractions(part, f"{place}/{number}")
    elif isinstance(value, float):
        yield place, value


def check_signature(case: Case) -> str:
    """The envelope is signed by the key that the caller brought."""
    if case.given.log_key is None:
        raise Unknown("give the log's key: --log-key FILE")
    case.keys = keys_of(read(case.given.log_key, SMALL_BYTES, "the log key").decode("utf-8", "replace"), NOTE_KEY, "the log key")
    if not case.payload:
        raise NotReached
    if case.envelope["payloadType"] != PAYLOAD_TYPE:
        raise Wrong("the envelope holds another type of payload")
    known = {f"{key.name}+{key.hash.hex()}": key for key in case.keys}
    message = b"DSSEv1 %d %s %d %s" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(case.payload), case.payload)
    for entry in case.envelope["signatures"]:
        only(entry, ("keyid", "sig"), "a signature")
        signature, key = plain(entry["sig"], "a signature"), known.get(entry["keyid"])
        if key is not None and not key.holds(signature, message):
            raise Wrong("the signature is not the key's over this payload")
        case.signers += [key] if key is not None else []
    if not case.signers:
        raise Wrong("no signature is of the key that you gave")
    return "Ed25519 by " + ", ".join(f"{key.name}+{key.hash.hex()}" for key in case.signers)


def check_leaf(case: Case) -> str:
    """The proof is well formed, and the leaf that it opens commits to this payload."""
    predicate = case.predicate
    case.proof = proof_of(case.proof_text)
    leaf = case.proof.leaf
    facts = leaf["body"]
    if leaf["type"] != "report.stored" or facts.get("digest") != hashlib.sha256(case.payload).hexdigest():
        raise Wrong("the leaf commits to another report")
    if facts.get("revision") != predicate["revision"]:
        raise Wrong("the leaf commits to another revision")
    return f"leaf {case.proof.index} commits to sha256 {facts['digest'][:16]}"


def proof_of(text: str) -> Proof:
    """Return what a tlog-proof holds."""
    head, gap, note = text.partition("\n\n")
    lines = head.split("\n")
    if not gap or len(lines) < 3 or lines[0] != PROOF_HEAD or not lines[1].startswith("extra ") or not lines[2].startswith("index "):
        raise Wrong("the proof is not a tlog-proof of version 1")
    raw = plain(lines[1][6:], "the proof's extra data")
    extra = only(parse(raw, "the proof's extra data"), ("leaf", "leaves"), "the proof's extra data")
    if canonical(extra) != raw or not isinstance(extra["leaves"], list):
        raise Wrong("the proof's extra data is not in its canonical form")
    if not re.fullmatch(r"0|[1-9][0-9]{0,15}", lines[2][6:], re.ASCII) or len(lines) > 70:
        raise Wrong("the proof has no index, or too long a path")
    others: dict[int, tuple[dict[str, Any], tuple[bytes, ...]]] = {}
    for entry in extra["leaves"]:
        only(entry, ("index", "type", "body", "salt", "path"), "an opened leaf")
        index, path = entry["index"], entry["path"]
        if type(index) is not int or index in others or not isinstance(path, list) or len(path) > 64:
            raise Wrong("an opened leaf has no number of its own, or no path")
        others[index] = ({name: entry[name] for name in ("type", "body", "salt")}, tuple(plain(node, "a path") for node in path))
    only(extra["leaf"], ("type", "body", "salt"), "the report's leaf")
    path = tuple(plain(line, "the path") for line in lines[3:])
    return Proof(
        int(lines[2][6:]),
        path,
        _opened(extra["leaf"]),
        {at: (_opened(leaf), nodes) for at, (leaf, nodes) in others.items()},
        note_of(note, "the proof"),
    )


def _opened(leaf: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(leaf["body"], dict) or not isinstance(leaf["type"], str) or not re.fullmatch(r"[0-9a-f]{32}", str(leaf["salt"]), re.ASCII):
        raise Wrong("an opened leaf has a member of the wrong type")
    return leaf


def commitment(leaf: Mapping[str, Any]) -> bytes:
    """Return what the log holds of an event."""
    return hashlib.sha256(canonical({name: leaf[name] for name in ("type", "body", "salt")})).digest()


def check_inclusion(case: Case) -> str:
    """The leaf, and every other one that is opened, is in the tree of the checkpoint."""
    proof = case.proved
    note = proof.note
    for index, (leaf, path) in [(proof.index, (proof.leaf, proof.path)), *proof.others.items()]:
        if any(len(node) != 32 for node in path) or not included(leaf_hash(commitment(leaf)), index, note.size, path, note.root):
            raise Wrong(f"leaf {index} is not in the tree of the checkpoint")
    return f"{1 + len(proof.others)} leaves of {note.size}"


def check_checkpoint(case: Case) -> str:
    """The checkpoint is signed by the log's key, under the log's name."""
    note = case.proved.note
    if not case.keys:
        raise NotReached
    name = note.signed_by([key for key in case.keys if key.name == note.origin])
    if name is None:
        raise Wrong(f"the checkpoint of {note.origin[:80]} is not signed by the key that you gave")
    return f"{name}, {note.size} leaves"


def check_witness(case: Case) -> str:
    """Where a witness is asked for, it has signed the checkpoint too."""
    if case.given.witness is None:
        return "not asked for (--witness)"
    note = case.proved.note
    path = Path(case.given.witness)
    text = case.given.witness if "+" in case.given.witness else read(path, SMALL_BYTES, "the witness key").decode("utf-8", "replace")
    name = note.signed_by(keys_of(text, WITNESS_KEY, "the witness key"))
    if name is None:
        raise Unknown("the witness has not signed this checkpoint")
    case.witnessed = True
    return f"signed by {name}"


def check_revoked(case: Case) -> str:
    """What a key that was revoked later has signed was in the log before that: what counts is the time of inclusion, vouched for by another key."""
    proof = case.proved
    if not case.signers:
        raise NotReached
    of_head = [key for key in case.keys if key.name == proof.note.origin and proof.note.signed_by([key]) is not None]
    statement, head = revoked_from(case.signers), revoked_from(of_head)
    if proof.index >= statement or proof.note.size > head:
        leaf = int(min(statement, head))
        raise Wrong(f"the key was revoked by leaf {leaf}, and this is leaf {proof.index} of {proof.note.size}: it was not the key's to sign any more")
    if head < INFINITE and not case.witnessed:
        raise Unknown("only a key that was revoked has signed the checkpoint: fetch the report again, or name a witness that has signed it")
    return "no signature that counts is of a revoked key" if statement == head == INFINITE else f"leaf {proof.index} came before the revocation"


def revoked_from(keys: Sequence[Key]) -> float:
    """Return from which leaf on none of the keys may sign: infinite where one was never revoked."""
    return max((INFINITE if key.revoked is None else key.revoked for key in keys), default=INFINITE)


def check_previous(case: Case) -> str:
    """The log still begins with the checkpoint that the caller kept from before."""
    if case.given.previous is None:
        return "not asked for (--previous)"
    note = case.proved.note
    old = note_of(read(case.given.previous, SMALL_BYTES, "the previous checkpoint").decode("utf-8", "strict"), "the previous checkpoint")
    if old.origin != note.origin:
        raise Wrong("the previous checkpoint is of another log")
    if not case.keys:
        raise NotReached
    if old.signed_by(case.keys) is None:
        raise Wrong("the previous checkpoint is not signed by the key that you gave")
    if old.size > note.size:
        raise Wrong(f"the checkpoint has {note.size} leaves, the previous one {old.size}")
    path: list[bytes] = []
    if 0 < old.size < note.size:
        if case.given.consistency is None:
            raise Unknown(f"give the answer of GET /v1/audit/consistency?from={old.size}&to={note.size} as --consistency FILE")
        found = parse(read(case.given.consistency, SMALL_BYTES, "the consistency proof"), "the consistency proof")
        if not isinstance(found, dict) or not isinstance(found.get("hashes"), list) or (found.get("from"), found.get("to")) != (old.size, note.size):
            raise Wrong("the consistency proof is of other sizes")
        path = [plain(node, "the consistency proof") for node in found["hashes"]]
    if not consistent(old.size, note.size, path, old.root, note.root):
        raise Wrong("the log does not begin with the previous checkpoint: it was rewritten")
    return f"begins with the {old.size} leaves of before"


def check_plan(case: Case) -> str:
    """Every run was judged by a plan whose digest is in the log before the run began."""
    runs = case.predicate["verification"]
    index = case.proved.index
    if case.given.plan is not None:
        own = hashlib.sha256(canonical(parse(read(case.given.plan, REPORT_BYTES, "the plan"), "the plan"))).hexdigest()
        if own not in {run["plan"]["digest"] for run in runs}:
            raise Wrong("no run of the report was judged by the plan that you gave")
    for run in runs:
        digest = run["plan"]["digest"]
        if hashlib.sha256(canonical(run["plan"]["body"])).hexdigest() != digest:
            raise Wrong("a plan in the report is not the one whose digest it names")
        before, start = run["plan"]["leaf_index"], run["run"]["leaf_index"]
        if before is None or start is None:
            raise Unknown("the report does not name the leaves of plan and run")
        if not before < start < index:
            raise Wrong(f"the plan is leaf {before}, the run leaf {start}, the report leaf {index}: the plan did not come first")
        opened = case.proved.others
        if before not in opened or start not in opened:
            raise Unknown("the log no longer opens the leaves of plan and run")
        plan, began = opened[before][0], opened[start][0]
        if plan["type"] != "plan.frozen" or plan["body"].get("digest") != digest:
            raise Wrong(f"leaf {before} does not commit to the plan")
        if began["type"] != "run.started" or began["body"].get("plan") != digest:
            raise Wrong(f"leaf {start} is not the start of a run under the plan")
    return f"{len(runs)} plan(s), each before its run"


def check_subject(case: Case) -> str:
    """What the statement is about is what it says was published, and that is not the version of before."""
    if case.statement is None:
        raise NotReached
    named = {(entry["name"], entry["digest"]["sha256"]) for entry in case.statement["subject"]}
    published: set[tuple[str, str]] = set()
    for part in case.predicate["artifacts"]:
        new, base = part["published"], part["base"]
        if new is None:
            continue
        published.add((f"{part['model']}@{new['version']}", new["manifest_digest"] or ""))
        changed = any(run["model"] == part["model"] and run["state"] == "succeeded" for run in case.predicate["processing"])
        if changed and base is not None and base["version"] != new["version"] and base["manifest_digest"] == new["manifest_digest"]:
            raise Wrong("the published version has the digest of the version before")
    if named != published:
        raise Wrong("the statement is about other versions than those it says were published")
    return ", ".join(sorted(name for name, _ in named)) or "no version"


def check_weights(case: Case) -> str:
    """The files that the caller has are those of a version that the report is about."""
    if case.given.model is None:
        return "not asked for (--model)"
    if case.statement is None:
        raise NotReached
    folder = case.given.model
    raw = read(folder / "manifest.json", SMALL_BYTES, "manifest.json")
    digest = hashlib.sha256(raw).hexdigest()
    about = [entry["name"] for entry in case.statement["subject"] if entry["digest"]["sha256"] == digest]
    if not about:
        raise Wrong("the model's manifest is not of a version that the report is about")
    files = {entry["path"]: entry for entry in parse(raw, "manifest.json")["files"]}
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()} - {"manifest.json"}
    if there != set(files):
        raise Wrong(f"files that are missing or too many: {', '.join(sorted(there ^ set(files)))[:200]}")
    for name, entry in files.items():
        if hash_of(folder / name) != entry["digest"].removeprefix("sha256:"):
            raise Wrong(f"{name} has other bytes than the report is about")
    return f"{about[0]}: {len(files)} file(s) re-hashed"


def hash_of(path: Path) -> str:
    """Return the SHA-256 of a regular file, read piece by piece; a link is not followed."""
    digest = hashlib.sha256()
    if path.is_symlink() or not path.is_file():
        raise Wrong(f"{path.name} is not a regular file")
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


# --- the verdict, recomputed -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Span:
    """One printed number with its interval, and the band it is held against."""

    value: float
    low: float
    high: float
    level: float
    band_low: float
    band_high: float
    binding: bool
    besides: "Span | None" = None  # a number that must lie beyond the band as well
    decides: bool = True

    @property
    def beyond(self) -> tuple[float, float]:
        """The least and the greatest p-value, over what rounding may have hidden, of the test that the truth lies within the band."""
        if not self.decides:
            return 1.0, 1.0
        least, most = self._alone
        other = self.besides.beyond if self.besides is not None else (0.0, 0.0)
        return max(least, other[0]), max(most, other[1])

    @property
    def _alone(self) -> tuple[float, float]:
        above = self.value > self.band_high
        distance, half = (self.value - self.band_high, self.value - self.low) if above else (self.band_low - self.value, self.high - self.value)
        if distance <= -ROUNDING:
            return 1.0, 1.0
        quantile = NormalDist().inv_cdf(0.5 + self.level / 2)
        least = 0.0 if half <= ROUNDING else NormalDist().cdf(-(distance + ROUNDING) * quantile / (half - ROUNDING))
        most = 1.0 if distance <= ROUNDING else NormalDist().cdf(-(distance - ROUNDING) * quantile / (max(half, 0.0) + ROUNDING))
        return least, most

    @property
    def inside(self) -> bool:
        """Whether the interval may lie in the band."""
        return self.band_low - ROUNDING <= self.low and self.high <= self.band_high + ROUNDING


@dataclass
class Gate:
    """One gating reading of a plan."""

    name: str
    forgetting: bool
    printed: str | None
    spans: list[Span] = field(default_factory=list[Span])
    missing: bool = False
    sensitive: bool = True
    few: bool = False
    may_be_outside: bool = False
    is_outside: bool = False

    @property
    def may_be_inside(self) -> bool:
        """Whether the readings allow the state `inside`."""
        return not self.missing and not self.few and not self.is_outside and all(span.inside for span in self.spans if span.binding)


def check_verdict(case: Case) -> str:
    """Every verdict follows from the readings, bands and limits that are printed, as far as printed digits decide; the report's is the weakest."""
    predicate = case.predicate
    processing = {run["job"]: run for run in predicate["processing"]}
    last: dict[str, tuple[int, dict[str, Any]]] = {}
    for run in predicate["verification"]:
        how = processing.get(run["job"])
        if how is None:
            raise Wrong("a verdict is of a run that the report does not describe")
        if run["verdict"] is not None:
            if int(run["plan"]["body"].get("looks", 1)) not in range(1, how["rung"] + 1):
                raise Wrong("a plan counts more looks at the records than there were attempts")
            gates = gates_of(run)
            allowed = allowed_verdicts(gates, run, str(how["guarantee"]))
            if run["verdict"] not in allowed:
                raise Wrong(f"the readings do not give the verdict {str(run['verdict'])[:20]!r}")
        if str(how["model"]) not in last or how["rung"] >= last[str(how["model"])][0]:
            last[str(how["model"])] = (how["rung"], run)
    deciding = [run for _, run in last.values() if run["verdict"] is not None]
    worst = min(deciding, key=lambda run: ORDER.index(run["verdict"]), default=None)
    if (worst["verdict"] if worst else None) != predicate["verdict"]:
        raise Wrong("the report's verdict is not the weakest of its runs")
    if worst is not None and predicate["sentence"] not in {run["sentence"] for run in deciding if run["verdict"] == worst["verdict"]}:
        raise Wrong("the report's sentence is not that of its verdict")
    if predicate["failure_codes"] != sorted({code for run in deciding for code in run["failure_codes"]}):
        raise Wrong("the report's failure codes are not those of its runs")
    return f"{predicate['verdict'] or 'none'}, from {len(deciding)} run(s)"


def gates_of(run: Mapping[str, Any]) -> list[Gate]:
    """Return the gates of a run's plan with what was read for them."""
    rows = {(kind, row["name"], row["split"]): row for kind, part in (("metric", "metrics"), ("attack", "attacks")) for row in run[part]}
    plan = run["plan"]["body"]
    told = plan.get("sensitivity") == "interval"  # plans of before went by the value alone
    gates = [gate_of(entry, rows, told=told) for entry in plan["readings"] if entry.get("gate")]
    if plan.get("least_records"):  # plans of before let few records decide
        for gate in gates:
            gate.spans = [replace(span, decides=not (span.binding and gate.few)) for span in gate.spans]
    limits = plan.get("utility")
    if limits is not None:
        gates.append(utility_of(limits, rows.get(("metric", "accuracy", "retain_test"))))
    alpha = float(plan.get("alpha", 0.05)) / int(plan.get("looks", 1))
    spans = [(gate, span) for gate in gates for span in gate.spans]
    for number, name in ((0, "may_be_outside"), (1, "is_outside")):
        for (gate, _), significant in zip(spans, holm([span.beyond[number] for _, span in spans], alpha), strict=True):
            if significant:
                setattr(gate, name, True)
    return gates


def holm(values: Sequence[float], alpha: float) -> list[bool]:
    """Return which p-values are significant after Holm's correction."""
    made = [False] * len(values)
    for rank, index in enumerate(sorted(range(len(values)), key=lambda index: values[index])):
        if values[index] > alpha / (len(values) - rank):
            break
        made[index] = True
    return made


def gate_of(entry: Mapping[str, Any], rows: Mapping[tuple[str, str, str], Mapping[str, Any]], *, told: bool = False) -> Gate:
    """Return a gate of the plan; a reading that is missing or null is missing."""
    split = str(entry.get("split") or "forget_train")
    row = rows.get((entry["kind"], entry["name"], split))
    gate = Gate(str(entry["name"]), split.startswith("forget"), row["state"] if row else None)
    if row is None or row["after"] is None or row["interval"][0] is None:
        gate.missing = True
        return gate
    epsilon, direction = float(entry.get("epsilon") or 0.0), str(entry.get("direction"))
    gate.few = row["n"] is not None and row["n"] < LEAST_RECORDS
    detail = row["detail"]
    if entry.get("absolute"):
        low, high = (-INFINITE, epsilon) if direction == "max" else (epsilon, INFINITE)
        gate.spans.append(span_of({"value": row["after"], "low": row["interval"][0], "high": row["interval"][1]}, row, low, high, binding=True))
        gate.sensitive = sees(row, low, high, told=told) if told or row["before"] is not None else True
        return gate
    if not gate.forgetting:
        for name in ("change", "paired") if direction != "max" and entry["kind"] == "metric" else ("change",):
            if name in detail:
                low, high = _band(epsilon, direction)
                gate.spans.append(span_of(detail[name], row, low, high, binding=False))
        gate.missing = not gate.spans
        return gate
    if row["reference"] is None:
        gate.missing = True
        return gate
    floor = (row["band"] or {}).get("floor")
    epsilon = max(epsilon, min(float(floor), WIDEST)) if floor is not None else epsilon
    if row["band"] is not None and abs(float(row["band"]["epsilon"]) - epsilon) > ROUNDING:
        raise Wrong(f"the band of {gate.name[:40]} is not the plan's")
    low, high = _band(epsilon, direction)
    reference = float(row["reference"])
    if "paired" in detail and "value" in detail["paired"]:
        gate.spans.append(span_of(detail["paired"], row, low, high, binding=True))
    else:
        printed = {"value": row["after"], "low": row["interval"][0], "high": row["interval"][1]}
        gate.spans.append(span_of(printed, row, reference + low, reference + high, binding=True))
    gate.sensitive = sees(row, reference + low, reference + high, told=told)
    return gate


def sees(row: Mapping[str, Any], low: float, high: float, *, told: bool) -> bool:
    """Say whether a test may have found the original beyond the band: its whole interval where that has to be told, else its value."""
    if row["before"] is None:
        return False
    before = row["detail"].get("before") if told else {"low": row["before"], "high": row["before"]}
    return before is not None and (float(before["high"]) <= low + ROUNDING or float(before["low"]) >= high - ROUNDING)


def _band(epsilon: float, direction: str) -> tuple[float, float]:
    return (-epsilon if direction in {"band", "min"} else -INFINITE), (epsilon if direction in {"band", "max"} else INFINITE)


def span_of(number: Mapping[str, Any], row: Mapping[str, Any], low: float, high: float, *, binding: bool) -> Span:
    """Return a printed number held against a band."""
    return Span(float(number["value"]), float(number["low"]), float(number["high"]), float(row["level"]), low, high, binding)


def utility_of(limits: Mapping[str, Any], row: Mapping[str, Any] | None) -> Gate:
    """Return the floor of the retained accuracy, in total and for each class."""
    gate = Gate("utility", forgetting=False, printed=None)
    change = (row or {}).get("detail", {}).get("change")
    if row is None or change is None or change.get("value") is None:
        gate.missing = True
        return gate
    paired = row["detail"].get("paired") if limits.get("besides") == "retrained" else None

    def lost(part: Mapping[str, Any], other: Mapping[str, Any] | None, floor: object) -> Span:
        low = -float(str(floor))
        beside = span_of(other, row, low, INFINITE, binding=False) if other is not None and other.get("value") is not None else None
        return replace(span_of(part, row, low, INFINITE, binding=False), besides=beside)

    gate.spans.append(lost(change, paired, limits["total"]))
    theirs = (paired or {}).get("per_class") or {}
    gate.spans += [lost(part, theirs.get(label), limits["worst_class"]) for label, part in (change.get("per_class") or {}).items()]
    return gate


def allowed_verdicts(gates: Sequence[Gate], run: Mapping[str, Any], guarantee: str) -> set[str]:
    """Return the verdicts that the readings allow; more than one only where a number lies within its rounding of an edge."""
    for gate in gates:
        if gate.printed == "inside" and gate.forgetting and not gate.may_be_inside:
            raise Wrong(f"the reading {gate.name[:40]} is not inside its band")
        if gate.printed == "outside" and not gate.may_be_outside:
            raise Wrong(f"the reading {gate.name[:40]} is not outside its band")
    exact = guarantee == "exact"
    deciding = [gate for gate in gates if not exact or gate.name == "utility"]
    if any(gate.is_outside for gate in deciding):
        return {"failed"}
    allowed = {"inconclusive"}
    told = {"integrity", "representation"} if guarantee == "approximate" else {"integrity"}  # what no printed number decides
    if any(gate.may_be_outside for gate in deciding) or told.intersection(run["failure_codes"]):
        allowed.add("failed")
    forgetting = [gate for gate in gates if gate.forgetting]
    if exact:
        passes = not any(gate.missing for gate in deciding)
    else:
        settled = all(gate.may_be_inside for gate in forgetting) and not any(gate.missing for gate in deciding)
        power = run["plan"]["body"].get("power") or {}
        passes = settled and any(gate.sensitive for gate in forgetting) and not (isinstance(power, dict) and power.get("cannot_pass"))
    return allowed | ({"passed"} if passes else set())


# --- the command -----------------------------------------------------------------------------------------------------------------------

CHECKS: tuple[tuple[str, Callable[[Case], str]], ...] = (
    ("size", check_size),
    ("strict JSON", check_json),
    ("version", check_version),
    ("canonical form", check_canonical),
    ("signature", check_signature),
    ("leaf", check_leaf),
    ("inclusion", check_inclusion),
    ("checkpoint", check_checkpoint),
    ("witness", check_witness),
    ("revoked keys", check_revoked),
    ("previous checkpoint", check_previous),
    ("plan before run", check_plan),
    ("subject", check_subject),
    ("weights", check_weights),
    ("verdict", check_verdict),
)


def verify(given: Given, say: Callable[[str], object] = print) -> int:
    """Make every check, say one line for each, and return the exit status. It raises nothing, whatever the files hold."""
    case, status, reached = Case(given), HOLDS, True
    for name, check in CHECKS:
        try:
            said, mark = check(case), "ok"
        except NotReached:
            said, mark, reached = "not reached", "-", False
        except Unknown as error:
            said, mark = str(error), "?"
            status = status or UNDECIDED
        except Wrong as error:
            said, mark, status = str(error), "FAIL", INVALID
        except Exception as error:  # noqa: BLE001  a malformed report is invalid, and never a traceback
            said, mark, status = f"malformed ({type(error).__name__})", "FAIL", INVALID
        say(f"{mark:<5} {name:<20} {said}".encode("ascii", "backslashreplace").decode().replace("\n", " "))
    if status == HOLDS and not reached:
        status = UNDECIDED
    say(("valid", "INVALID", "cannot be decided")[status])
    return status


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="lethe verify", description="Check an audit report offline. Exit 0 valid, 1 invalid, 2 cannot decide.")
    parser.add_argument("report", type=Path, help="report.json as it was handed out")
    parser.add_argument("--log-key", type=Path, metavar="FILE", help="the log's verifier key(s), one a line")
    parser.add_argument("--model", type=Path, metavar="DIR", help="the version's files with manifest.json, to be re-hashed")
    parser.add_argument("--previous", type=Path, metavar="CHECKPOINT", help="a checkpoint that you kept from before")
    parser.add_argument("--consistency", type=Path, metavar="FILE", help="the answer of /v1/audit/consistency between the two")
    parser.add_argument("--witness", metavar="KEY", help="a witness's verifier key, or a file with it")
    parser.add_argument("--plan", type=Path, metavar="FILE", help="the verification plan that you were given before")
    return verify(Given(**vars(parser.parse_args(arguments))))


if __name__ == "__main__":
    sys.exit(main())
