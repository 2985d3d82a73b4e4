"""The step `plan`: freeze what will be measured and how it will be judged, before anything is computed."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from sqlalchemy.orm import Session

from services import drift
from services.audit import log
from services.audit.report import told_seeds
from services.catalogue import service as catalogue
from services.catalogue.router import BLIND
from services.errors import CannotPass, DriftSpent, NotFound
from services.jobs import power, repository, rungs
from services.jobs.outcomes import next_rung
from services.jobs.repository import Work
from services.jobs.steps.materialize import own_manifest, recipe_of
from services.jobs.steps.reference import MODELS, SHADOW_BAND, reference_seed, shadow_seed, uses_models
from services.jobs.workshop import Workshop, canonical_digest, within_53_bits
from services.model_versions import architecture
from services.tenants.policies import WithoutData, drift_caps, readings_for

LEFT: Mapping[str, tuple[frozenset[str], Mapping[str, Any]]] = {
    "linear_probe_auc": (frozenset({"classification"}), {}),
    "relearn_time": (frozenset({"classification", "regression", "forecasting", "language_model"}), {"seeds": 3, "steps": 100}),
}
"""Readings of what is left inside, by name: the tasks that they are for, and their parameters; so few seeds and steps bound what they cost."""
OF_OTHER_RECORDS = frozenset({"near_duplicate_accuracy"})
"""Readings on records that no request names."""


def freeze(shop: Workshop, work: Work, *, roles: dict[str, int]) -> dict[str, Any]:
    """Store this round's plan, once, with its audit event, and return its body; a plan that is frozen already is returned as it is.

    Raises DriftSpent; CannotPass where nobody could pass the plan and the service chose the method: what retraining alone can pass is not tried otherwise.
    """
    with shop.effect() as session:
        job = repository.job_row(session, work.job.id)
        digest = repository.plan_digest(session, job)
        if digest is not None:
            return repository.plan_body(session, job)
        body = compose(session, work, roles=roles)
        refuse_spent(work, body["guarantee"])
        if gives_way(work, body):
            raise CannotPass(method=work.job.method, detail=foreseen(body["power"]))
        recipe = recipe_of(work)
        if body["reference"] == "retrained" and recipe is not None:
            body["seeds"] = {**body["seeds"], "reference": reference_seed(session, shop, work, recipe=recipe)}
        if recipe is not None and (body["reference"] == SHADOW_BAND or uses_models(body["readings"])):
            body["seeds"] = {**body["seeds"], "shadows": shadow_seed(session, shop, work, recipe=recipe)}
        body = within_53_bits(body)
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
    reference, stead = reference_of(work, str(document.get("reference", "retrained")), guarantee=str(guarantee)) if retrainable else ("none", None)
    level, alpha, looks = float(document.get("level", 0.9)), float(document.get("alpha", 0.05)), repository.looks(session, work.job.id)
    guarantees: list[str] = (entry.facts.get("guarantees") if entry is not None else None) or [str(guarantee)]
    listed = (*readings, *of_what_is_left(readings, work.model.task, guarantees, kind=work.request_kind))
    planned = [gated(entry, counts, halves=reference == SHADOW_BAND) for entry in listed]
    if reference != "none":
        beside = known(session, work, roles, halves=reference == SHADOW_BAND)
        found: dict[str, Any] = power.simulated(planned, utility=utility, level=level, alpha=alpha / looks, known=beside)
    else:
        found = {"readings": planned, "power": power.none_simulated("there is no retrained model to compare with")}
    body = {
        "policy": {"key": work.policy.key, "version": work.policy.version},
        "request_kind": work.request_kind,
        "about": about(work),
        "method": work.job.method,
        "parameters": work.job.params,
        "guarantee": guarantee,
        "guarantees": guarantees,
        "reference": reference,
        **({"reference_models": MODELS} if reference == SHADOW_BAND else {}),
        **({"reference_in_stead": stead} if stead is not None else {}),
        "utility": utility,
        "level": level,
        "alpha": alpha,
        "looks": looks,
        **found,
        "papers": papers_of(session, found["readings"]),
        "batch_size": 256,
        "seeds": told_seeds(work.job.seeds, secret=guarantee == "certified"),
        "rung": work.job.rung,
        "ladder": ladder_of(work, softer=rungs.softer(session, work, ["utility"])),
        "round": work.job.round,
        "roles": roles,
        "requests": len(work.requests),
        "dataset": {"manifest_digest": work.dataset_version.manifest_digest, "version": work.dataset_version.number},
        "base": {"manifest_digest": work.base.manifest_digest if work.base else None},
        "forget_commitments": sorted(target.records_commitment for target in work.targets),
    }
    return power.with_rules(body)


def reference_of(work: Work, asked: str, *, guarantee: str) -> tuple[str, dict[str, str] | None]:
    """Return the mode of reference of a job whose policy asks for `asked`, and what it stands in the stead of and why, where it is another.

    Each random half of the records holds a part of a class, a range or an entity, so that no model on one has never seen it; likewise of a person with
    several records, who may be known by the others of them. There are no such models for tasks without classes. An exact method is judged by what it lost alone: what retraining itself costs in use only a retrained model tells.
    """
    if asked != SHADOW_BAND:
        return asked, None
    why = "task" if work.model.task != "classification" else work.beyond_records or ("exact" if guarantee == "exact" else None)
    return (asked, None) if why is None else ("retrained", {"asked": asked, "why": why})


def known(session: Session, work: Work, roles: Mapping[str, int], *, halves: bool = False) -> power.Known:
    """Return what is known of a job before its run; `halves`: it is held against models on random halves of the records, of which no verdict is known."""
    shares = repository.measured_shares(session, work.base.id) if work.base is not None and work.model.task == "classification" else (None, None)
    kind = about(work)
    classes = int(architecture.parameters_of(work.base, work.model.architecture_params).get("outputs") or 0)
    earlier = {} if halves else power.earlier_of(repository.earlier_readings(session, work.model.id, about=kind))
    return power.Known(roles, kind, classes, *shares, earlier, halves)


def about(work: Work) -> Literal["class", "range", "records"]:
    """Return what a request is about, as far as the spread of two retrained models hangs on it."""
    return "class" if work.request_kind == "class" else "range" if work.of_range else "records"


def papers_of(session: Session, readings: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return where each planned attack comes from, as the catalogue has it."""
    names = sorted({str(entry["name"]) for entry in readings if entry["kind"] == "attack"})
    entries = [(name, catalogue.entry(session, "attack", name)) for name in names]
    return {name: str(entry.facts["paper"]) for name, entry in entries if entry is not None and entry.facts.get("paper")}


