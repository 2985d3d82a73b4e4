"""What a method can be asked for: the facts that it publishes, held against a request, a model, and what is held of its records. Pure."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from services.tenants.policies import serves

Granularity = Literal["class", "records", "concept"]
"""`concept`: the records that speak of an entity. What forgets records forgets these too; some methods forget nothing but the entity in them."""

MODALITIES = frozenset({"image", "series", "tabular", "text"})
"""The kinds of record that methods name. Of records of another kind, which a plug-in may bring, it is not known which methods take them."""

RECORDS = frozenset({"forget", "retain", "retain_part"})
"""What may be held of the records that a model learned from."""

_LIMITS = {
    "classes": "it serves at most {limit} classes, and this model knows {size}",
    "side": "it serves images of at most {limit} x {limit} pixels, and these have {size} on a side",
}


@dataclass(frozen=True, slots=True)
class Offer:
    """What the catalogue says of one method. `available` says that a live worker offers it.

    `parts` are those that a network may be without and the method cannot do without; `modalities` the kinds of record that it takes, none: any;
    `limits` the most `classes` and the longest `side` of an image; `instead` names what will do in place of a need.
    """

    name: str
    tasks: frozenset[str]
    granularities: frozenset[str]
    needs: frozenset[str]
    available: bool = True
    parts: frozenset[str] = frozenset()
    modalities: frozenset[str] = frozenset()
    limits: Mapping[str, int] = field(default_factory=dict[str, int])
    instead: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class Traits:
    """What is known of a model and its records. What is not known stands in no method's way here; the worker that sees the data has the last word.

    `lacks` are the parts that the network is without; `modality` is that of the records; `sizes` are those that `Offer.limits` bounds.
    """

    lacks: frozenset[str] = frozenset()
    modality: str | None = None
    sizes: Mapping[str, int] = field(default_factory=dict[str, int])


UNKNOWN = Traits()


def offer_of(name: str, facts: Mapping[str, Any], needs: Collection[str], *, available: bool = True) -> Offer:
    """Return a method as the router takes it, from its published `facts`."""
    lists = {fact: frozenset(facts.get(fact, ())) for fact in ("tasks", "granularities", "parts", "modalities")}
    limits, instead = facts.get("limits", {}), facts.get("instead", {})
    return Offer(name, needs=frozenset(needs), available=available, **lists, limits=dict(limits), instead=dict(instead))


def lacking(architecture: Mapping[str, Any]) -> frozenset[str]:
    """Return the parts that a checkpoint with these architecture parameters is without: those whose parameter is false."""
    return frozenset(name for name, value in architecture.items() if value is False)


def obstacle(offer: Offer, *, task: str, granularity: Granularity, held: Collection[str], traits: Traits = UNKNOWN) -> str | None:
    """Return why a method cannot serve a request, or None if nothing that is known stands in its way.

    Args:
        offer: the method.
        task: of the model.
        granularity: of the request.
        held: what there is: `forget` (the records to forget), `retain` (all others that the model learned from) or else `retain_part` (some of
            them), `unseen` (records of these classes that it did not learn from), `recipe` (how it was trained), `shards` (what it was after each
            slice of each shard), `budget` (of a certified removal, not yet spent), `importance` (of each weight for all that it learned from).
        traits: of model and records.
    """
    if task not in offer.tasks:
        return f"it does not work on task {task}"
    if not serves(offer.granularities, granularity):
        return f"it does not forget {granularity}"
    return _unfit(offer, traits) or _missing(offer, held)


def _unfit(offer: Offer, traits: Traits) -> str | None:
    absent = sorted(offer.parts & traits.lacks)
    if absent:
        return f"it trains the {absent[0]}, and this checkpoint holds none"
    if offer.modalities and traits.modality in MODALITIES - offer.modalities:
        return f"it takes {' or '.join(sorted(offer.modalities))} records, and these are {traits.modality}"
    over = [name for name, limit in sorted(offer.limits.items()) if name in _LIMITS and traits.sizes.get(name, 0) > limit]
    return _LIMITS[over[0]].format(limit=offer.limits[over[0]], size=traits.sizes[over[0]]) if over else None


def _missing(offer: Offer, held: Collection[str]) -> str | None:
    missing = sorted(need for need in offer.needs if need.removesuffix("_set") not in held and offer.instead.get(need) not in held)
    if missing == ["retain_set"] and "retain_part" in held:
        return "it needs the whole retain_set, of which only a part is held"
    return f"it needs {', '.join(missing)}, which is not held" if missing else None
