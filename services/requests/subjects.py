"""From the scope of a request to the records it names and the model versions that learned from them."""

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import rfc8785
from sqlalchemy.orm import Session

from services.catalogue.applicability import Granularity
from services.datasets import repository as datasets
from services.datasets.forms import Hit
from services.datasets.identifiers import ENTITY, Identifier, record_digest, subject_digest
from services.datasets.repository import HeldVersion
from services.errors import EmptyForgetSet, EntityNotFound, ForgetSetIsEverything, InvalidInput, RecordsNotFound, UnknownDataset, UnknownModel
from services.model_versions import repository as models
from services.requests.forms import ClassScope, EntityScope, NewRequest, OtherScope, RecordsScope, Scope, SubjectScope, TargetRangeScope
from services.requests.views import DatasetHit

REAL_VALUED = frozenset({"regression", "forecasting"})
_OTHER = {
    "manifest": "uploads of record lists are not offered by this deployment; name up to 10 000 records with scope kind records",
}


@dataclass(frozen=True, slots=True)
class Tainted:
    """A model and the versions of it, still held, that learned from the records."""

    model_id: UUID
    model: str
    task: str
    current_version_id: UUID | None
    versions: tuple[UUID, ...]
    numbers: tuple[int, ...]
    architecture: str = ""


@dataclass(frozen=True, slots=True)
class Located:
    """What a scope comes to. `digests` are the keyed digests of the records by dataset; `scope_hmac` is equal for equal scopes of one tenant."""

    kind: str
    hits: tuple[Hit, ...] = field(repr=False)
    labels: tuple[str, ...]
    tainted: tuple[Tainted, ...]
    digests: dict[UUID, list[bytes]] = field(repr=False)
    datasets: tuple[DatasetHit, ...]
    commitment: str
    scope_hmac: bytes = field(repr=False)
    latest: dict[UUID, HeldVersion]
    zero_shot: bool = False
    """A class of a model of whose training data nothing is held."""
    bounds: dict[str, float] = field(default_factory=dict[str, float])
    """`above` and `below` of a range of targets, those that are given."""
    names: tuple[str, ...] = field(default=(), repr=False)
    """Names of the entities, as the caller wrote them: they leave this object encrypted alone."""

    @property
    def granularity(self) -> Granularity:
        """`class`, `records` or `concept`, as the router and the policy call it."""
        if self.kind == "class_labels":
            return "class"
        return "concept" if self.kind == "entity" else "records"


def locate(session: Session, body: NewRequest, key: bytes) -> Located:
    """Resolve the scope of a request under K_tenant.

    Raises: UnknownDataset, UnknownModel, RecordsNotFound, EntityNotFound, EmptyForgetSet, ForgetSetIsEverything; InvalidInput for a kind not offered
    here. A person whom no dataset knows is no error: the result holds no record.
    """
    scope = body.scope
    if isinstance(scope, OtherScope):
        raise InvalidInput(detail=f"scope kind {scope.kind} cannot be served: {_OTHER[scope.kind]}.")
    if isinstance(scope, SubjectScope):
        hits, rows, identity = _subject(session, scope, key)
        labels: tuple[str, ...] = ()
    elif isinstance(scope, RecordsScope):
        hits, rows, identity = _records(session, scope, key)
        labels = ()
    elif isinstance(scope, TargetRangeScope):
        hits, rows, identity = _range(session, scope)
        labels = ()
    elif isinstance(scope, EntityScope):
        hits, rows, identity = _entities(session, scope, key)
        labels = ()
    else:
        hits, rows, identity = _classes(session, scope)
        labels = tuple(sorted(set(scope.labels)))
    tainted = _narrow(session, body, _merge(rows))
    _refuse_other_tasks(scope, tainted)
    held = datasets.held_versions(session, sorted({hit.dataset_id for hit in hits})) if hits else []
    latest = {version.dataset_id: version for version in held if version.ready}
    _refuse_everything(latest, hits)
    digests: dict[UUID, list[bytes]] = {}
    for hit in hits:
        digests.setdefault(hit.dataset_id, []).append(record_digest(key, hit.dataset_id, hit.record_id))
    zero_shot = isinstance(scope, ClassScope) and not hits
    named = {"kind": scope.kind, "identity": identity, "models": sorted(str(one) for one in body.models) if body.models is not None else None}
    return Located(
        kind=scope.kind,
        hits=tuple(hits),
        labels=labels,
        tainted=tainted,
        digests=digests,
        datasets=_dataset_hits(session, held, hits),
        commitment=hashlib.sha256(rfc8785.dumps(identity)).hexdigest() if zero_shot else commitment(digests),
        scope_hmac=hmac.digest(key, b"scope\x00" + rfc8785.dumps(named), hashlib.sha256),
        latest=latest,
        zero_shot=zero_shot,
        bounds=bounds_of(scope) if isinstance(scope, TargetRangeScope) else {},
        names=scope.names if isinstance(scope, EntityScope) else (),
    )


