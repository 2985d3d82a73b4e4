"""What a job does next when a step ended badly: retry, another rung, a person, or the end. Classes: `retry_class` of the error tree."""

import hashlib
import random
from collections.abc import Collection, Mapping
from datetime import timedelta
from typing import Any

from sqlalchemy import func
from sqlalchemy.orm import Session

from services.audit import log
from services.catalogue import router
from services.clock import Clock, uuid7
from services.db import outbox
from services.db.tables import Job
from services.errors import LetheError
from services.jobs import repository, rungs
from services.jobs.repository import Work
from services.tenants.policies import serves

TO_RETRAINING = frozenset({"cannot-pass", "drift-spent"})
GIVES_WAY = frozenset({"diverged", "method-not-applicable", *TO_RETRAINING})
MAX_TRANSIENT = 12
BACKOFF_CAP_S = 300.0
BACKOFF_BASE_S = 5.0


def problem(error: BaseException) -> dict[str, Any]:
    """Return what is stored of an error: its code and message, never a traceback or an unknown exception's own words."""
    if isinstance(error, LetheError):
        return {"code": error.code, "detail": str(error), "retry_class": error.retry_class}
    return {"code": "internal", "detail": f"the step ended with {type(error).__name__}", "retry_class": "crash"}


def backoff_s(attempt: int, *, chance: float | None = None) -> float:
    """Return min(300, 5 * 2^k) seconds times a factor in [0.5, 1.5]; `chance` in [0, 1) fixes the factor."""
    factor = 0.5 + (random.random() if chance is None else chance)  # noqa: S311  spreads retries, protects nothing
    return min(BACKOFF_CAP_S, BACKOFF_BASE_S * 2 ** min(attempt, 16)) * factor


def settle(session: Session, job: Job, error: BaseException, *, clock: Clock, larger_queue: str = "") -> str:
    """Record that the attempt ended with `error` and move the job on; return its new state. The caller has fenced the job.

    A method that diverged, or that found at the data that it cannot serve the request, gives way to the next rung; one under a plan that nobody
    could pass, or on a model whose drift is spent, to retraining. What runs out of memory is tried once with half the batch, then, if there is one,
    once in `larger_queue` with the whole batch; then a person is asked.
    """
    facts = problem(error)
    repository.fail_step(session, job)
    if facts["retry_class"] == "race":
        return _rebase(session, job)
    repository.end_attempt(session, job, outcome=facts["retry_class"], error=facts)
    if facts["retry_class"] == "cancel":
        return _cancelled(session, job)
    if facts["retry_class"] == "permanent":
        return _failed(session, job, facts, clock)
    if facts["retry_class"] == "transient":
        return _again(session, job, facts, limit=job.attempt >= MAX_TRANSIENT, code="retry_limit")
    crashes = job.crashes + 1
    if facts["retry_class"] == "resource":
        return _smaller_or_elsewhere(session, job, facts, crashes, larger_queue)
    return _again(session, job, facts, limit=crashes >= job.max_crashes, code="crash_limit", crashes=crashes, delay_s=0.0)


def _smaller_or_elsewhere(session: Session, job: Job, facts: Mapping[str, Any], crashes: int, larger_queue: str) -> str:
    held = job.step_state or {}
    moves = bool(held.get("halved")) and larger_queue not in {"", job.queue}
    limit = bool(held.get("moved")) or (bool(held.get("halved")) and not moves)
    values: dict[str, Any] = {"queue": larger_queue, "step_state": {**held, "halved": False, "moved": True}} if moves else {}
    return _again(
        session, job, facts, limit=limit, code="out_of_memory", crashes=crashes, delay_s=0.0, **(values or {"step_state": {**held, "halved": True}})
    )


def interrupt(session: Session, job: Job) -> str:
    """Give the job back because this worker stops: no crash is counted, another worker may take it at once."""
    repository.fail_step(session, job)
    repository.end_attempt(session, job, outcome="released")
    state = repository.move(session, job, "transient", run_after=func.clock_timestamp())
    outbox.ring(session, tenant_id=job.tenant_id, topic="job.ring", ref=job.id)
    return state


def _again(session: Session, job: Job, facts: Mapping[str, Any], *, limit: bool, code: str, delay_s: float | None = None, **values: Any) -> str:
    if limit:
        return attention(session, job, code, facts, **values)
    wait_s = backoff_s(job.attempt) if delay_s is None else delay_s
    run_after = func.clock_timestamp() + timedelta(seconds=wait_s)
    state = repository.move(session, job, "transient", run_after=run_after, error=dict(facts), **values)
    outbox.ring(session, tenant_id=job.tenant_id, topic="job.ring", ref=job.id, delay_s=wait_s)
    return state