def refuse_spent(work: Work, guarantee: str) -> None:
    """Raise DriftSpent where earlier edits of the model have used up a cap of the policy and a retraining can be had; an exact method runs."""
    if guarantee == "exact" or rungs.no_retrain(work) is not None or work.policy is None:
        return
    spent = drift.standing(own_manifest(work), drift_caps(work.policy.limits)).spent_out
    if spent:
        raise DriftSpent(method=work.job.method, detail=", ".join(spent))


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
    most, chance = told.get("retrained_passes_at_most"), told["retrained_passes"]
    passes = f"{chance:.2f}" if chance is not None else f"at most {most:.2f}"
    return f"under its plan a retrained model would pass with a chance of {passes}; that the original would fail is {fails}"


def ladder_of(work: Work, *, softer: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return what comes behind this rung, in keys of the verdict's words.

    `next` is the next method, `no_retrain` why the ladder cannot end in a retrain, `again` whether a retraining that loses too much is made once more,
    `gentler` whether another method is, with the parameters `softer`.
    """
    following = next_rung(work)
    again = work.job.method == "retrain" and next_rung(work, ["utility"]) is not None
    gentler = softer is not None and not (work.job.choice or {}).get("again")
    told = {"no_retrain": rungs.no_retrain(work), "again": again, "gentler": gentler}
    return {"next": following[0] if following is not None else None, **told}


def of_what_is_left(readings: Sequence[Mapping[str, Any]], task: str, guarantees: Collection[str], *, kind: str) -> list[dict[str, Any]]:
    """Return the readings that are printed beside the policy's of what a model's inside still holds.

    Both are for a run which may claim no more than suppression; a linear probe is for every class that an approximate method forgets, since those that pass
    by their outputs may hold it inside as the original does. They do not gate. Both are taken on the forgotten records; a task that has no classes has no
    linear probe, a generator no relearning.
    """
    probed = {"linear_probe_auc"} if kind == "class" and "approximate" in guarantees else set[str]()
    names = set(LEFT) if "suppression" in guarantees else probed
    held = {(entry["kind"], entry["name"], entry["split"]) for entry in readings}
    asked = [{"name": name, "parameters": dict(given)} for name, (tasks, given) in LEFT.items() if name in names and task in tasks]
    made = [{"kind": "metric", "split": "forget_train", "direction": "info", "epsilon": None, "gate": False, **entry} for entry in asked]
    return [entry for entry in made if (entry["kind"], entry["name"], entry["split"]) not in held]


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


def gated(entry: Mapping[str, Any], counts: Mapping[str, int], *, halves: bool = False) -> dict[str, Any]:
    """Return a reading of the policy as it stands in the plan: with fewer records than it asks for it is printed and does not gate.

    Nor does one gate beside models on random `halves` that asks about other records than those of the request: of such models only answers are kept.
    """
    if halves and entry["name"] in OF_OTHER_RECORDS:
        return {**entry, "gate": False, "direction": "info", "epsilon": None}
    if entry.get("gate") and counts.get(str(entry.get("split")), 0) < int(entry.get("min_records") or 0):
        return {**entry, "gate": False, "direction": "info", "epsilon": None}
    return dict(entry)
