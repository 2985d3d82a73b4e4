"""Reports as the service makes them, without its servers: statement, envelope, log and checkpoint; each part can be bent before it is signed."""

import copy
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import rfc8785

from services.audit import evidence, log, notes, report, tree
from services.audit.evidence import Opening
from services.audit.notes import Checkpoint, SigningKeyPair
from services.audit.runs import Chain, Run, Subject
from services.db.tables import DeletionRequest, Job, Model, ModelVersion, Policy, ReadingRow, Target, VerdictRow, VerificationPlan

AT = datetime(2026, 3, 1, tzinfo=UTC)
KEY = SigningKeyPair.from_hex("lethe.test/log", "44" * 32)
OTHER = SigningKeyPair.from_hex("lethe.test/log", "55" * 32)
WITNESS = SigningKeyPair("witness.test/w1", b"w" * 32, notes.WITNESS_KEY)
SALT = b"s" * 16
PLAN: dict[str, Any] = {
    "readings": [
        {"kind": "metric", "name": "accuracy", "split": "forget_train", "direction": "band", "epsilon": 0.05, "gate": True},
        {"kind": "attack", "name": "mia_v2", "split": "forget_train", "direction": "band", "epsilon": 0.05, "gate": True},
        {"kind": "metric", "name": "zrf", "split": "forget_train", "direction": "info", "epsilon": None, "gate": False},
    ],
    "utility": {"total": 0.01, "worst_class": 0.03}, "alpha": 0.05, "level": 0.9, "guarantee": "approximate", "reference": "retrained",
    "tiny": 1e-07, "large": 1e21, "ladder": {"next": "retrain"},
}  # fmt: skip


def reading(
    kind: str, name: str, split: str, *, before: str, after: str, reference: str | None, paired: tuple[str, str, str] | None, state: str, **extra: Any
) -> ReadingRow:
    """Return a row as the worker writes it."""
    detail: dict[str, Any] = {"gate": state != "info", **extra}
    if paired is not None:
        detail["paired"] = dict(zip(("value", "low", "high"), paired, strict=True))
    band = None if state == "info" else {"reference": reference, "epsilon": "0.0500", "floor": None}
    return ReadingRow(
        kind=kind, name=name, split=split, before=before, after=after, reference=reference, ci_low=after, ci_high=after, level="0.9000", n=200,
        band=band, direction="band", state=state, detail=detail,
    )  # fmt: skip


def readings(*, paired: tuple[str, str, str] = ("0.0050", "-0.0150", "0.0250"), state: str = "inside") -> list[ReadingRow]:
    """Return readings of an honest run, whose forget accuracy differs from the retrained model's by `paired`."""
    change = {
        "value": "-0.0020",
        "low": "-0.0060",
        "high": "0.0020",
        "per_class": {"1": {"value": "-0.0100", "low": "-0.0300", "high": "0.0100", "n": 50}},
    }
    return [
        reading("metric", "accuracy", "forget_train", before="0.9900", after="0.1050", reference="0.1000", paired=paired, state=state),
        reading(
            "attack",
            "mia_v2",
            "forget_train",
            before="0.6200",
            after="0.5050",
            reference="0.5000",
            paired=("0.0050", "-0.0200", "0.0300"),
            state="inside",
        ),
        reading("metric", "accuracy", "retain_test", before="0.9700", after="0.9680", reference="0.9650", paired=None, state="info", change=change),
        reading("metric", "zrf", "forget_train", before="0.8000", after="0.9000", reference="0.9000", paired=None, state="info"),
    ]


