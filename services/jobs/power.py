"""What a plan can tell, simulated before the run: the chance that a retrained model passes it, and the chance that the unedited original fails it.

Closed forms and a seeded Monte Carlo in numpy, since the process that freezes plans loads no torch. Of each gate the simulation draws readings of a
model retrained without the records, and of the original; what their spread is stands in the plan beside each gate, with where it comes from:
`measured` by earlier verdicts on the model, or `assumed` from the number of records. Gates whose spread is neither are named; then no chance is claimed but
the greatest that the others leave, and a plan that even this cannot pass is said to be so.

Two retrained models are right on different records: on a share a(1 - a) of them where the original is right on a share a of held-out records, and on
none of a class that neither knows. Of areas under the curve, .45 of the standard error is left when two models are compared on the same rows (.006
at 500 records, .014 at 100), .65 on a class that neither knows, and .8 on a range of targets that neither knows (.64 to .93 on one set, .20 to .28 on another). Distances of outputs of two retrained models scatter by .015, on a class that
neither knows by .5 over the root of its records (.045 at 124). Errors on single records scatter by .01 of the targets' spread, likelihoods of unknown answers
by .01, their wording by .03, and how often two generators show a class that neither learned by .02. On a range of targets errors of two models differed by .012
on one set and by .14 on another, so nothing is assumed of them. What was measured is in docs/benchmarks/cheats.md. Beside models on random halves
of the records, which share less with the judged one, intervals are 1.1 to 1.8 times as wide (docs/benchmarks/shadow-band.md).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from services.catalogue.router import DISAGREEMENT, EQUIVALENCE_MINIMUM
from services.verification.statistics.paired_shares import score_interval

Floats = NDArray[np.float64]
ENOUGH = 0.95
SEEN = 0.9
WIDEST = 0.15
STEP = 0.01
DRAWS = 4000
SEED = 20_240_229
PAIRED = {"records": 0.45, "class": 0.65, "range": 0.8}
SCATTER = 0.015
MEMBER_ROWS = 5000
CLASS_SAMPLES = 2000
BESIDE_HALVES = 1.4
OF_NUMBERS = {"mean_absolute_error": (0.1, 0.01), "answer_probability": (0.02, 0.01), "rouge_l": (0.08, 0.03)}
"""Of means over records: what an interval knows of, times one over the root of the records, and the scatter of models that it does not."""
OF_SAMPLES = 0.02  # scatter of the share of samples that show a class
SCATTER_OF_CLASS, OWN_OF_CLASS = 0.5, 0.08  # times one over the root of the records: between models, and of the rows of one
NEVER = float("inf")
NO_GATE = "no test that decides is held against a retrained model"
UNKNOWN_SPREAD = "it is not known how far two retrained models differ in a test that decides"
UNKNOWN_ORIGINAL = "it is not known how often the original is right"
AREAS = frozenset({"mia_v2", "lira", "rmia", "streisand", "regression_mia"})
DISTANCES = frozenset({"js_divergence"})
BOUNDED_ABOVE = DISTANCES | {"class_rate"}  # which have no floor of their own among earlier verdicts
SHARES = frozenset({"accuracy", "near_duplicate_accuracy", "exact_match", "appearance_rate"})
UNKNOWN_TO_BOTH = frozenset({"exact_match", "appearance_rate"})  # no retrained model writes what it has not read word for word
OF_TWO = sqrt(np.pi) / 2  # a mean distance of two equal normal variables, over their deviation, is 2 / sqrt(pi)


@dataclass(frozen=True, slots=True)
class Earlier:
    """What earlier verdicts on a model measured of one reading.

    `gap` is the original's distance from the retrained model, `variance` that of the paired difference times the records behind it, `floor` the
    distance of two retrained models.
    """

    gap: float
    variance: float
    floor: float


@dataclass(frozen=True, slots=True)
class Known:
    """What is known before a run: how many records have each role, and how often the original is right on what it `learned` and on the `unseen`.

    `halves` says that readings on forgotten records are held against models on random halves of the records.
    """

    roles: Mapping[str, int]
    kind: Literal["class", "range", "records"]
    classes: int = 0
    learned: float | None = None
    unseen: float | None = None
    earlier: Mapping[tuple[str, str], Earlier] = field(default_factory=dict[tuple[str, str], Earlier])
    halves: bool = False

    @property
    def share(self) -> float:
        """The share of all records that are to be forgotten."""
        forget = self.roles.get("forget", 0)
        return forget / max(1, forget + self.roles.get("retain", 0))

    @property
    def wider(self) -> float:
        """How many times as wide as beside a retrained model intervals are taken to be."""
        return BESIDE_HALVES if self.halves else 1.0


def earlier_of(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], Earlier]:
    """Return what stored readings {name, split, n, level, before, reference, band, detail} say, by name and split.

    Without a pair a reading's own interval is taken (`ci_low`, `ci_high`); without either it says nothing.
    """
    found: dict[tuple[str, str], list[Earlier]] = {}
    for row in rows:
        own = {"low": row.get("ci_low"), "high": row.get("ci_high")}
        paired: Mapping[str, Any] = (row["detail"] or {}).get("paired") or own
        ends = [end for end in (row["before"], row["reference"], paired.get("low"), paired.get("high"), row["level"]) if end is not None]
        if len(ends) < 5 or row["n"] is None:
            continue
        before, reference, low, high, level = (float(end) for end in ends)
        z, count = NormalDist().inv_cdf((1 + level) / 2), int(row["n"])
        variance = ((high - low) / 2 / z) ** 2 * count
        if row["name"] in SHARES:  # as wide as z^2 / (n + z^2) it is where no record differs
            variance = max(0.0, variance - (z / (count + z**2)) ** 2 * count)
        floor = float((row["band"] or {}).get("floor") or 0.0)
        found.setdefault((row["name"], row["split"]), []).append(Earlier(before - reference, variance, floor))
    return {
        key: Earlier(*(float(np.mean([getattr(one, name) for one in held])) for name in ("gap", "variance", "floor"))) for key, held in found.items()
    }


@dataclass(slots=True)
class _Gate:
    """One gate: per draw the width that a retrained model needs, and the width beyond which the original still lies; `original` None: not known."""

    entry: dict[str, Any]
    needed: Floats
    original: Floats | None
    facts: dict[str, Any]

    @property
    def width(self) -> float:
        return float(self.entry["epsilon"])

    @property
    def widest(self) -> float:
        """Distances of outputs keep the policy's bound: where answers go is what tells the last fakes from a retrained model."""
        return self.width if self.entry["name"] in DISTANCES else WIDEST

    def widen(self) -> None:
        self.entry["epsilon"] = round(min(self.widest, self.width + STEP), 4)

    def told(self) -> dict[str, Any]:
        fails = None if self.original is None else _rounded(float((self.original > self.width).mean()))
        return {**self.facts, "epsilon": self.width, "retrained_passes": _rounded(float((self.needed <= self.width).mean())), "original_fails": fails}


