"""The router: which method serves a request when the caller leaves it open, and why. Pure: it reads no database."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any, Literal

from services.tenants.policies import Rung, serves

Granularity = Literal["class", "records", "concept"]
"""`concept`: the records that speak of an entity. What forgets records forgets these too; some methods forget nothing but the entity in them."""

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

ZERO_SHOT = Rung(method="gkt", granularities=("class",))


def rungs_for(ladder: Sequence[Rung], *, task: str, zero_shot: bool) -> list[Rung]:
    """Return the rungs that a request may take: the policy's for a task, or with no training data held, `gkt` alone, as the policy has it or by its defaults."""
    if not zero_shot:
        return [rung for rung in ladder if not rung.tasks or task in rung.tasks]
    return [rung for rung in ladder if rung.method == ZERO_SHOT.method] or [ZERO_SHOT]


@dataclass(frozen=True, slots=True)
class Offer:
    """What the catalogue says of one method. `available` says that a live worker offers it.

    `parts` are those that a checkpoint may be without and the method cannot do without.
    """

    name: str
    tasks: frozenset[str]
    granularities: frozenset[str]
    needs: frozenset[str]
    available: bool = True
    parts: frozenset[str] = frozenset()


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
    against = verification.get("reference", "retrained") == "retrained"
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


def offer_of(name: str, facts: Mapping[str, Any], needs: Collection[str], *, available: bool = True) -> Offer:
    """Return a method as the router takes it; its published `facts` hold the lists `tasks`, `granularities` and, where it has any, `parts`."""
    tasks, granularities, parts = (frozenset(facts.get(name, ())) for name in ("tasks", "granularities", "parts"))
    return Offer(name, tasks, granularities, frozenset(needs), available, parts)


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


def lacking(architecture: Mapping[str, Any]) -> frozenset[str]:
    """Return the parts that a checkpoint with these architecture parameters is without: those whose parameter is false."""
    return frozenset(name for name, value in architecture.items() if value is False)


def obstacle(offer: Offer, *, task: str, granularity: Granularity, held: Collection[str], lacks: Collection[str] = ()) -> str | None:
    """Return why a method cannot serve a request, or None if it can.

    Args:
        offer: the method.
        task: of the model.
        granularity: of the request.
        held: what there is: `forget`, `retain` (records still held), `recipe` (how the model was trained).
        lacks: the parts that the checkpoint is without.
    """
    if task not in offer.tasks:
        return f"it does not work on task {task}"
    if not serves(offer.granularities, granularity):
        return f"it does not forget {granularity}"
    absent = sorted(offer.parts.intersection(lacks))
    if absent:
        return f"it trains the {absent[0]}, and this checkpoint holds none"
    missing = sorted(need for need in offer.needs if need.removesuffix("_set") not in held)
    return f"it needs {', '.join(missing)}, which is not held" if missing else None


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
    lacks: Collection[str] = (),
) -> Choice | None:
    """Return the first rung that can serve the request, with the rest of the ladder behind it; None if no rung can.

    Args:
        task: of the model.
        granularity: `class` if the scope is whole classes.
        ladder: the policy's, in order.
        records: how many records are to be forgotten.
        class_records: size of the smallest class in the scope, where known.
        held: as for `obstacle`.
        available: what the catalogue offers, by method. A method that no live worker offers is skipped while another rung is offered.
        yardstick: of the policy. With fewer records than it takes, only retraining can pass, and is the only rung where it can be had.
        lacks: as for `obstacle`.
    """
    skipped: dict[str, str] = {}
    fit: list[Rung] = []
    for rung in ladder:
        why = _why_not(rung, task=task, granularity=granularity, held=held, available=available, lacks=lacks)
        if why is None:
            fit.append(rung)
        else:
            skipped[rung.method] = why
    few = too_few(granularity, records, yardstick)
    if few is not None and any(rung.method == "retrain" for rung in fit):
        skipped |= {rung.method: TOO_FEW for rung in fit if rung.method != "retrain"}
        fit = [rung for rung in fit if rung.method == "retrain"]
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


def too_few(granularity: Granularity, records: int, yardstick: Yardstick | None) -> str | None:
    """Return why so few records cannot show that an approximate result equals a retrained one, or None if they can."""
    if yardstick is None:
        return TOO_FEW if granularity != "class" and records < EQUIVALENCE_MINIMUM else None
    fewest = yardstick.fewest(granularity)
    if records >= fewest:
        return None
    return f"{TOO_FEW}: {records}, and within {yardstick.epsilon:g} of a retrained model at level {yardstick.level:g} it takes {fewest}"


def _why_not(
    rung: Rung, *, task: str, granularity: Granularity, held: Collection[str], available: Mapping[str, Offer], lacks: Collection[str]
) -> str | None:
    if not serves(rung.granularities, granularity):
        return f"the policy does not use it for requests of kind {granularity}"
    offer = available.get(rung.method)
    if offer is None:
        return "no worker ever offered it"
    return obstacle(offer, task=task, granularity=granularity, held=held, lacks=lacks)


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
    if few is not None and order[0] == "retrain":
        return few
    if not held:
        return WITHOUT_DATA
    what = f"{records} records" if granularity != "class" else f"whole classes ({records} records, the smallest class {class_records or records})"
    passed = "; ".join(f"{method}: {why}" for method, why in skipped.items())
    plain, told = PLAIN_IS_AS_GOOD.get((task, granularity), ("", ""))
    beside = f"; {plain}, a later rung, {told}" if plain in order[1:] else ""
    return f"first rung of the policy that serves {what} on task {task}" + (f" ({passed})" if passed else "") + beside