@dataclass
class Made:
    """One report with all that is needed to bend and sign it again."""

    verdict: str = "passed"
    guarantee: str = "approximate"
    codes: tuple[str, ...] = ()
    rows: list[ReadingRow] = field(default_factory=readings)
    plan_leaf: int = 4
    run_leaf: int = 6
    size: int = 13
    index: int = 9
    manifest_digest: str = "ab" * 32
    witnessed: bool = False
    key: SigningKeyPair = KEY
    plan: dict[str, Any] = field(default_factory=lambda: PLAN)
    sentence: str = "In 2 tests the new model behaved like a retrained one, é."
    bend_statement: Callable[[dict[str, Any]], Any] | None = None
    bend_payload: Callable[[bytes], bytes] | None = None

    @property
    def statement(self) -> dict[str, Any]:
        """The statement of the report."""
        one = UUID(int=7)
        request = DeletionRequest(
            id=one, regulation="gdpr", received_at=AT, due_at=AT + timedelta(days=30), scope={"kind": "class_labels", "records": 200, "labels": ["3"]},
            identity={"mode": "asserted_by_controller"},
        )  # fmt: skip
        new = ModelVersion(id=one, number=2, manifest_digest=self.manifest_digest, guarantee=self.guarantee, fresh_start=False)
        base = ModelVersion(id=UUID(int=8), number=1, status="quarantined", manifest_digest="cd" * 32, guarantee=None, fresh_start=False)
        target = Target(id=one, state="published", records=200, records_commitment="ef" * 32)
        steps = {"unlearn": {"run": {"method_seconds": 1.25, "guarantee": self.guarantee}}}
        job = Job(
            id=one, model_id=one, state="succeeded", method="unsir", rung=1, round=1, created_at=AT, seeds={"evaluate": 5}, params={}, step_state={"steps": steps}
        )  # fmt: skip
        plan = VerificationPlan(body=copy.deepcopy(self.plan), digest=hashlib.sha256(rfc8785.dumps(self.plan)).hexdigest(), created_at=AT)
        verdict = VerdictRow(verdict=self.verdict, codes=list(self.codes), sentence=self.sentence)
        run = Run(job, [], plan, self.rows, verdict, 1, (), self.plan_leaf, self.run_leaf)
        subject = Subject(target, Model(id=one, name="faces"), base, new, [base])
        made = report.build(
            request, [subject], [run], Policy(id=one, key="demo", version=1), tenant_ref="aa" * 32, revision=1, at=AT, supersedes=None,
            chain=Chain(1, 8, 8, "bb" * 32),
        )  # fmt: skip
        if self.bend_statement is not None:
            self.bend_statement(made)
        return made

    @property
    def payload(self) -> bytes:
        """What is signed."""
        raw = rfc8785.dumps(self.statement)
        return raw if self.bend_payload is None else self.bend_payload(raw)

    def leaves(self, payload: bytes) -> dict[int, tuple[str, Mapping[str, Any]]]:
        """Return type and body of the leaves that are opened."""
        digest = hashlib.sha256(rfc8785.dumps(self.plan)).hexdigest()
        return {
            self.plan_leaf: ("plan.frozen", {"digest": digest, "round": 1}),
            self.run_leaf: ("run.started", {"plan": digest, "round": 1}),
            self.index: ("report.stored", {"digest": hashlib.sha256(payload).hexdigest(), "revision": 1}),
        }

    def parts(self) -> dict[str, Any]:
        """Return the report as a document: envelope and proof."""
        payload = self.payload
        named = self.leaves(payload)
        commitments = [log.commitment(*named.get(number, ("other", {"n": number})), SALT) for number in range(self.size)]
        hashes = [tree.leaf_hash(one) for one in commitments]
        nodes = {(0, number): one for number, one in enumerate(hashes)} | tree.extend(0, hashes, [])
        opened = {
            number: Opening(number, kind, body, SALT, [tree.fold(*ends, nodes) for ends in tree.inclusion_ranges(number, self.size)])
            for number, (kind, body) in named.items()
        }
        head = Checkpoint(self.key.name, self.size, tree.fold(0, self.size, nodes))
        lines = (self.key.line(head.text), *((WITNESS.cosign(head.text, 1772323200),) if self.witnessed else ()))
        note = Checkpoint(head.origin, head.size, head.root, lines).note
        others = [opened[number] for number in sorted({self.plan_leaf, self.run_leaf} - {self.index})]
        return {"envelope": evidence.envelope(payload, self.key), "tlog_proof": evidence.tlog_proof(opened[self.index], others, note)}

    def raw(self) -> bytes:
        """Return the report as a file."""
        parts = self.parts()
        return evidence.document(parts["envelope"], parts["tlog_proof"])

    def checkpoint(self, size: int) -> tuple[str, list[bytes]]:
        """Return the log's checkpoint of an earlier size and the proof that leads from it to the report's."""
        payload = self.payload
        named = self.leaves(payload)
        hashes = [tree.leaf_hash(log.commitment(*named.get(number, ("other", {"n": number})), SALT)) for number in range(self.size)]
        nodes = {(0, number): one for number, one in enumerate(hashes)} | tree.extend(0, hashes, [])
        head = Checkpoint(self.key.name, size, tree.fold(0, size, nodes))
        proof = [tree.fold(*ends, nodes) for ends in tree.consistency_ranges(size, self.size)]
        return Checkpoint(head.origin, size, head.root, (self.key.line(head.text),)).note, proof


def write(folder: Path, raw: bytes, *, key: SigningKeyPair = KEY) -> tuple[Path, Path]:
    """Write a report and the log's key; return both paths."""
    report_path, key_path = folder / "report.json", folder / "log.vkey"
    report_path.write_bytes(raw)
    key_path.write_text(f"# the log's key\n{key.public.text}\n")
    return report_path, key_path


def rewritten(raw: bytes, change: Callable[[dict[str, Any]], Any]) -> bytes:
    """Return a report with its document changed after it was signed."""
    document = json.loads(raw)
    change(document)
    return rfc8785.dumps(document)