def commitment(digests: dict[UUID, list[bytes]]) -> str:
    """Return the SHA-256 (hex) over the sorted pairs of dataset id and keyed digest."""
    total = hashlib.sha256()
    for dataset_id in sorted(digests):
        for digest in sorted(digests[dataset_id]):
            total.update(dataset_id.bytes + digest)
    return total.hexdigest()


def _subject(session: Session, scope: SubjectScope, key: bytes) -> tuple[list[Hit], Sequence[Any], Any]:
    if not scope.identifiers:
        raise InvalidInput(detail="a subject needs at least one identifier.")
    digests = sorted({subject_digest(key, one) for one in scope.identifiers})
    return datasets.hits_of_subject(session, digests), models.tainted_by_subject(session, digests), [one.hex() for one in digests]


def _records(session: Session, scope: RecordsScope, key: bytes) -> tuple[list[Hit], Sequence[Any], Any]:
    dataset_id, name = _dataset(session, scope.dataset)
    ids = sorted(set(scope.ids))
    if not ids:
        raise EmptyForgetSet(dataset=name)
    hits = datasets.hits_of_records(session, dataset_id, ids)
    if len(hits) != len(ids):
        raise RecordsNotFound(count=len(ids) - len(hits), dataset=name)
    identity = [dataset_id.hex, hashlib.sha256(b"".join(sorted(record_digest(key, dataset_id, one) for one in ids))).hexdigest()]
    return hits, models.tainted_by_records(session, dataset_id, ids), identity


def bounds_of(scope: TargetRangeScope) -> dict[str, float]:
    """Return the bounds that are given, by name."""
    return {name: bound for name, bound in (("above", scope.above), ("below", scope.below)) if bound is not None}


def _range(session: Session, scope: TargetRangeScope) -> tuple[list[Hit], Sequence[Any], Any]:
    """Resolve a range of targets. Raises EmptyForgetSet where no target lies in it, InvalidInput where the dataset has none."""
    dataset_id, name = _dataset(session, scope.dataset)
    if not datasets.has_numbers(session, dataset_id):
        other = "class_labels names its classes" if datasets.has_labels(session, dataset_id) else "subject and entity name what they are of"
        raise InvalidInput(detail=f"dataset {name} has no real-valued targets; scope kind {other}, records its records.")
    hits = datasets.hits_of_range(session, dataset_id, scope.above, scope.below)
    if not hits:
        raise EmptyForgetSet(dataset=name)
    rows = models.tainted_by_records(session, dataset_id, [hit.record_id for hit in hits])
    return hits, rows, [dataset_id.hex, {bound: repr(value) for bound, value in bounds_of(scope).items()}]


def _entities(session: Session, scope: EntityScope, key: bytes) -> tuple[list[Hit], Sequence[Any], Any]:
    """Resolve names of entities by the subject index. Raises EntityNotFound where one of them is that of no record; it is not said which."""
    held = [_dataset(session, scope.dataset)] if scope.dataset is not None else _datasets_of_model(session, scope.model)
    digests = sorted({subject_digest(key, Identifier(ENTITY, name)) for name in scope.names})
    places = {dataset_id for dataset_id, _ in held}
    found = [[hit for hit in datasets.hits_of_subject(session, [digest]) if hit.dataset_id in places] for digest in digests]
    missing = sum(not hits for hits in found)
    if missing or not digests:
        raise EntityNotFound(count=missing, dataset=held[0][1] if held else "of the model")
    hits = sorted({hit for each in found for hit in each}, key=lambda hit: (hit.dataset_id, hit.record_id))
    rows: list[Any] = []
    for dataset_id in sorted(places):
        rows += models.tainted_by_records(session, dataset_id, [hit.record_id for hit in hits if hit.dataset_id == dataset_id])
    return hits, rows, [sorted(dataset_id.hex for dataset_id in places), [one.hex() for one in digests]]


def _refuse_other_tasks(scope: Scope, tainted: Sequence[Tainted]) -> None:
    """Raise InvalidInput for classes of a model that predicts numbers, and for a range of targets of one that does not."""
    ranged = isinstance(scope, TargetRangeScope)
    if not ranged and not isinstance(scope, ClassScope):
        return
    odd = [one for one in tainted if (one.task in REAL_VALUED) != ranged]
    if odd:
        other = "target_range for models that predict numbers" if not ranged else "class_labels for models that know classes"
        raise InvalidInput(detail=f"scope kind {scope.kind} does not fit model {odd[0].model} of task {odd[0].task}; there is {other}, and records.")


