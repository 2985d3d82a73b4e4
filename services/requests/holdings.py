"""What is held of a model's version and of its records when a request is planned: facts of the ledger and of the catalogue, for the router.

- `forget`, `retain`: records of the dataset that the request names. `retain_part` alone where the version, or what it was made from, learned from
  another dataset too, or does not say from what: a job works on one dataset, and does not see the rest.
- `unseen`: held-out records, which every job on held data has; with no training data held, those of an evaluation set.
- `recipe`: of the version.
- `shards`: the weights hold what each constituent was after each slice (architecture `sharded`), and the records to train them on are held.
- `budget`: a certified removal of the service made the version, and its ledger says what is left.

That only the records to forget are gone, no request says: without them nothing could be judged, and such a request ends with `dataset-purged`.
Importances are kept on the disk of a worker, which the ledger does not know, and only where the records to keep are held too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.orm import Session

from services.catalogue import service as catalogue
from services.catalogue.applicability import Traits, lacking
from services.datasets import repository as datasets
from services.datasets.repository import HeldVersion
from services.db.tables import ModelVersion
from services.model_versions import architecture
from services.model_versions import repository as models
from services.requests import repository

SHARDED = "sharded"
LEAST_UNSEEN = 4
"""A method that works on unseen records takes no fewer of a class. How many of an evaluation set are for analysis, the worker finds."""


@dataclass(frozen=True, slots=True)
class Holdings:
    """What the router is told. `parameters` are those of rungs that hang on the version; `shards` and `slices` are 0 where it has none."""

    held: frozenset[str]
    traits: Traits = field(default_factory=Traits)
    parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    shards: int = 0
    slices: int = 0

    @property
    def zero_shot(self) -> bool:
        """Say whether nothing of the training data is held."""
        return "forget" not in self.held

    def share_of_training(self, method: str, records: int) -> float | None:
        """Return what share of a whole training `method` is expected to take for so many records; None where the version does not tell.

        `records` at random touch S (1 - (1 - 1/S)^K) of S shards; of one that a single record touches, 2/3 + 1/(3R) is trained again, of one
        that many touch, nearly all.
        """
        if method != "sisa":
            return None
        if not self.shards or not records:
            return 1.0
        touched = self.shards * (1 - (1 - 1 / self.shards) ** records)
        spared = (1 / 3 - 1 / (3 * self.slices)) * touched / records
        return touched / self.shards * (1 - spared)


def with_data(session: Session, base: ModelVersion | None, network: str, sets: Sequence[HeldVersion]) -> Holdings:
    """Return what is held for a request that names records. `network` is the model's architecture; `sets` versions of the datasets they are in."""
    behind = models.sources_of(session, base.id) if base is not None else set()
    whole = len(behind) <= 1 and None not in behind
    held = {"forget", "unseen", "retain_part", *(["retain"] if whole else [])}
    if base is not None and base.recipe is not None:
        held.add("recipe")
    return _told(session, base, network, [one for one in sets if not behind or one.dataset_id in behind], held)


def without_data(session: Session, base: ModelVersion | None, network: str, labels: Sequence[str]) -> Holdings:
    """Return what is held for classes of a model of whose training data nothing is."""
    judged = models.judged_on(session, [base.id])[base.id] if base is not None else []
    serving = [version for version in (datasets.serving(session, one.version_id) for one in judged) if version is not None]
    places = {(version.dataset_id, version.number) for version in serving}
    sets = [one for one in datasets.held_versions(session, [one.dataset_id for one in judged]) if (one.dataset_id, one.number) in places]
    counts = [datasets.label_counts(session, one.dataset_id, one.number) for one in sets]
    enough = bool(counts) and all(count.get(label, 0) >= LEAST_UNSEEN for count in counts for label in labels)
    return _told(session, base, network, sets, {"unseen"} if enough else set())


def _told(session: Session, base: ModelVersion | None, network: str, sets: Sequence[HeldVersion], held: set[str]) -> Holdings:
    """Return the holdings with what the version and its records are."""
    parameters = architecture.parameters_of(base, {})
    sharded = network == SHARDED and "retain" in held
    family = catalogue.remembered(session, "architecture").get(str(parameters.get("base")) if network == SHARDED else network)
    lacks = lacking(parameters) | frozenset(family.facts.get("lacks", ()) if family is not None else ())
    removal = _removal(session, base) if "forget" in held else None
    more = {*(["shards"] if sharded else []), *(["budget"] if removal is not None else [])}
    return Holdings(
        held=frozenset(held | more),
        traits=Traits(lacks, _modality(session, sets), _sizes(parameters, sets)),
        parameters={"certified_removal": removal} if removal is not None else {},
        shards=int(parameters.get("shards") or 0) if sharded else 0,
        slices=int(parameters.get("slices") or 0) if sharded else 0,
    )


def _modality(session: Session, sets: Sequence[HeldVersion]) -> str | None:
    """Return what the records are; None where datasets differ, or their adapter does not say."""
    adapters = catalogue.remembered(session, "dataset_adapter")
    found = {adapters[one.adapter].facts.get("modality") if one.adapter in adapters else None for one in sets}
    return found.pop() if len(found) == 1 else None


def _sizes(parameters: Mapping[str, Any], sets: Sequence[HeldVersion]) -> dict[str, int]:
    """Return the number of classes and the longest side of an image, where they are known."""
    sides = [int(one.adapter_params[name]) for one in sets for name in ("height", "width") if name in one.adapter_params]
    outputs = int(parameters.get("outputs") or 0)
    return {**({"classes": outputs} if outputs else {}), **({"side": max(sides)} if sides else {})}


def _removal(session: Session, base: ModelVersion | None) -> dict[str, Any] | None:
    """Return the parameters of the certified removal that made a version, where its ledger has a budget; its owner's declaration is among them.

    An upload's ledger proves nothing of its past.
    """
    ledger = ((base.manifest or {}).get("ledger") or {}) if base is not None else {}
    if base is None or base.job_id is None or not ledger.get("budget") or base.guarantee != "certified":
        return None
    return repository.job_parameters(session, base.job_id, method="certified_removal")
