"""Load every registry and describe what is in it; the supervisor publishes the description as the catalogue."""

import dataclasses
import hashlib
import re
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from services.jobs.messages import CatalogueItem
from services.learning.architecture import ARCHITECTURES
from services.learning.dataset import DATASETS
from services.learning.task import TASKS
from services.registry import Registry
from services.unlearning.method import METHODS
from services.verification.attack import ATTACKS
from services.verification.figure import FIGURES
from services.verification.metric import METRICS

REGISTRIES: tuple[tuple[Registry[Any], str, str], ...] = (
    (TASKS, "services.learning.tasks", "lethe.tasks"),
    (ARCHITECTURES, "services.learning.architectures", "lethe.architectures"),
    (DATASETS, "services.learning.datasets", "lethe.datasets"),
    (METHODS, "services.unlearning.methods", "lethe.methods"),
    (METRICS, "services.verification.metrics", "lethe.metrics"),
    (ATTACKS, "services.verification.attacks", "lethe.attacks"),
)
UNLISTED: tuple[tuple[Registry[Any], str, str], ...] = ((FIGURES, "services.verification.figures", "lethe.figures"),)
"""What is found in the same way, and is nothing that a request can name: the catalogue leaves it out."""
ENGINE = ("services/learning", "services/unlearning", "services/verification", "services/jobs/compute")
FACTS = ("modality", "modalities", "tasks", "columns", "granularities", "fresh_start", "stall_s", "unit", "bounds", "compares_to", "direction",
         "splits", "loss_unit", "record_parameters", "sharded", "lacks")  # fmt: skip


def load(allowed: Sequence[str]) -> None:
    """Import every plug-in file of this distribution, and the entry points of the allowed ones."""
    for registry, package, group in (*REGISTRIES, *UNLISTED):
        registry.discover(package)
        registry.discover_entry_points(group, allowed)


def catalogue() -> list[CatalogueItem]:
    """Return one item for every registered component, and one with its error for each that could not be imported."""
    items: list[CatalogueItem] = []
    for registry, _, _ in REGISTRIES:
        items += [_describe(registry.kind, name, registry[name]) for name in registry]
        items += [CatalogueItem(kind=registry.kind, name=name, error=error) for name, error in sorted(registry.broken.items())]  # pyright: ignore[reportArgumentType]
    return items


def _describe(kind: Any, name: str, component: type[Any]) -> CatalogueItem:
    parameters = getattr(component, "Parameters", None)
    needs = getattr(component, "needs", None)
    held = [] if needs is None else [field for field in ("forget_set", "retain_set", "unseen_set", "recipe") if getattr(needs, field)]
    cost = getattr(component, "cost", None)
    memory = getattr(component, "memory", None)
    facts: dict[str, Any] = {} if cost is None else {"cost": dataclasses.asdict(cost)}
    if needs is not None:
        facts |= {fact: _jsonable(getattr(needs, fact)) for fact in ("parts", "instead", "limits") if getattr(needs, fact)}
    facts |= {} if memory is None else {"memory": dataclasses.asdict(memory)}
    if getattr(component, "guarantees", None):
        facts["guarantees"] = _jsonable(component.guarantees)
    if getattr(component, "gentler", None):
        facts["gentler"] = {component.gentler.parameter: component.gentler.factor}
    facts |= {fact: _jsonable(getattr(component, fact)) for fact in FACTS if hasattr(component, fact)}
    if kind == "method":
        facts["modalities"] = sorted(component.modalities & {each for task in component.tasks if task in TASKS for each in TASKS[task].modalities})
    return CatalogueItem(
        kind=kind,
        name=name,
        version=getattr(component, "version", "1"),
        guarantee=getattr(component, "guarantee", None),
        parameters=parameters.model_json_schema() if parameters is not None else {},
        needs=held,
        facts={**facts, "summary": (component.__doc__ or "").strip().split("\n")[0], "paper": paper_of(component)},
    )


def paper_of(component: type[Any]) -> str | None:
    """Return the source that the docstring of a component, or else of its module, names: after `Source:` or `In the manner of`."""
    for text in (component.__doc__, sys.modules[component.__module__].__doc__):
        found = re.search(r"(?:Source:|In the manner of) (.*?)(?: Differs:|$)", " ".join((text or "").split()))
        if found is not None:
            return found.group(1)
    return None


def _jsonable(value: Any) -> Any:
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, tuple):
        return [_jsonable(part) for part in value]
    if isinstance(value, float) and value in {float("inf"), float("-inf")}:
        return None
    return value


def code_digest() -> str:
    """Return the SHA-256 over path and bytes of every source file of the engine, sorted by path."""
    root = Path(__file__).resolve().parents[3]
    running = hashlib.sha256()
    for package in ENGINE:
        for path in sorted((root / package).rglob("*.py")):
            running.update(path.relative_to(root).as_posix().encode() + b"\x00" + path.read_bytes() + b"\x00")
    return running.hexdigest()


def versions() -> dict[str, str]:
    """Return the versions of what computes."""
    return {name: version(name) for name in ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "lethe")}
