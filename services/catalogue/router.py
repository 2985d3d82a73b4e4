"""The router: which method serves a request when the caller leaves it open, and why. Pure: it reads no database."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

from services.catalogue.applicability import RECORDS, UNKNOWN, Granularity, Offer, Traits, obstacle
from services.tenants.policies import Rung, serves

EQUIVALENCE_MINIMUM = 16
"""With fewer records no test can show that an approximate result equals a retrained one."""

DISAGREEMENT: Mapping[Granularity, float] = {"class": 0.0, "records": 0.1, "concept": 0.1}
"""On what share of the forgotten records one of two models that never saw them is right and the other wrong: none of a class that neither knows."""

CHANCE = 0.9
"""Below this chance that the test finds a model retrained without the records equal to another one, no approximate method is tried."""

BLIND = "cannot_pass"

TOO_FEW = "too few records for an equivalence test"


PLAIN_IS_AS_GOOD: Mapping[tuple[str, Granularity], tuple[str, str]] = {
    ("image_generation", "class"): (
        "fine_tune",
        "was as good for a class in our benchmark where all records to keep are held (docs/benchmarks/gan.md)",
    ),
}
"""Where a plainer method than the first rung is known to do as well: its name, and what is known."""

WITHOUT_DATA = "no training data are held, and of the methods that need none it alone keeps the other classes usable"

UNSEEN_ALONE = "no training data are held, only unseen records of the class: by them its outputs can be suppressed, and nothing is erased"

GKT_FIRST = "gkt serves the request, and does more than suppress outputs"

SHARDS = "the version holds what it was after each slice of its shards: only what learned from the records is trained again, exactly"

BUDGET = "the version was made by certified removal, and its head carries a budget for more"

IMPORTANCE = "the records to keep are not held, only the importance of each weight for all that the model learned from"

ZERO_SHOT = Rung(method="gkt", granularities=("class",))


@dataclass(frozen=True, slots=True)
class Place:
    """A rung that a request may take though its policy does not list it, where `fact` is held and nothing of `unless`; and why it is taken."""

    fact: str
    unless: frozenset[str]
    rung: Rung
    reason: str


BY_HELD = (
    Place("shards", frozenset(), Rung(method="sisa"), SHARDS),
    Place("budget", frozenset(), Rung(method="certified_removal", granularities=("records",)), BUDGET),
    Place("importance", frozenset({"retain"}), Rung(method="ssd"), IMPORTANCE),
    Place("importance", frozenset({"retain"}), Rung(method="lfssd"), IMPORTANCE),
    Place("unseen", RECORDS, Rung(method="lra_npp", granularities=("class",)), UNSEEN_ALONE),
)
"""What a policy's ladder cannot foresee, since it hangs on the model version: these rungs come before its own, unless it lists them itself."""


def rungs_for(
    ladder: Sequence[Rung],
    *,
    task: str,
    granularity: Granularity,
    held: Collection[str],
    parameters: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Rung]:
    """Return the rungs that a request may take: those of `BY_HELD`, then the policy's for the task.

    With no training data held the policy's do not count, but for `gkt`, which then comes first, by its defaults where the policy does not list it.

    Args:
        ladder: the policy's, in order.
        task: of the model.
        granularity: of the request.
        held: as for `obstacle`.
        parameters: those of a rung of `BY_HELD`, by method, where they hang on the model version too.
    """
    own = [rung for rung in ladder if not rung.tasks or task in rung.tasks]
    if not RECORDS & set(held):
        own = [rung for rung in ladder if rung.method == ZERO_SHOT.method] or [ZERO_SHOT]
    listed = {rung.method for rung in own}
    added = [
        place.rung.model_copy(update={"parameters": dict((parameters or {}).get(place.rung.method, {}))})
        for place in BY_HELD
        if place.fact in held and not place.unless & set(held) and place.rung.method not in listed and serves(place.rung.granularities, granularity)
    ]
    return [*added, *own] if RECORDS & set(held) else [*own, *added]