def attention(session: Session, job: Job, code: str, facts: Mapping[str, Any], **values: Any) -> str:
    """Stop the job for a person: targets stuck, requests told, nothing lost."""
    state = repository.move(session, job, "crash_limit", attention=code, error=dict(facts), **values)
    _tell(session, job, "job.needs_attention", {"attention": code, "code": facts.get("code")}, event="stuck")
    return state


def _failed(session: Session, job: Job, facts: Mapping[str, Any], clock: Clock) -> str:
    state = repository.move(session, job, "permanent", error=dict(facts))
    codes = [router.BLIND] if facts["code"] in TO_RETRAINING else []
    gives_way = job.kind == "unlearn" and facts["code"] in GIVES_WAY
    following, late = further(session, repository.load(session, job.id), codes) if gives_way else (None, {})
    if following is None:
        _tell(session, job, "job.failed", {"code": facts["code"]}, event="stuck")
        repository.release_targets(session, job.id)
    else:
        _escalate(session, job, following, {"verdict": "stopped", "codes": [facts["code"]]}, late, clock=clock)
    repository.drop_pins(session, job.id)
    return state


def _cancelled(session: Session, job: Job) -> str:
    """A job is stopped for a request that was taken back, or for a legal hold: the other requests of its batch, or all of them, are queued again."""
    targets = repository.active_targets(session, job.id)
    shared = job.attention == "legal_hold" or any(target.state == "cancelled" for target in targets)
    state = repository.move(session, job, "cancel", error={"code": "cancelled", "detail": "The work was cancelled."})
    _tell(session, job, "job.cancelled", {}, event="requeue" if shared else "stuck")
    repository.release_targets(session, job.id)
    repository.drop_pins(session, job.id)
    return state


def _rebase(session: Session, job: Job) -> str:
    repository.end_attempt(session, job, outcome="rebased")
    event = "rebase" if job.state == "publishing" else "transient"
    state = repository.move(session, job, event, run_after=func.clock_timestamp())
    repository.rebase(session, job, repository.current_version_id(session, job.model_id))
    outbox.ring(session, tenant_id=job.tenant_id, topic="job.ring", ref=job.id)
    return state


def not_passed(session: Session, work: Work, job: Job, verdict: Mapping[str, Any], *, clock: Clock) -> str:
    """Act on a verdict that is not `passed`: next rung, or a person when the ladder is spent or integrity is broken."""
    codes = list(verdict["codes"])
    flags = work.policy.flags if work.policy is not None else {}
    if verdict["verdict"] == "inconclusive" and flags.get("on_inconclusive") == "approve":
        return release_needed(session, job)
    facts = {"code": "verdict-not-passed", "detail": verdict["sentence"], "codes": codes, "verdict": verdict["verdict"]}
    repository.end_attempt(session, job, outcome=f"verdict-{verdict['verdict']}", error=facts)
    state = repository.move(session, job, "verdict_not_passed", error=facts)
    following, late = (None, {}) if "integrity" in codes else further(session, work, codes)
    if following is None:
        _tell(session, job, "job.failed", {"verdict": verdict["verdict"], "codes": codes}, event="stuck")
        repository.release_targets(session, job.id)
    else:
        _escalate(session, job, following, verdict, late, clock=clock)
    repository.drop_pins(session, job.id)
    return state


def release_needed(session: Session, job: Job) -> str:
    """Hold the candidate until a person releases or rejects it."""
    repository.end_attempt(session, job, outcome="awaiting_release")
    state = repository.move(session, job, "release_needed", attention="awaiting_release")
    _tell(session, job, "job.awaiting_release", {}, event=None)
    return state


Rung = tuple[str, dict[str, Any]]
"""A method with its parameters."""


def further(session: Session, work: Work, codes: Collection[str]) -> tuple[Rung | None, dict[str, str]]:
    """Return the rung after the job's own, whose verdict had `codes`, and the rungs that are passed over for want of time, each with its reason."""
    softer = rungs.softer(session, work, codes)
    found = next_rung(work, codes, softer=softer)
    if found is None or found[0] == work.job.method:
        return found, {}
    names = _names(work)
    behind = names[names.index(str(work.job.method)) + 1 :] if work.job.method in names else []
    late = rungs.too_late(session, work, behind)
    return next_rung(work, codes, softer=softer, late=late), late