def _classes(session: Session, scope: ClassScope) -> tuple[list[Hit], Sequence[Any], Any]:
    labels = sorted(set(scope.labels))
    held = [_dataset(session, scope.dataset)] if scope.dataset is not None else _datasets_of_model(session, scope.model)
    if not labels:
        raise EmptyForgetSet(dataset=held[0][1] if held else "of the model")
    if not held and scope.model is not None:
        return _without_data(session, scope.model, labels)
    hits: list[Hit] = []
    rows: list[Any] = []
    for dataset_id, name in held:
        if datasets.has_numbers(session, dataset_id):
            raise InvalidInput(detail=f"dataset {name} has real-valued targets and no classes; there are scope kinds target_range and records.")
        if not datasets.has_labels(session, dataset_id):
            raise InvalidInput(detail=f"the records of dataset {name} have no labels; scope kinds records, subject and entity name them otherwise.")
        hits += datasets.hits_of_labels(session, dataset_id, labels)
        rows += models.tainted_by_labels(session, dataset_id, labels)
    missing = len(labels) - len({hit.label for hit in hits})
    if missing:
        raise RecordsNotFound(count=missing, dataset=held[0][1])
    return hits, rows, [sorted(dataset_id.hex for dataset_id, _ in held), labels]


def _dataset(session: Session, dataset: str | UUID) -> tuple[UUID, str]:
    found = datasets.find(session, dataset)
    if found is None:
        raise UnknownDataset(dataset=str(dataset))
    return found.id, found.name


def _datasets_of_model(session: Session, model: str | UUID | None) -> list[tuple[UUID, str]]:
    if model is None:
        raise InvalidInput(detail="scope kind class_labels needs a dataset or a model.")
    found = models.find(session, model)
    if found is None:
        raise UnknownModel(model=str(model))
    learned = models.learned_from(session, [found.current_version_id])[found.current_version_id] if found.current_version_id else []
    return sorted({(one.dataset_id, one.dataset) for one in learned})


def _without_data(session: Session, model: str | UUID, labels: list[str]) -> tuple[list[Hit], Sequence[Any], Any]:
    """Resolve a class of a model of whose training data nothing is held; where it names an evaluation set, the labels must be in that."""
    found = models.find(session, model)
    if found is None:
        raise UnknownModel(model=str(model))
    if found.current_version_id is None:
        raise InvalidInput(detail=f"model {found.name} has no version that could be unlearned yet.")
    for one in models.judged_on(session, [found.current_version_id])[found.current_version_id]:
        known = datasets.label_counts(session, one.dataset_id, one.version)
        missing = [label for label in labels if label not in known]
        if missing:
            raise RecordsNotFound(count=len(missing), dataset=one.dataset)
        if len(labels) == len(known):
            raise ForgetSetIsEverything(dataset=one.dataset)
    return [], models.tainted_by_model(session, found.id), [found.id.hex, labels]


def _merge(rows: Sequence[Any]) -> list[Tainted]:
    merged: dict[UUID, Tainted] = {}
    for row in rows:
        pairs = dict(zip(row.versions, row.numbers, strict=True))
        if row.model_id in merged:
            pairs |= dict(zip(merged[row.model_id].versions, merged[row.model_id].numbers, strict=True))
        ordered = sorted(pairs, key=lambda version: pairs[version])
        numbers = tuple(pairs[version] for version in ordered)
        merged[row.model_id] = Tainted(row.model_id, row.model, row.task, row.current_version_id, tuple(ordered), numbers, row.architecture)
    return sorted(merged.values(), key=lambda one: one.model)


def _narrow(session: Session, body: NewRequest, tainted: list[Tainted]) -> tuple[Tainted, ...]:
    """Keep the models that the caller named; the caller says why in `note`."""
    if body.models is None:
        return tuple(tainted)
    if not body.note:
        raise InvalidInput(detail="narrowing a request to some models needs the member note with the reason.")
    wanted: set[UUID] = set()
    for name in body.models:
        found = models.find(session, name)
        if found is None:
            raise UnknownModel(model=str(name))
        wanted.add(found.id)
    return tuple(one for one in tainted if one.model_id in wanted)


def _refuse_everything(latest: dict[UUID, HeldVersion], hits: Sequence[Hit]) -> None:
    for dataset_id, version in latest.items():
        present = sum(1 for hit in hits if hit.dataset_id == dataset_id and holds(hit, version.number))
        if present and present == version.records:
            raise ForgetSetIsEverything(dataset=version.dataset)


def holds(hit: Hit, number: int) -> bool:
    """Say whether a version number holds a record."""
    return hit.first <= number and (hit.end is None or number < hit.end)


def _dataset_hits(session: Session, held: Sequence[HeldVersion], hits: Sequence[Hit]) -> tuple[DatasetHit, ...]:
    spans: dict[UUID, set[tuple[int, int | None]]] = {}
    for hit in hits:
        spans.setdefault(hit.dataset_id, set()).add((hit.first, hit.end))
    numbers: dict[tuple[str, UUID], list[int]] = {(version.dataset, version.dataset_id): [] for version in held}
    for version in held:
        if any(first <= version.number and (end is None or version.number < end) for first, end in spans[version.dataset_id]):
            numbers[version.dataset, version.dataset_id].append(version.number)
    for dataset_id in spans.keys() - {version.dataset_id for version in held}:  # every version of it was purged
        found = datasets.find(session, dataset_id)
        if found is not None:
            numbers[found.name, dataset_id] = []
    return tuple(DatasetHit(name, dataset_id, tuple(of)) for (name, dataset_id), of in sorted(numbers.items()))
