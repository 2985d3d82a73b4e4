"""The step `plan`: freeze what will be measured and how it will be judged, before anything is computed."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy.orm import Session

from services.audit import log
from services.audit.report import told_seeds
from services.catalogue import service as catalogue
from services.catalogue.router import BLIND
from services.errors import CannotPass, NotFound
from services.jobs import power, repository
from services.jobs.outcomes import next_rung, no_retrain
from services.jobs.repository import Work
from services.jobs.steps.materialize import recipe_of
from services.jobs.steps.reference import reference_seed, shadow_seed, uses_models
from services.jobs.workshop import Workshop, canonical_digest
from services.model_versions import architecture
from services.tenants.policies import WithoutData, readings_for


def freeze(shop: Workshop, work: Work, *, roles: dict[str, int]) -> dict[str, Any]:
    """Store this round's plan, once, with its audit event, and return its body; a plan that is frozen already is returned as it is.

    Raises CannotPass where nobody could pass the plan and the service chose the method: what retraining alone can pass is not tried otherwise.
    """
    with shop.effect() as session:
        job = repository.job_row(session, work.job.id)
        digest = repository.plan_digest(session, job)
        if digest is not None:
            return repository.plan_body(session, job)
        body = compose(session, work, roles=roles)
        if gives_way(work, body):
            raise CannotPass(method=work.job.method, detail=foreseen(body["power"]))
        recipe = recipe_of(work)
        if body["reference"] == "retrained" and recipe is not None:
            body["seeds"] = {**body["seeds"], "reference": reference_seed(session, shop, work, recipe=recipe)}
        if recipe is not None and uses_models(body["readings"]):
            body["seeds"] = {**body["seeds"], "shadows": shadow_seed(session, shop, work, recipe=recipe)}
        digest = canonical_digest(body)
        repository.save_plan(session, job, body, digest)
        facts = {"digest": digest, "round": job.round, "rung": job.rung, "records_commitments": body["forget_commitments"]}
        log.record(session, tenant_id=job.tenant_id, object_id=job.id, type="plan.frozen", body=facts)
        repository.finish_step(session, job, "plan", {"digest": digest}, output_digest=digest)
        return body


def compose(session: Session, work: Work, *, roles: dict[str, int]) -> dict[str, Any]:
    """Return the body of the plan from the policy's document, the request kind and the job; with no training data held, the policy's absolute bounds.

    Raises NotFound without a policy or method.
    """
    if work.policy is None or work.job.method is None:
        raise NotFound
    document = work.policy.verification
    entry = catalogue.entry(session, "method", work.job.method)
    retrainable = work.base is not None and work.base.recipe is not None and not work.zero_shot
    counts = split_counts(roles)
    readings, utility = readings_for(document, work.model.task, work.granularity)
    if work.zero_shot:
        bounds = WithoutData.model_validate(document.get("without_data") or {})
        readings, utility = bounds.readings(), bounds.utility.model_dump(mode="json")
    guarantee = entry.guarantee if entry is not None else "approximate"
    reference = document.get("reference", "retrained") if retrainable else "none"
    judged: dict[str, Any] = {"utility": utility, "level": document.get("level", 0.9), "alpha": document.get("alpha", 0.05)}
    planned = [gated(entry, counts) for entry in readings]
    if reference == "retrained":
        found = power.simulated(planned, **judged, known=known(session, work, roles))
    else:
        found = {"readings": planned, "power": power.none_simulated("there is no retrained model to compare with")}
    return {
        "policy": {"key": work.policy.key, "version": work.policy.version},
        "request_kind": work.request_kind,
        "method": work.job.method,
        "parameters": work.job.params,
        "guarantee": guarantee,
        "guarantees": (entry.facts.get("guarantees") if entry is not None else None) or [guarantee],
        "reference": reference,
        **judged,
        **found,
        "batch_size": 256,
        "seeds": told_seeds(work.job.seeds, secret=guarantee == "certified"),
        "rung": work.job.rung,
        "ladder": ladder_of(work),
        "round": work.job.round,
        "roles": roles,
        "requests": len(work.requests),
        "dataset": {"manifest_digest": work.dataset_version.manifest_digest, "version": work.dataset_version.number},
        "base": {"manifest_digest": work.base.manifest_digest if work.base else None},
        "forget_commitments": sorted(target.records_commitment for target in work.targets),
    }


def known(session: Session, work: Work, roles: Mapping[str, int]) -> power.Known:
    """Return what is known of a job before its run."""
    shares = repository.measured_shares(session, work.base.id) if work.base is not None and work.model.task == "classification" else (None, None)
    kind = "class" if work.request_kind == "class" else "records"
    classes = int(architecture.parameters_of(work.base, work.model.architecture_params).get("outputs") or 0)
    earlier = power.earlier_of(repository.earlier_readings(session, work.model.id, request_kind=kind))
    return power.Known(roles, kind, classes, *shares, earlier)


def gives_way(work: Work, body: Mapping[str, Any]) -> bool:
    """Say whether a job ends before it runs: nobody could pass its plan, the service chose its method, and a retrain comes next."""
    chosen = (work.job.choice or {}).get("by") in {"router", "ladder"}
    if not body["power"]["cannot_pass"] or body["guarantee"] == "exact" or not chosen:
        return False
    following = next_rung(work, [BLIND])
    return following is not None and following[0] == "retrain"


def foreseen(told: Mapping[str, Any]) -> str:
    """Return what a plan says of its power, for the message of a job that was not run."""
    fails = "not known" if told["original_fails"] is None else f"{told['original_fails']:.2f}"
    return f"under its plan a retrained model would pass with a chance of {told['retrained_passes']:.2f}; that the original would fail is {fails}"


def ladder_of(work: Work) -> dict[str, Any]:
    """Return what comes behind this rung, in keys of the verdict's words.

    `next` is the next method, `no_retrain` why the ladder cannot end in a retrain, `again` whether a retraining that loses too much is made once more.
    """
    following = next_rung(work)
    again = work.job.method == "retrain" and next_rung(work, ["utility"]) is not None
    return {"next": following[0] if following is not None else None, "no_retrain": no_retrain(work), "again": again}


def split_counts(roles: Mapping[str, int]) -> dict[str, int]:
    """Return how many records stand behind each split of a reading."""
    held_out, of_class = roles.get("verification", 0), roles.get("forget_test", 0)
    return {
        "forget_train": roles.get("forget", 0),
        "forget_test": of_class,
        "retain_train": roles.get("retain", 0),
        "retain_test": held_out - of_class,
        "test": held_out,
    }


def gated(entry: Mapping[str, Any], counts: Mapping[str, int]) -> dict[str, Any]:
    """Return a reading of the policy as it stands in the plan: with fewer records than it asks for it is printed and does not gate."""
    if entry.get("gate") and counts.get(str(entry.get("split")), 0) < int(entry.get("min_records") or 0):
        return {**entry, "gate": False, "direction": "info", "epsilon": None}
    return dict(entry)