def simulated(
    readings: Sequence[Mapping[str, Any]], *, utility: Mapping[str, Any] | None, level: float, alpha: float, known: Known
) -> dict[str, Any]:
    """Return {readings, power}: the plan's readings with the widths that they are judged by, and what the simulation found.

    Widths grow by .01 up to .15, each time that of the gate which a retrained model passes least often, until it passes all with a chance of .95.
    They stay as the policy has them where that is not reached, or where the original would then not fail with a chance of .9, or that is not known.
    `kept` is the chance that a retrained model is charged with no loss of what was retained, in use or in privacy; it is part of `retrained_passes`.
    `cannot_pass` says that no result under the plan could be a pass.
    """
    entries = [dict(entry) for entry in readings]
    gating = [entry for entry in entries if _about_forgetting(entry)]
    tests = len([entry for entry in entries if entry.get("gate")]) + (1 + known.classes if utility is not None else 0)
    drawn = [_gate(entry, known, level=level, alpha=alpha / max(tests, 1), rng=_stream(place)) for place, entry in enumerate(gating)]
    gates = [gate for gate in drawn if gate is not None]
    power = {"enough": ENOUGH, "enough_fails": SEEN, "draws": DRAWS, "seed": SEED}
    if not gating:
        return {"readings": entries, "power": none_simulated(NO_GATE)}
    unknown = [f"{entry['name']}/{entry['split']}" for entry, gate in zip(gating, drawn, strict=True) if gate is None]
    kept = _kept(known, utility, alpha=alpha / max(tests, 1)) * _not_exposed(entries, known, alpha=alpha / max(tests, 1))
    if unknown:
        return {"readings": entries, "power": {**none_simulated(UNKNOWN_SPREAD), "not_simulated": unknown, **_bounded(gates, kept)}}
    before = [gate.width for gate in gates]
    while _passes(gates) * kept < ENOUGH and any(gate.width < gate.widest for gate in gates):
        min((gate for gate in gates if gate.width < gate.widest), key=lambda gate: float((gate.needed <= gate.width).mean())).widen()
    fails = _fails(gates)
    if fails is None:  # nobody could say what a wider band lets through
        _narrow(gates, before)
    blind = _passes(gates) * kept < ENOUGH or (fails is not None and fails < SEEN)
    found = {
        "retrained_passes": _rounded(_passes(gates) * kept),
        "original_fails": _rounded(fails),
        "kept": _rounded(kept),
        "reason": UNKNOWN_ORIGINAL if fails is None else None,
        "gates": [gate.told() for gate in gates],
    }
    if blind:
        _narrow(gates, before)
    moved = [(gate, old) for gate, old in zip(gates, before, strict=True) if gate.width != old]
    widened = [{"name": gate.entry["name"], "split": gate.entry["split"], "from": old, "to": gate.width} for gate, old in moved]
    return {"readings": entries, "power": {**power, **found, "widened": widened, "cannot_pass": blind}}


