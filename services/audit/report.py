"""The audit report as a statement: what was asked, what was done, what was measured, and what that does not show.

A pure function of rows. Every metric is a decimal string, so that no float drifts between languages; its digest is the SHA-256 of its
canonical JSON (RFC 8785). It holds no identifier of a person and no record id.
"""

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import rfc8785

from services.audit import figure_forms, overview
from services.audit.limitations import LIMITATIONS, SHADOW_BAND, limitations, not_tested
from services.audit.runs import Chain, Conduct, Run, Subject, Told, deciding
from services.audit.words import UNSEEN, in_stead
from services.db.destruction import Fate
from services.db.tables import DeletionRequest, ModelVersion, Policy, ReadingRow

VERSION = "1"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://lethe.dev/verification/v1"


def build(
    request: DeletionRequest, subjects: Sequence[Subject], runs: Sequence[Run], policy: Policy, *, tenant_ref: str, revision: int, at: datetime,
    supersedes: str | None, chain: Chain = Chain(), conduct: Conduct = Conduct(),  # noqa: B008  frozen
) -> dict[str, Any]:  # fmt: skip
    """Return the statement. `tenant_ref` is a keyed digest of the tenant, `at` the database's time, `supersedes` the digest before it."""
    published = [subject for subject in subjects if subject.published is not None]
    names = {subject.model.id: subject.model.name for subject in subjects if subject.model is not None}
    processing = [{"model": names.get(run.job.model_id), **_processing(run)} for run in runs]
    verification = [_verification(run, policy) for run in runs if run.plan is not None]
    return {
        "_type": STATEMENT_TYPE,
        "subject": [
            {
                "name": f"{subject.model.name}@{subject.published.number}" if subject.model and subject.published else "",
                "digest": {"sha256": (subject.published.manifest_digest or "") if subject.published else ""},
            }
            for subject in published
        ],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "report_version": VERSION,
            "revision": revision,
            "supersedes": supersedes,
            "request": f"dr_{request.id.hex}",
            "tenant_ref": tenant_ref,
            **_head(runs, subjects),
            "clock": _clock(request, conduct, at),
            "identity": _identity(request, conduct),
            "decision": _decision(request),
            "scope": _scope(request, subjects, runs),
            "processing": processing,
            "verification": verification,
            "ledger": [_ledger(subject) for subject in subjects if subject.model is not None and subject.ledger is not None],
            "artifacts": [_artifacts(subject, runs) for subject in subjects],
            "recipients": [_recipient(told) for told in conduct.told],
            "retention": _retention(policy),
            "figures": [entry for run in deciding(runs) for entry in _figures(run, names.get(run.job.model_id), processing, verification)],
            "not_tested": not_tested(runs),
            "limitations": limitations(request, subjects, runs, witnessed=chain.witnessed),
            "residual_risk": LIMITATIONS["process"],
            "next_review": _next_review(subjects),
            "chain": {"first_seq": chain.first_seq, "last_seq": chain.last_seq, "head_size": chain.head_size, "head_hash": chain.head_hash},
        },
    }


def digest(statement: Mapping[str, Any]) -> str:
    """Return the SHA-256 (hex) of the statement's canonical JSON."""
    return hashlib.sha256(rfc8785.dumps(dict(statement))).hexdigest()


def _head(runs: Sequence[Run], subjects: Sequence[Subject]) -> dict[str, Any]:
    """Return the verdict over all targets: the last run of each decides, and the weakest of them is the report's."""
    last = [run.verdict for run in deciding(runs) if run.verdict is not None]
    order = ("failed", "inconclusive", "passed")
    worst = min(last, key=lambda verdict: order.index(verdict.verdict), default=None)
    if worst is None:
        found = any(subject.target.state != "not_found" for subject in subjects)
        sentence = "No model was changed." if found else "No record of this person was found; no model was changed."
        if any(subject.target.outcome == "not_learned" for subject in subjects):
            sentence = "The records were held out of training: no model learned from them, and none was changed."
        return {"verdict": None, "sentence": sentence, "failure_codes": []}
    return {"verdict": worst.verdict, "sentence": worst.sentence, "failure_codes": sorted({code for verdict in last for code in verdict.codes})}


def _clock(request: DeletionRequest, conduct: Conduct, at: datetime) -> dict[str, Any]:
    """Return the legal clock. A later revision of a closed request still tells when that was completed."""
    completed = request.closed_at or at
    extended = {
        "at": stamp(request.extended_at),
        "by": request.extended_by,
        "reason": request.extension_reason,
        "original_due": stamp(request.original_due_at),
    }
    return {
        "regulation": request.regulation,
        "received": stamp(request.received_at),
        "acknowledged": stamp(request.acknowledged_at),
        "pauses": [{"from": stamp(pause.from_at), "to": stamp(pause.to_at), "reason": pause.reason} for pause in conduct.pauses],
        "extensions": [] if request.extended_at is None else [extended],
        "due": stamp(request.due_at),
        "completed": stamp(completed),
        "on_time": completed <= request.due_at,
    }