@dataclass(frozen=True, slots=True)
class Yardstick:
    """How closely a policy wants accuracy on the forgotten records to equal a retrained model's: within `epsilon`, by an interval of `level`."""

    epsilon: float
    level: float

    def fewest(self, granularity: Granularity) -> int:
        """Return the least number of records with which the test is likely to find two retrained models equal.

        With no disagreement at all Tango's interval reaches z^2 / (n + z^2), which must lie in the band; with a share d of disagreement the
        difference has the standard error sqrt(d / n), and both one-sided tests must succeed with `CHANCE`.
        """
        z = NormalDist().inv_cdf((1 + self.level) / 2)
        agreeing = z**2 * (1 - self.epsilon) / self.epsilon
        reach = z + NormalDist().inv_cdf((1 + CHANCE) / 2)
        return max(EQUIVALENCE_MINIMUM, math.ceil(agreeing), math.ceil(DISAGREEMENT[granularity] * (reach / self.epsilon) ** 2))


def yardstick_of(verification: Mapping[str, Any], granularity: Granularity) -> Yardstick | None:
    """Return what a policy's stored `verification` asks of a kind of request; None where accuracy on forgotten records decides nothing."""
    bands = [
        float(reading["epsilon"])
        for reading in verification.get(granularity, ())
        if (reading["kind"], reading["name"], reading["split"]) == ("metric", "accuracy", "forget_train")
        and reading.get("gate")
        and reading.get("direction") == "band"
        and reading.get("epsilon")
    ]
    against = verification.get("reference", "retrained") != "none"
    return Yardstick(min(bands), float(verification.get("level", 0.9))) if bands and against else None


@dataclass(frozen=True, slots=True)
class Choice:
    """The method of the first rung, its parameters, the reason, and all rungs in order. `skipped` says why other rungs were left out."""

    method: str
    reason: str
    rungs: tuple[str, ...]
    parameters: Mapping[str, Any] = field(default_factory=dict[str, Any])
    skipped: Mapping[str, str] = field(default_factory=dict[str, str])

    def as_json(self) -> dict[str, Any]:
        """Return the choice as the job stores it."""
        return {"by": "router", "method": self.method, "reason": self.reason, "rungs": list(self.rungs), "skipped": dict(self.skipped)}


def following(
    rungs: Sequence[str], method: str, *, retrainable: bool, codes: Collection[str] = (), again: bool = False, gentler: bool = False
) -> str | None:
    """Return the rung after `method`; None when the ladder is spent. The last is always `retrain`, unless there is no recipe to retrain by.

    Code `cannot_pass` says that the tests cannot tell even the original from a retrained model: then no rung but retraining can pass. A retraining
    that failed by `utility` alone is made once more: it has forgotten, and how much it keeps of each class hangs on its seed. So is any other method that
    has a `gentler` form, in that form. `again` says that it was made twice.
    """
    names = [name for name in rungs if name != "retrain"] + (["retrain"] if retrainable else [])
    after = names[names.index(method) + 1 :] if method in names else [name for name in names if name == "retrain"]
    if BLIND in codes and "retrain" in after:
        return "retrain"
    if set(codes) == {"utility"} and not again and (retrainable if method == "retrain" else gentler):
        return method
    return after[0] if after else None


