"""What memory a request takes on a model, and the refusal of one that no live worker could ever hold."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy.orm import Session

from services import memory
from services.catalogue import service as catalogue
from services.catalogue.service import EntryView
from services.db.tables import ModelVersion
from services.errors import ModelTooLarge
from services.memory import Capacity, Need
from services.requests.planning import MethodPlan
from services.requests.subjects import Located, Tainted
from services.tenants.policies import PolicyBody

WEIGHTS = ".safetensors"


def needed(
    entry: EntryView | None, parameters: Mapping[str, Any], one: Tainted, base: ModelVersion | None, located: Located, policy: PolicyBody
) -> Need | None:
    """Return what a method takes on a model's current version; None where the version does not say how large it is."""
    manifest = (base.manifest if base is not None else None) or {}
    weights = sum(int(file["size_bytes"]) for file in manifest.get("files", ()) if str(file["path"]).endswith(WEIGHTS))
    if weights == 0 or base is None:
        return None
    fact: Mapping[str, Any] = (entry.facts.get("memory") if entry is not None else None) or {}
    retrained = policy.verification.reference != "none" and not located.zero_shot
    recipe = base.recipe if retrained or (entry is not None and "recipe" in entry.needs) else None
    architecture = (manifest.get("architecture") or {}).get("parameters") or {}
    return Need(
        weights,
        memory.job_copies(fact, parameters, base.recipe, retrained=retrained),
        memory.RECORDS_HELD * sum(version.size_bytes for version in located.latest.values()),
        memory.batch_bytes(one.task, architecture, memory.largest_batch(fact, parameters, recipe)),
    )


def admit(session: Session, one: Tainted, plan: MethodPlan, base: ModelVersion | None, located: Located, policy: PolicyBody) -> None:
    """Refuse a request that no live worker could hold, on one device or, where the method can share the weights, on all of a worker's.

    Where no worker lives, or one does not say what it has, nothing is refused. Raises ModelTooLarge.
    """
    capacities = catalogue.capacities(session)
    if not capacities:
        return
    methods = catalogue.methods(session)
    need = needed(methods.get(plan.method), plan.parameters, one, base, located, policy)
    if need is None or _fits(need, methods.get(plan.method), plan.parameters, one.task, capacities):
        return
    largest = max(capacities, key=lambda capacity: capacity.memory_bytes * capacity.devices)
    facts = methods[plan.method].facts if plan.method in methods else {}
    less = sorted(name for name, entry in methods.items() if _could(name, entry, plan, one, base, located, policy, capacities))
    raise ModelTooLarge(
        method=plan.method,
        model=one.model,
        needed=memory.told(need.total_bytes),
        largest=f"{largest.devices} x {memory.told(largest.memory_bytes)} ({largest.kind})",
        shared="" if memory.shared(facts, plan.parameters, one.task) else ", and the method cannot share the weights among devices",
        less=", ".join(less) or "none",
        needed_bytes=need.total_bytes,
        capacity_bytes=largest.memory_bytes,
        devices=largest.devices,
        methods=less,
        pointer="/method",
    )


def _fits(need: Need, entry: EntryView | None, parameters: Mapping[str, Any], task: str, capacities: list[Capacity]) -> bool:
    shared = entry is not None and memory.shared(entry.facts, parameters, task)
    return any(capacity.devices_for(need, sharded=shared) is not None for capacity in capacities)


def _could(
    name: str,
    entry: EntryView,
    plan: MethodPlan,
    one: Tainted,
    base: ModelVersion | None,
    located: Located,
    policy: PolicyBody,
    capacities: list[Capacity],
) -> bool:
    """Say whether another method serves the task and the kind of request, and fits with its own parameters."""
    if name == plan.method or entry.error is not None or one.task not in entry.facts.get("tasks", ()):
        return False
    if located.granularity not in entry.facts.get("granularities", ()):
        return False
    parameters = catalogue.validate_parameters(entry, {})
    need = needed(entry, parameters, one, base, located, policy)
    return need is not None and _fits(need, entry, parameters, one.task, capacities)