def next_rung(work: Work, codes: Collection[str] = (), *, softer: Mapping[str, Any] | None = None, late: Collection[str] = ()) -> Rung | None:
    """Return method and parameters of the rung after the job's own, whose verdict had `codes`; None when the ladder is spent.

    The rungs are those chosen at the start, else the policy's that serve this kind of request, less those that would be too `late`. The last is always
    `retrain`, unless `no_retrain` says why it cannot be. `softer` are the parameters of the gentler form of the job's own method, if it has one.
    """
    again = bool((work.job.choice or {}).get("again"))
    method = str(work.job.method)
    names = [name for name in _names(work) if name not in late]
    after = router.following(names, method, retrainable=rungs.no_retrain(work) is None, codes=codes, again=again, gentler=softer is not None)
    if after is None:
        return None
    if after == method and method != "retrain":
        return after, dict(softer or {})
    return after, dict(_ladder(work).get(after, {}).get("parameters") or _chosen(work).get(after) or {})


def _ladder(work: Work) -> dict[str, Mapping[str, Any]]:
    return {str(rung["method"]): rung for rung in (work.policy.ladder if work.policy is not None else [])}


def _names(work: Work) -> list[str]:
    """Return the methods of the job's ladder, in order."""
    return list(_chosen(work))


def _chosen(work: Work) -> dict[str, Mapping[str, Any] | None]:
    """Return the methods of the job's ladder, in order, with the parameters that were chosen for a rung of its own."""
    fitting = [rung for rung in _ladder(work).values() if serves(rung.get("granularities", ("class", "records")), work.granularity)]
    serving = [str(rung["method"]) for rung in fitting if not rung.get("tasks") or work.model.task in rung["tasks"]]
    chosen: list[Any] = (work.job.choice or {}).get("rungs") or serving
    return dict((rung, None) if isinstance(rung, str) else (str(rung["method"]), rung.get("parameters")) for rung in chosen)


def _escalate(session: Session, job: Job, rung: Rung, verdict: Mapping[str, Any], late: Mapping[str, str], *, clock: Clock) -> None:
    method, params = rung
    new = uuid7(clock)
    choice = {name: part for name, part in (job.choice or {}).items() if name != "again"}
    choice |= {"by": "ladder", "reason": why_next(str(job.method), verdict)}
    if method == job.method:
        choice["again"] = True
    if late:
        choice["skipped"] = {**choice.get("skipped", {}), **late}
    seeds = {name: fresh_seed(int(value), job.rung + 1) for name, value in job.seeds.items()}
    targets = repository.active_targets(session, job.id)
    repository.insert_rung(session, job, {"id": new, "method": method, "params": params, "choice": choice, "seeds": seeds}, targets)
    facts = {"from": job.id.hex, "to": new.hex, "method": method, "rung": job.rung + 1, "codes": list(verdict["codes"]), "skipped": dict(late)}
    log.record(session, tenant_id=job.tenant_id, object_id=job.id, type="job.escalated", body=facts)
    outbox.ring(session, tenant_id=job.tenant_id, topic="job.ring", ref=new)


def why_next(method: str, verdict: Mapping[str, Any]) -> str:
    """Return why another rung follows `method`: the codes of its verdict, or its sentence where it has none, as one that tells nothing has."""
    return f"{method} was {verdict['verdict']}: {', '.join(verdict['codes']) or verdict['sentence']}"


def fresh_seed(seed: int, rung: int) -> int:
    """Return 31 bits that depend on the seed of the rung before and the rung alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}/rung/{rung}".encode()).digest()[:4], "big") >> 1


def _tell(session: Session, job: Job, event_type: str, body: Mapping[str, Any], *, event: str | None) -> None:
    """Write the audit event, move the targets, and let control move their requests on."""
    targets = repository.active_targets(session, job.id)
    if event is not None:
        repository.move_targets(session, targets, event, **({"outcome": None} if event == "requeue" else {}))
    log.record(session, tenant_id=job.tenant_id, object_id=job.id, type=event_type, body={**body, "attempt": job.attempt})
    for request_id in sorted({target.request_id for target in targets}):
        outbox.ring(session, tenant_id=job.tenant_id, topic="request.advance", ref=request_id)