def choose(
    *,
    task: str,
    granularity: Granularity,
    ladder: Sequence[Rung],
    records: int,
    class_records: int | None,
    held: Collection[str],
    available: Mapping[str, Offer],
    yardstick: Yardstick | None = None,
    traits: Traits = UNKNOWN,
) -> Choice | None:
    """Return the first rung that can serve the request, with the rest of the ladder behind it; None if no rung can.

    Args:
        task: of the model.
        granularity: `class` if the scope is whole classes.
        ladder: as `rungs_for` returns it, in order.
        records: how many records are to be forgotten.
        class_records: size of the smallest class in the scope, where known.
        held: as for `obstacle`. Where a request produces each of these facts is told in services/requests/holdings.py.
        available: what the catalogue offers, by method. A method that no live worker offers is skipped while another rung is offered.
        yardstick: of the policy. With fewer records than it takes, only an exact method can pass, and where one can be had, no other is a rung.
        traits: as for `obstacle`.
    """
    skipped = obstacles(ladder, task=task, granularity=granularity, held=held, available=available, traits=traits)
    fit = [rung for rung in ladder if rung.method not in skipped]
    few = too_few(granularity, records, yardstick)
    if few is not None and any(rung.method == "retrain" for rung in fit):
        exact = {"retrain", "sisa"} if "shards" in held else {"retrain"}
        skipped |= {rung.method: TOO_FEW for rung in fit if rung.method not in exact}
    if not RECORDS & set(held) and any(rung.method == ZERO_SHOT.method for rung in fit):
        skipped |= {rung.method: GKT_FIRST for rung in fit if rung.method != ZERO_SHOT.method}
    fit = [rung for rung in fit if rung.method not in skipped]
    if not fit:
        return None
    live = [rung for rung in fit if available[rung.method].available]
    waiting = {rung.method: "no live worker offers it" for rung in fit if not available[rung.method].available}
    order = tuple(live or fit)
    if live:
        skipped |= waiting
    first = order[0]
    return Choice(
        method=first.method,
        reason=_reason(
            few=few, granularity=granularity, task=task, records=records, class_records=class_records, skipped=skipped,
            order=[rung.method for rung in order], held=held,
        ),
        rungs=tuple(rung.method for rung in order),
        parameters=first.parameters,
        skipped=skipped,
    )  # fmt: skip


def obstacles(
    ladder: Sequence[Rung], *, task: str, granularity: Granularity, held: Collection[str], available: Mapping[str, Offer], traits: Traits = UNKNOWN
) -> dict[str, str]:
    """Return, by method, why rungs cannot serve the request; those that can are not in it. Arguments as for `choose`."""
    found: dict[str, str] = {}
    for rung in ladder:
        why = _why_not(rung, task=task, granularity=granularity, held=held, available=available, traits=traits)
        if why is not None:
            found[rung.method] = why
    return found


def too_few(granularity: Granularity, records: int, yardstick: Yardstick | None) -> str | None:
    """Return why so few records cannot show that an approximate result equals a retrained one, or None if they can."""
    if yardstick is None:
        return TOO_FEW if granularity != "class" and records < EQUIVALENCE_MINIMUM else None
    fewest = yardstick.fewest(granularity)
    if records >= fewest:
        return None
    return f"{TOO_FEW}: {records}, and within {yardstick.epsilon:g} of a retrained model at level {yardstick.level:g} it takes {fewest}"


def _why_not(rung: Rung, *, task: str, granularity: Granularity, held: Collection[str], available: Mapping[str, Offer], traits: Traits) -> str | None:
    if not serves(rung.granularities, granularity):
        return f"the policy does not use it for requests of kind {granularity}"
    offer = available.get(rung.method)
    if offer is None:
        return "no worker ever offered it"
    return obstacle(offer, task=task, granularity=granularity, held=held, traits=traits)


def _reason(
    *,
    few: str | None,
    granularity: Granularity,
    task: str,
    records: int,
    class_records: int | None,
    skipped: Mapping[str, str],
    order: Sequence[str],
    held: Collection[str],
) -> str:
    if few is not None and order[0] in {"retrain", "sisa"}:
        return few if order[0] == "retrain" else f"{few}; {SHARDS}"
    if not RECORDS & set(held) and order[0] == ZERO_SHOT.method:
        return WITHOUT_DATA
    what = f"{records} records" if granularity != "class" else f"whole classes ({records} records, the smallest class {class_records or records})"
    passed = "; ".join(f"{method}: {why}" for method, why in skipped.items())
    for place in BY_HELD:
        if place.rung.method == order[0] and place.fact in held and not place.unless & set(held):
            return place.reason + (f" ({passed})" if passed else "")
    plain, told = PLAIN_IS_AS_GOOD.get((task, granularity), ("", ""))
    beside = f"; {plain}, a later rung, {told}" if plain in order[1:] else ""
    return f"first rung of the policy that serves {what} on task {task}" + (f" ({passed})" if passed else "") + beside