def _recipient(told: Told) -> dict[str, Any]:
    row = told.row
    facts = {"model": told.model, "version": told.version, "recipient": row.recipient, "channel": row.channel}
    return {**facts, "sent_at": stamp(row.sent_at), "outcome": row.outcome}


def _identity(request: DeletionRequest, conduct: Conduct) -> dict[str, Any]:
    """Return how the person's identity is known; it was verified when the last query about it was answered, and the request then decided."""
    ended = [pause for pause in conduct.pauses if pause.to_at is not None and request.decided_at is not None]
    last = ended[-1] if ended else None  # they come in the order of their times, which do not overlap
    told = {"mode": request.identity.get("mode"), "evidence_ref": request.identity.get("evidence_ref")}
    return {**told, "verified_at": stamp(last.to_at) if last is not None else None, "verified_by": last.closed_by if last is not None else None}


def _ledger(subject: Subject) -> dict[str, Any]:
    """Return what removals have used up of a model since its last exact training, and what is left under the policy."""
    held = subject.ledger
    return {
        "model": subject.model.name if subject.model else None,
        "mechanism": held.mechanism if held is not None else None,
        "removals": held.removals if held is not None else 0,
        "remaining": {name: f"{left:.4f}" for name, left in (held.remaining if held is not None else {}).items()},
        "reset_at": stamp(subject.exact_since),
    }


def _next_review(subjects: Sequence[Subject]) -> str | None:
    """Return when something superseded is due to be destroyed next, upon which there is a new revision; None where nothing is."""
    due = [one.destroy_by for subject in subjects for one in subject.superseded if one.status == "quarantined" and one.destroy_by is not None]
    fates = [fate for subject in subjects for fate in (*subject.data, *subject.candidates)]
    due += [fate.destroy_by for fate in fates if fate.destroyed_at is None and fate.destroy_by is not None]
    return stamp(min(due, default=None))


def _decision(request: DeletionRequest) -> dict[str, Any]:
    return {
        "ground": request.ground,
        "exemption": request.exemption,
        "by": request.decided_by,
        "at": stamp(request.decided_at),
        "note": request.decision_note if request.exemption else None,  # the reason that the person was given; other notes are the desk's own
    }


def _scope(request: DeletionRequest, subjects: Sequence[Subject], runs: Sequence[Run]) -> dict[str, Any]:
    return {
        "kind": request.scope.get("kind"),
        "labels": request.scope.get("labels", []),
        **{bound: request.scope[bound] for bound in ("above", "below") if request.scope.get(bound) is not None},
        "targets": [
            {
                "target": f"tgt_{subject.target.id.hex}",
                "model": subject.model.name if subject.model else None,
                "state": subject.target.state,
                "outcome": subject.target.outcome,
                "samples_count": subject.target.records,
                "samples_commitment": subject.target.records_commitment,
                "dataset_digest": _dataset_digest(subject, runs),
            }
            for subject in subjects
        ],
        "samples_count": max((subject.target.records for subject in subjects), default=0),
        "located_by": request.scope.get("kind"),
        "batch_size": max((run.batch for run in runs), default=1),
    }


def _dataset_digest(subject: Subject, runs: Sequence[Run]) -> str | None:
    """Return the digest of the data set version that the records were taken from, as the last plan for the model froze it."""
    own = [run for run in runs if subject.model is not None and run.job.model_id == subject.model.id and run.plan is not None]
    return (own[-1].plan_body.get("dataset") or {}).get("manifest_digest") if own else None


def _processing(run: Run) -> dict[str, Any]:
    """Return how one job ran."""
    made, evaluated = run.told("unlearn"), run.told("evaluate")
    started = min((attempt.started_at for attempt in run.attempts), default=None)
    return {
        "job": f"job_{run.job.id.hex}",
        "state": run.job.state,
        "method": run.job.method,
        "method_version": made.get("method_version") or run.job.method_version,
        "guarantee": made.get("guarantee"),
        "params": texts(made.get("parameters") or run.job.params),
        "effective": texts(made.get("notes") or {}),
        "choice": texts(run.job.choice or {}),
        "effective_batch": run.batch,
        "seeds": {name: str(seed) for name, seed in told_seeds(run.job.seeds, secret=run.secret).items()},
        "code_digest": made.get("code_digest"),
        "image_digest": None,
        "hardware": texts((run.attempts[-1].device if run.attempts else None) or {}),
        "versions": made.get("versions", {}),
        "started": stamp(started),
        "ended": stamp(run.job.finished_at),
        "method_seconds": seconds(made.get("method_seconds")),
        "evaluation_seconds": seconds(evaluated.get("evaluation_seconds")),
        "reference_seconds": seconds(evaluated.get("reference_seconds")),
        "reference_from": evaluated.get("reference_from"),
        "retrain_seconds": seconds(evaluated.get("retrain_seconds")),
        "attempts": len(run.attempts),
        "rung": run.job.rung,
    }


