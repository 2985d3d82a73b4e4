"""The step `publish`: put and re-read every file, then one fenced transaction in which the candidate becomes the model's current version."""

import json
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from sqlalchemy.orm import Session

from models_store import checkpoints
from models_store.manifest import Component, DatasetVersion, Manifest, ManifestFile, ParentVersion, canonical, tagged
from services import drift
from services.audit import log
from services.audit.report import told_seeds
from services.datasets import service as datasets
from services.datasets.forms import FileForm
from services.errors import LeaseLost
from services.jobs import repository
from services.jobs.repository import Work
from services.jobs.steps.materialize import WEIGHTS, architecture_of, forgotten_by, own_manifest, recipe_of
from services.jobs.steps.reference import ask_ahead
from services.jobs.workshop import Workshop, store_errors
from services.model_versions import architecture, publication
from services.model_versions.forms import Publication, PublishFile

MANIFEST_FILE = "manifest.json"


def publish(shop: Workshop, work: Work, done: Mapping[str, Any]) -> UUID:
    """Publish the candidate and return the new version's id; `done` holds the outputs of the steps before.

    Raises:
        ParentMoved: another version became current meanwhile. LeaseLost: another worker owns the job.
        DigestMismatch: what the store holds is not what was put.
    """
    made = done["train"] if work.job.kind == "train" else done["unlearn"]
    manifest = compose(work, made, next_digest=_next_manifest(work, done), ledger=ledger_after(work, done))
    stored = _store_manifest(shop, manifest)
    erases = work.job.kind == "unlearn" and not work.zero_shot
    for digest in (made["candidate"]["digest"], stored["digest"], *([done["materialize"]["next"]["digest"]] if erases else [])):
        with store_errors(digest[:12]):
            checkpoints.verify_blob(shop.store, digest)
    test = forgotten_by(shop, work) if erases else None
    with shop.effect() as session:
        job = repository.job_row(session, work.job.id)
        if job.state != "publishing":
            raise LeaseLost(job=job.id, epoch=shop.lease.epoch)
        forgotten: tuple[str, ...] = ()
        learned_from = work.dataset_version.id
        if test is not None:
            forgotten = tuple(rid for rid in repository.record_ids(session, work.dataset_version) if test(rid))
            learned_from = _erase(session, shop, work, done, forgotten)
        published = publication.publish(
            session, _publication(work, done, manifest, stored, learned_from=learned_from, forgotten=forgotten), clock=shop.clock
        )
        facts = {"version": published.version_id.hex, "manifest_digest": stored["digest"], "epoch": shop.lease.epoch}
        log.record(session, tenant_id=job.tenant_id, object_id=job.id, type="job.published", body=facts)
        _tell_reset(session, work, made["run"])
        repository.finish_step(session, job, "publish", {"version": published.version_id.hex}, output_digest=stored["digest"])
        repository.end_attempt(session, job, outcome="succeeded")
        ask_ahead(session, shop, work, job, published.version_id)
    return published.version_id


def confirm(shop: Workshop, work: Work, done: Mapping[str, Any]) -> UUID:
    """Close a job none of whose records was trained on: the dataset version goes on without them, the model's version stands; return its id.

    Raises as `publish` does.
    """
    with store_errors("records"):
        checkpoints.verify_blob(shop.store, done["materialize"]["next"]["digest"])
    test = forgotten_by(shop, work)
    with shop.effect() as session:
        job = repository.job_row(session, work.job.id)
        _erase(session, shop, work, done, tuple(rid for rid in repository.record_ids(session, work.dataset_version) if test(rid)))
        confirmed = publication.confirm(session, job.id)
        repository.finish_step(session, job, "publish", {"version": confirmed.version_id.hex}, output_digest=None)
        repository.end_attempt(session, job, outcome="succeeded")
    return confirmed.version_id


def _next_manifest(work: Work, done: Mapping[str, Any]) -> str | None:
    if work.job.kind == "train" or work.zero_shot:
        return work.dataset_version.manifest_digest
    digest: str = done["materialize"]["next"]["manifest_digest"]
    return digest