def _bounded(gates: Sequence[_Gate], kept: float) -> dict[str, Any]:
    """Return what the gates of known spread say of a plan with others: the chance that a retrained model passes is at most theirs at the widest bands."""
    most = float(np.all([gate.needed <= gate.widest for gate in gates], axis=0).mean()) * kept if gates else kept
    return {"retrained_passes_at_most": _rounded(most), "cannot_pass": most < ENOUGH}


def with_rules(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Return a plan that names the rules it is judged by beside its numbers, so that whoever recomputes a verdict takes those of its day."""
    utility = plan.get("utility")
    beside = {} if plan.get("reference") == "shadow-band" else {"besides": "retrained"}  # models of half the records are worse: no measure of use
    return {**plan, "utility": None if utility is None else {**utility, **beside}, "least_records": EQUIVALENCE_MINIMUM, "sensitivity": "interval"}


def none_simulated(reason: str) -> dict[str, Any]:
    """Return what a plan says of its power where nothing was simulated."""
    unknown = {"retrained_passes": None, "original_fails": None, "reason": reason}
    return {"enough": ENOUGH, "enough_fails": SEEN, **unknown, "widened": [], "cannot_pass": False}


def _narrow(gates: Sequence["_Gate"], widths: Sequence[float]) -> None:
    """Give the gates back the widths of the policy."""
    for gate, width in zip(gates, widths, strict=True):
        gate.entry["epsilon"] = width


def _stream(place: int) -> np.random.Generator:
    """Return the generator of a gate; it depends on the gate's place alone, so that every rung draws the same."""
    return np.random.default_rng([SEED, place])


def _about_forgetting(entry: Mapping[str, Any]) -> bool:
    """Say whether a reading gates by its distance from a retrained model on forgotten records."""
    return bool(entry.get("gate")) and str(entry.get("split")).startswith("forget") and not entry.get("absolute", False)


def _passes(gates: Sequence[_Gate]) -> float:
    return float(np.all([gate.needed <= gate.width for gate in gates], axis=0).mean())


def _fails(gates: Sequence[_Gate]) -> float | None:
    """Return the chance that the original lies beyond some gate; None where that of no gate is known."""
    beyond = [gate.original > gate.width for gate in gates if gate.original is not None]
    return float(np.any(beyond, axis=0).mean()) if beyond else None


def _rounded(number: float | None) -> float | None:
    return None if number is None else round(number, 4)


def _gate(entry: dict[str, Any], known: Known, *, level: float, alpha: float, rng: np.random.Generator) -> _Gate | None:
    """Return a gate with its draws; None where nothing is known of its spread."""
    name, split = str(entry["name"]), str(entry["split"])
    held = known.earlier.get((name, split))
    records, others = _records(name, split, entry, known)
    facts: dict[str, Any] = {"name": name, "split": split, "records": records, "spread": "measured" if held is not None else "assumed"}
    if min(records, others) < EQUIVALENCE_MINIMUM:
        return _Gate(entry, np.full(DRAWS, NEVER), np.full(DRAWS, -NEVER), facts)
    z, strict = (NormalDist().inv_cdf(share) for share in ((1 + level) / 2, 1 - alpha))
    gap = held.gap if held is not None else _gap(name, split, known)
    if name in SHARES:
        return _of_shares(entry, facts, records, _disagreement(name, known, held, split), gap, (z, strict), rng)
    spread = _assumed(name, records, others, known)
    if held is not None:  # a gate with a bound on one side alone has no floor of its own
        deviation, scatter = sqrt(held.variance / records), max(held.floor * OF_TWO, spread[1] if name in BOUNDED_ABOVE and spread else 0.0)
    elif spread is not None:
        deviation, scatter = spread
    else:
        return None
    return _of_numbers(entry, facts, deviation, scatter, gap, (z, strict), rng)


def _assumed(name: str, records: int, others: int, known: Known) -> tuple[float, float] | None:
    """Return the deviation that an interval of a reading knows of, and the scatter of models that it does not; None where neither is known."""
    if name in AREAS:
        return known.wider * PAIRED[known.kind] * sqrt((1 / records + 1 / others) / 12), 0.0
    if name == "class_rate":
        shown = known.share
        return sqrt(max(shown * (1 - shown), 1e-9) / records), OF_SAMPLES
    if name in OF_NUMBERS and known.kind == "records":
        own, scatter = OF_NUMBERS[name]
        return own / sqrt(records), scatter
    if name not in DISTANCES:
        return None
    if known.kind == "class":
        return OWN_OF_CLASS / sqrt(records), SCATTER_OF_CLASS / sqrt(records)
    return SCATTER / sqrt(2), SCATTER / sqrt(2)


def _records(name: str, split: str, entry: Mapping[str, Any], known: Known) -> tuple[int, int]:
    """Return how many records stand on either side of a reading; where there is one side, it counts twice."""
    roles = known.roles
    if name == "class_rate":
        samples = int((entry.get("parameters") or {}).get("samples") or CLASS_SAMPLES)
        return samples, samples
    records = roles.get("forget_test" if split == "forget_test" else "forget", 0)
    if name not in AREAS:
        return records, records
    if name == "streisand":
        return records, roles.get("verification", 0) if known.kind == "records" else records
    if known.kind == "records":
        return records, roles.get("attack", 0)
    pooled = roles.get("forget_test", 0) if (entry.get("parameters") or {}).get("pool_held_out") else 0
    return records, roles.get("forget_attack", 0) + pooled


def _disagreement(name: str, known: Known, held: Earlier | None, split: str) -> float:
    """Return on what share of forgotten records one of two retrained models is right and the other is not."""
    if held is not None:
        return min(1.0, held.variance)
    if known.kind == "class" or split == "forget_test" or name in UNKNOWN_TO_BOTH:
        return DISAGREEMENT["class"]
    return min(1.0, known.wider**2 * (DISAGREEMENT["records"] if known.unseen is None else known.unseen * (1 - known.unseen)))


def _gap(name: str, split: str, known: Known) -> float | None:
    """Return how far the original lies from a retrained model, at least; None where it is not known how often it is right."""
    if known.learned is None or known.unseen is None:
        return None
    learned = known.unseen if split == "forget_test" else known.learned
    if name in SHARES:
        return learned if known.kind == "class" else max(0.0, known.learned - known.unseen)
    if name in AREAS:
        return max(0.0, known.learned - known.unseen) / 2
    return learned / 2 if known.kind == "class" else 0.0


def _of_numbers(
    entry: dict[str, Any],
    facts: dict[str, Any],
    deviation: float,
    scatter: float,
    gap: float | None,
    z: tuple[float, float],
    rng: np.random.Generator,
) -> _Gate:
    """Return a gate whose reading is normal about 0, for the original about `gap`; `scatter` is that of models, which no interval holds."""
    drawn = rng.normal(0.0, sqrt(deviation**2 + scatter**2), DRAWS)
    original = None if gap is None else _away(drawn + gap, entry) - z[1] * deviation
    return _Gate(entry, _away(drawn, entry) + z[0] * deviation, original, facts | {"deviation": round(deviation, 5), "gap": _rounded(gap)})


def _away(values: Floats, entry: Mapping[str, Any]) -> Floats:
    """Return how far differences lie on the side that the gate looks at."""
    return {"max": values, "min": -values}.get(str(entry.get("direction")), np.abs(values))


def _farther(below: Floats, above: Floats, entry: Mapping[str, Any]) -> Floats:
    """Return how far an interval reaches on the side that the gate looks at."""
    return {"max": above, "min": below}.get(str(entry.get("direction")), np.maximum(below, above))


def _of_shares(
    entry: dict[str, Any], facts: dict[str, Any], records: int, apart: float, gap: float | None, z: tuple[float, float], rng: np.random.Generator
) -> _Gate:
    """Return a gate on a paired difference of two shares, by Tango's score interval."""
    low, high = _interval(rng.multinomial(records, [apart / 2, apart / 2, 1 - apart], DRAWS), records, z[0])
    needed = _farther(-low, high, entry)
    original = None
    if gap is not None:
        lost = min(apart / 2, max(0.0, (1 - gap) / 2))
        gained = min(gap + lost, 1.0 - lost)
        below, above = _interval(rng.multinomial(records, [gained, lost, max(0.0, 1 - gained - lost)], DRAWS), records, z[1])
        original = _farther(-above, below, entry)
    return _Gate(entry, needed, original, facts | {"disagreement": round(apart, 4), "gap": _rounded(gap)})


def _interval(counts: NDArray[np.int64], records: int, z: float) -> tuple[Floats, Floats]:
    """Return both ends of the interval of (gained - lost) / records for counts (k, 3) of gained, lost, neither."""
    return score_interval(counts[:, 0], counts[:, 1], records, z=z)


def _kept(known: Known, utility: Mapping[str, Any] | None, *, alpha: float) -> float:
    """Return the chance that a retrained model is not said to have lost more than the floor: it lost nothing, and its drop must be significant."""
    records = known.roles.get("verification", 0) - known.roles.get("forget_test", 0)
    if utility is None or records < 1 or known.unseen is None:
        return 1.0
    deviation = sqrt(max(known.unseen * (1 - known.unseen), 1e-9) / records)
    beyond = NormalDist().inv_cdf(1 - alpha) + float(utility["total"]) / deviation
    return NormalDist().cdf(beyond)


def _not_exposed(readings: Sequence[Mapping[str, Any]], known: Known, *, alpha: float) -> float:
    """Return the chance that no attack on retained records is said to find them better in a retrained model, where it finds them as well as before."""
    chance = 1.0
    for entry in readings:
        if not entry.get("gate") or entry["kind"] != "attack" or not str(entry["split"]).startswith("retain"):
            continue
        records = min(known.roles.get("retain", 0), int((entry.get("parameters") or {}).get("member_rows") or MEMBER_ROWS))
        others = known.roles.get("attack", 0) - known.roles.get("forget_attack", 0)
        if min(records, others) > 0:
            deviation = PAIRED["records"] * sqrt((1 / records + 1 / others) / 12)
            chance *= NormalDist().cdf(NormalDist().inv_cdf(1 - alpha) + float(entry["epsilon"]) / deviation)
    return chance