def _verification(run: Run, policy: Policy) -> dict[str, Any]:
    """Return plan, readings and verdict of one job."""
    plan = run.plan
    body = plan.body if plan is not None else {}
    rows = sorted(run.readings, key=lambda row: (row.kind, row.name, row.split))
    return {
        "job": f"job_{run.job.id.hex}",
        "round": run.job.round,
        "plan": {"digest": plan.digest if plan else None, "frozen_at": stamp(plan.created_at) if plan else None, "leaf_index": run.plan_leaf,
                 "policy": {"key": policy.key, "version": policy.version}, "body": body},
        "run": {"leaf_index": run.run_leaf},
        "reference": _reference(run, body),
        "metrics": [_reading(row) for row in rows if row.kind == "metric"],
        "attacks": [{**_reading(row), **_attack(row, body)} for row in rows if row.kind == "attack"],
        "verdict": run.verdict.verdict if run.verdict else None,
        "sentence": run.verdict.sentence if run.verdict else None,
        "failure_codes": list(run.verdict.codes) if run.verdict else [],
    }  # fmt: skip


def _reference(run: Run, body: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the readings are compared with; models that were kept from an earlier evaluation are named by their keys."""
    mode, seeds = body.get("reference"), body.get("seeds") or {}
    seed = seeds.get("shadows" if mode == SHADOW_BAND else "reference")
    floors = {f"{row.name}/{row.split}": row.band["floor"] for row in run.readings if row.band and row.band.get("floor") is not None}
    count = 2 if mode == "retrained" else int(body.get("reference_models") or 0)
    facts: dict[str, Any] = {"mode": mode, "models": count, "seeds": [] if seed is None else [str(seed)], "floor": dict(sorted(floors.items()))}
    if body.get("reference_in_stead"):
        facts["in_stead_of"] = {**body["reference_in_stead"], "text": in_stead(body["reference_in_stead"])}
    kind = "shadow" if mode == SHADOW_BAND else "reference"
    keys = [entry["key"] for entry in run.told("evaluate").get("derived", []) if entry["kind"] == kind and entry["hit"]]
    if mode == SHADOW_BAND:
        return {**facts, "sentence": UNSEEN, **({"cache_keys": keys} if keys else {})}
    return {**facts, "mode": "retrained-cached", "cache_keys": keys} if keys else facts


def _reading(row: ReadingRow) -> dict[str, Any]:
    return {
        "name": row.name,
        "split": row.split,
        "before": row.before,
        "after": row.after,
        "reference": row.reference,
        "interval": [row.ci_low, row.ci_high],
        "level": row.level,
        "n": row.n,
        "band": row.band,
        "direction": row.direction,
        "state": row.state,
        "reason": row.reason,
        "detail": texts(row.detail or {}),
    }


def _attack(row: ReadingRow, body: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an attack says beside its area: who stood on either side, rates where the sample can carry them, and how it was corrected."""
    detail: Mapping[str, Any] = row.detail or {}
    after: Mapping[str, Any] = detail.get("after") or {}
    gate, alpha = bool(detail.get("gate")), body.get("alpha")
    return {
        "paper": (body.get("papers") or {}).get(row.name),
        "tpr_at_fpr": texts(after.get("tpr_at_fpr")),
        "eps_lo": after.get("eps_lower"),
        "n_members": after.get("members"),
        "n_nonmembers": after.get("non_members"),
        "shadows": after.get("models"),
        "alpha": f"{float(alpha) / int(body.get('looks') or 1):.4f}" if gate and alpha is not None else None,
        "correction": "holm" if gate else None,
        "detectable": detail.get("detectable"),
    }


def _artifacts(subject: Subject, runs: Sequence[Run]) -> dict[str, Any]:
    """Return which version stood before, which stands now, and what became of those that learned from the records, and of what was derived."""
    own = [run for run in runs if subject.model is not None and run.job.model_id == subject.model.id]
    compared = any(run.plan is not None and run.plan.body.get("reference") == "retrained" for run in own)
    copies = [{"kind": "the job's copy of the retrained reference", "disposition": "deleted with its scratch folder"}] if compared else []
    return {
        "model": subject.model.name if subject.model else None,
        "base": _version(subject.base),
        "published": _version(subject.published),
        "superseded": [_superseded(subject, version) for version in subject.superseded],
        "datasets": [{"dataset": fate.name, "version": fate.number, **_fate(fate)} for fate in subject.data],
        "candidates": [{"job": f"job_{fate.id.hex}", "method": fate.name, "rung": fate.number, **_fate(fate)} for fate in subject.candidates],
        "derived": [*copies, *(entry for run in own for entry in _derived(run))],
    }


def _superseded(subject: Subject, version: ModelVersion) -> dict[str, Any]:
    """Return what became of a version that learned from the records: destroyed with a certificate, or waiting, perhaps under a legal hold."""
    return {
        "version": version.number,
        "disposition": version.status,
        "purge_at": stamp(version.destroy_by),
        "destroyed_at": stamp(version.destroyed_at),
        "certificate": subject.certificates.get(version.id),
        "holds": [f"hold_{one.hex}" for one in subject.holds.get(version.id, ())],
    }


def _fate(fate: Fate) -> dict[str, Any]:
    """Return what became of a dataset version that held the records, or of a candidate that was not published."""
    return {
        "disposition": fate.disposition,
        "purge_at": stamp(fate.destroy_by),
        "destroyed_at": stamp(fate.destroyed_at),
        "certificate": fate.certificate,
        "holds": [f"hold_{one.hex}" for one in fate.holds],
    }


def _derived(run: Run) -> list[dict[str, Any]]:
    """Return what the worker kept of one job beyond its end, or had kept of the records before, each with its disposition after the verdict."""
    return [{"job": f"job_{run.job.id.hex}", **entry} for entry in run.step("verify").get("derived", [])]


def told_seeds(seeds: Mapping[str, Any], *, secret: bool) -> dict[str, Any]:
    """Return the seeds that may be read. Of a certified run only that of the evaluation: whoever knows the random term holds no certificate."""
    return {name: seed for name, seed in seeds.items() if not secret or name == "evaluate"}


def _version(version: ModelVersion | None) -> dict[str, Any] | None:
    if version is None:
        return None
    return {"version": version.number, "manifest_digest": version.manifest_digest, "guarantee": version.guarantee, "fresh_start": version.fresh_start}


def _figures(run: Run, model: str | None, processing: Sequence[Mapping[str, Any]], verification: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the figures of the run that decided for a model: what the readings give, then what the runner drew."""
    about = {"model": model, "job": f"job_{run.job.id.hex}"}
    data = overview.of_model(processing, verification, model)
    digest, reason = (None, overview.NOTHING) if data is None else (figure_forms.data_digest(data), None)
    first = {"name": overview.NAME, **about, "data_digest": digest, "reason": reason}
    return [first, *({"name": row.name, **about, "data_digest": row.digest, "reason": row.reason} for row in run.figures)]


def figures_of(statement: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the figures that a statement names."""
    return list(statement.get("predicate", {}).get("figures", []))


def figure_data(statement: Mapping[str, Any], held: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Return the data behind a statement's figures by digest: `held` is what runners drew; the overview is made of the statement again."""
    found: dict[str, Mapping[str, Any]] = {}
    for entry in figures_of(statement):
        told, digest = statement["predicate"], entry["data_digest"]
        again = overview.of_model(told["processing"], told["verification"], entry["model"]) if entry["name"] == overview.NAME else held.get(digest)
        if again is not None and figure_forms.data_digest(again) == digest:
            found[digest] = again
    return found


def _retention(policy: Policy) -> dict[str, Any]:
    """Return for how many days the policy keeps what."""
    kept = policy.retention or {}
    return {name: kept.get(name) for name in ("identifiers_days", "requests_days", "candidates_days")}


def stamp(moment: datetime | None) -> str | None:
    """Return a time as ISO 8601 in UTC."""
    return None if moment is None else moment.isoformat()


def seconds(value: float | None) -> str | None:
    """Return a duration as a decimal string with milliseconds."""
    return None if value is None else f"{float(value):.3f}"


def texts(body: Any) -> Any:
    """Return JSON-able `body` with floats, and integers of 2**53 and beyond, as strings."""
    if isinstance(body, Mapping):
        return {str(key): texts(value) for key, value in body.items()}
    if isinstance(body, list | tuple):
        return [texts(value) for value in body]
    if isinstance(body, float):
        return f"{body:.6g}"
    if isinstance(body, int) and not isinstance(body, bool) and abs(body) >= 2**53:
        return str(body)
    return body