def ledger_after(work: Work, done: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ledger of the new version: a certified method's own; none after an exact one; else the base's with this removal counted once."""
    run = (done["train"] if work.job.kind == "train" else done["unlearn"])["run"]
    own = (run.get("notes") or {}).get("ledger")
    if own or work.job.kind == "train" or run.get("guarantee") == "exact":
        return dict(own or {})
    roles: Mapping[str, int] = done["materialize"]["metrics"]["roles"]
    learned = roles.get("forget", 0) + roles.get("retain", 0)
    share = {"share": roles.get("forget", 0) / learned} if learned else {}
    measured = ((done.get("evaluate") or {}).get("run") or {}).get("drift") or {}
    return drift.handed_on(own_manifest(work), drift.Spend(work.job.id.hex, {**measured, **share}))


def _tell_reset(session: Session, work: Work, run: Mapping[str, Any]) -> None:
    """Write that an exact training ended the ledger of the version before."""
    before = drift.standing(own_manifest(work), {})
    if work.job.kind != "train" and run.get("guarantee") == "exact" and before.removals:
        facts = {"model": work.model.id.hex, "mechanism": before.mechanism, "removals": before.removals}
        log.record(session, tenant_id=work.job.tenant_id, object_id=work.job.id, type="ledger.reset", body=facts)


def compose(work: Work, made: Mapping[str, Any], *, next_digest: str | None, ledger: Mapping[str, Any] | None = None) -> Manifest:
    """Return the manifest of the candidate: its file, where it comes from, how it was made."""
    run = made["run"]
    candidate = made["candidate"]
    file = ManifestFile(path=WEIGHTS, digest=tagged(candidate["digest"]), size_bytes=candidate["size_bytes"], media_type="application/x-safetensors")
    parent = None
    if work.base is not None:
        digest = tagged(work.base.manifest_digest) if work.base.manifest_digest else None
        parent = ParentVersion(model=work.model.name, version=work.base.number, manifest_digest=digest)
    learned = DatasetVersion(
        dataset=work.dataset.name, version=work.dataset_version.number, manifest_digest=tagged(next_digest) if next_digest else None
    )
    return Manifest(
        files=(file,),
        architecture=Component(name=work.model.architecture, parameters=architecture.after(architecture_of(work), run.get("notes") or {})),
        task=work.model.task,
        parent=parent,
        fresh_start=bool(run.get("fresh_start", False)),
        dataset_version=None if work.zero_shot else learned,
        method=Component(name=work.job.method, parameters=dict(run.get("parameters", {}))) if work.job.method else None,
        parameters=recipe_of(work) or {},
        seeds=_told_seeds(work, run),
        ledger=dict(ledger if ledger is not None else (run.get("notes") or {}).get("ledger") or {}),
        code_digest=tagged(run["code_digest"]) if run.get("code_digest") else None,
        versions=dict(run.get("versions", {})),
    )


def _told_seeds(work: Work, run: Mapping[str, Any]) -> dict[str, int]:
    return {name: int(value) for name, value in told_seeds(work.job.seeds, secret=bool(run.get("secret_seeds"))).items()}


def _store_manifest(shop: Workshop, manifest: Manifest) -> dict[str, Any]:
    path = shop.folder / MANIFEST_FILE
    path.write_bytes(canonical(manifest))
    return shop.keep(path)


def _erase(session: Any, shop: Workshop, work: Work, done: Mapping[str, Any], forgotten: tuple[str, ...]) -> UUID:
    """Open the dataset version without the records, or find that another job has opened it, and return its id."""
    following = done["materialize"]["next"]
    repository.work_from(session, repository.job_row(session, work.job.id), UUID(following["from"]))
    file = FileForm(path=following["path"], size_bytes=following["size_bytes"], sha256=following["digest"])
    version = datasets.erase(
        session,
        work.dataset.id,
        forgotten,
        files=[file],
        manifest_digest=following["manifest_digest"],
        job_id=work.job.id,
        clock=shop.clock,
    )
    return version.id


def _publication(
    work: Work, done: Mapping[str, Any], manifest: Manifest, stored: Mapping[str, Any], *, learned_from: UUID, forgotten: tuple[str, ...]
) -> Publication:
    made = done["train"] if work.job.kind == "train" else done["unlearn"]
    weights = PublishFile(WEIGHTS, made["candidate"]["digest"], made["candidate"]["size_bytes"], "application/x-safetensors")
    own = PublishFile(MANIFEST_FILE, stored["digest"], stored["size_bytes"], "application/json")
    run = made["run"]
    evaluation = done.get("evaluate") or done.get("measure") or {}
    return Publication(
        job_id=work.job.id,
        files=(weights, own),
        manifest=json.loads(canonical(manifest)),
        manifest_digest=stored["digest"],
        trained_on=((learned_from, "evaluation" if work.zero_shot else "train"),),
        fresh_start=bool(run.get("fresh_start", False)),
        guarantee=run.get("guarantee"),
        recipe=recipe_of(work),
        seeds=_told_seeds(work, run),
        code_digest=run.get("code_digest"),
        result={
            "method_seconds": seconds(run.get("method_seconds")),
            "evaluation_seconds": seconds(evaluation.get("seconds")),
            "reference_seconds": seconds((evaluation.get("run") or {}).get("reference_seconds")),
            "reference_from": (evaluation.get("run") or {}).get("reference_from"),
            "retrain_seconds": seconds((evaluation.get("run") or {}).get("retrain_seconds")),
            "metrics": evaluation.get("metrics") or {},
        },
        forgotten={work.dataset.id: forgotten} if forgotten else {},
    )


def seconds(value: float | None) -> str | None:
    """Return a duration as a decimal string with milliseconds, as every number of the evidence is written."""
    return None if value is None else f"{value:.3f}"
