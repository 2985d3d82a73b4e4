"""The verdict: a pure function of the plan, the readings and the facts of the run.

A gating reading is inside its band when its 90 % interval is (two one-sided tests at 5 %), outside when the test that it lies beyond is
significant after Holm's correction over all tests of the plan. Passing needs every gate inside; failing is corrected, so that many tests do
not make honest runs fail. A reading whose band holds the original model as well cannot speak for forgetting and does not count. Nothing passes a plan
that said before the run that it could not be passed, but what an exact method made.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from services.verification import wording
from services.verification.reading import Measured, Number, Reading, Unmeasured
from services.verification.statistics.equivalence import Place, beyond_p, detectable_effect, holm, place
from services.verification.statistics.intervals import Interval

Outcome = Literal["passed", "failed", "inconclusive"]
State = Literal["inside", "outside", "undecided", "insensitive", "info", "null"]

LEAST_RECORDS = 16
WIDEST = 0.15
INFINITE = float("inf")
ORDER = ("integrity", "leak", "over_unlearned", "representation", "retain_leak", "utility", "cannot_pass")


@dataclass(frozen=True, slots=True)
class IntegrityFacts:
    """What is known of the run beside its readings.

    `fresh_start`: no weight of the original (or only a state older than the records) was used. `forget_read`: the run read a listed record.
    `head_only`: nothing but the last layer changed, so that whatever the layers below hold of the records they still hold; only a run that claims
    suppression, or a certificate for the head, may pass like that.
    """

    finite: bool
    differs_from_parent: bool
    plan_precedes_run: bool
    fresh_start: bool
    forget_read: bool
    guarantee: str
    version: str = ""
    records: int | None = None
    head_only: bool = False


@dataclass(frozen=True, slots=True)
class ReadingState:
    """Where one reading of the plan lies. `epsilon` is the half-width in force; `detectable` the difference that would have been called outside."""

    kind: str
    name: str
    split: str
    state: State
    code: str = ""
    reason: str = ""
    epsilon: float | None = None
    p: float | None = None
    detectable: float | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict, why (`codes`, most serious first), the sentence a person reads, and the state of each reading.

    `detectable`: when passed, the difference that the tests would have noticed; otherwise the smallest that would have been called outside.
    """

    verdict: Outcome
    codes: tuple[str, ...]
    sentence: str
    states: tuple[ReadingState, ...] = ()
    detectable: float | None = None


@dataclass(frozen=True, slots=True)
class _Comparison:
    """One interval held against one band; `code` per side, `must_be_inside` says whether passing needs it inside.

    Where there is a number `besides`, it must lie beyond the band as well: both are tested at the level of one (an intersection-union test).
    """

    number: Reading
    band: Interval
    above: str
    below: str
    must_be_inside: bool = True
    besides: Reading | None = None

    @property
    def interval(self) -> Interval:
        return Interval(self.number.low, self.number.high)

    @property
    def p(self) -> float:
        """Return how likely so great a distance is within the band."""
        numbers = [self.number, *([self.besides] if self.besides is not None else [])]
        return max(beyond_p(one.value, Interval(one.low, one.high), self.band, level=one.level) for one in numbers)

    @property
    def side(self) -> str:
        return self.above if self.number.value > self.band.high else self.below


@dataclass(slots=True)
class _Gate:
    """One gating reading on its way to a state."""

    kind: str
    name: str
    split: str
    epsilon: float
    comparisons: list[_Comparison] = field(default_factory=list["_Comparison"])
    missing: str = ""
    sensitive: bool = False
    about_forgetting: bool = True
    significant: list[bool] = field(default_factory=list[bool])


def judge(plan: Mapping[str, Any], readings: Sequence[Measured], facts: IntegrityFacts) -> Verdict:
    """Return the verdict. Band, direction and gate are the plan's, not the reading's; a planned reading that is missing is null."""
    held = {(reading.kind, reading.name, reading.split): reading for reading in readings}
    told = plan.get("sensitivity") == "interval"
    gates = [_gate(entry, held, told=told) for entry in plan["readings"] if entry.get("gate", False)]
    utility = _utility_gate(plan, held)
    family = [*gates, *([utility] if utility is not None else [])]
    alpha = float(plan.get("alpha", 0.05)) / int(plan.get("looks", 1))
    least = int(plan.get("least_records", 0))  # with fewer behind a number its interval does not hold, and decides nothing
    comparisons = [comparison for gate in family for comparison in gate.comparisons]
    flags = holm([1.0 if each.must_be_inside and each.number.n < least else each.p for each in comparisons], alpha=alpha)
    tests = len(flags)
    for gate in family:
        gate.significant = [flags.pop(0) for _ in gate.comparisons]
    states = tuple(_state(gate, readings, alpha=alpha, tests=tests) for gate in family)
    exact = facts.guarantee == "exact"
    deciding = [state for gate, state in zip(family, states, strict=True) if not exact or gate is utility]
    codes = [state.code for state in deciding if state.state == "outside"]
    if not _intact(facts):
        codes.append("integrity")
    if facts.head_only and facts.guarantee == "approximate":
        codes.append("representation")
    shown = (*states, *_informative(plan, readings, family))
    return _conclusion(plan, facts, _Findings(gates, utility, states, tuple(deciding), codes, shown))


@dataclass(frozen=True, slots=True)
class _Findings:
    gates: list[_Gate]
    utility: _Gate | None
    states: tuple[ReadingState, ...]
    deciding: tuple[ReadingState, ...]
    codes: list[str]
    shown: tuple[ReadingState, ...]


def _conclusion(plan: Mapping[str, Any], facts: IntegrityFacts, found: _Findings) -> Verdict:
    """Return the verdict of the states."""
    of_gates = found.states[: len(found.gates)]
    noticed = [state.detectable for state in of_gates if state.detectable is not None]
    smallest = max(noticed) if noticed else None
    ladder: Mapping[str, Any] = plan.get("ladder") or {}
    if found.codes:
        codes = tuple(code for code in ORDER if code in found.codes)
        return Verdict("failed", codes, wording.failed(codes, ladder=ladder), found.shown, smallest)
    n = facts.records if facts.records is not None else _records(found.gates)
    reasons = [state.reason for state in found.deciding if state.reason]

    power: Mapping[str, Any] = plan.get("power") or {}
    foreseen = bool(power.get("cannot_pass", False))

    def unsaid(codes: tuple[str, ...], detectable: float | None) -> str:
        chances = (power.get("retrained_passes"), power.get("original_fails")) if foreseen else None
        return wording.inconclusive(n=n, codes=codes, reasons=reasons, detectable=detectable, ladder=ladder, chances=chances)

    if facts.guarantee == "exact":
        if found.utility is not None and found.utility.missing:
            return Verdict("inconclusive", (), unsaid((), None), found.shown, smallest)
        return Verdict("passed", (), wording.passed_exact(version=facts.version, n=n), found.shown, smallest)
    counting = [state for state in of_gates if state.state == "inside"]
    forgetting = [gate for gate in found.gates if gate.about_forgetting]
    blind = not any(gate.sensitive for gate in forgetting) and not all(gate.missing for gate in forgetting)
    if blind or not forgetting or foreseen:
        codes = ("cannot_pass",)
        return Verdict("inconclusive", codes, unsaid(codes, smallest), found.shown, smallest)
    open_states = [state for state in found.deciding if state.state in {"undecided", "null"}]
    proven = any(gate.sensitive and state.state == "inside" for gate, state in zip(found.gates, of_gates, strict=True) if gate.about_forgetting)
    if open_states or not proven:
        return Verdict("inconclusive", (), unsaid((), smallest), found.shown, smallest)
    limit = max(state.epsilon or 0.0 for state in counting)
    sentence = wording.passed(
        tests=len(counting),
        reference=str(plan.get("reference", "retrained")),
        set_on=plan.get("set_on"),
        detectable=limit,
        suppression=facts.guarantee == "suppression",
        absolute=all(entry.get("absolute", False) for entry in plan["readings"] if entry.get("gate", False)),
    )
    return Verdict("passed", (), sentence, found.shown, limit)


def _intact(facts: IntegrityFacts) -> bool:
    """Return whether the run is what it claims to be."""
    process = facts.fresh_start and not facts.forget_read if facts.guarantee == "exact" else True
    return facts.finite and facts.differs_from_parent and facts.plan_precedes_run and process


def _records(gates: Sequence[_Gate]) -> int:
    """Return the number of forgotten records that the gates rest on."""
    return max((comparison.number.n for gate in gates for comparison in gate.comparisons if gate.about_forgetting), default=0)


def _gate(entry: Mapping[str, Any], held: Mapping[tuple[str, str, str], Measured], *, told: bool) -> _Gate:
    """Return the comparisons of one gating entry of the plan.

    It is sensitive where it finds the original outside the band: with its whole interval where it has to be `told`, by its value alone in plans of before.
    """
    split = str(entry.get("split") or "forget_train")
    epsilon = float(entry.get("epsilon") or 0.0)
    gate = _Gate(entry["kind"], entry["name"], split, epsilon, about_forgetting=split.startswith("forget"))
    reading = held.get((gate.kind, gate.name, split))
    if reading is None:
        gate.missing = "not_measured"
        return gate
    direction = str(entry.get("direction", reading.direction))
    if not gate.about_forgetting:
        return _retained_gate(gate, reading, direction)
    if entry.get("absolute", False):
        return _absolute_gate(gate, reading, direction, told=told)
    return _forget_gate(gate, reading, direction, told=told)


def _sensitive(before: Number | None, band: Interval, *, told: bool) -> bool:
    """Say whether a reading of the original lies beyond the band."""
    if not isinstance(before, Reading):
        return False
    found = Interval(before.low, before.high) if told else Interval(before.value, before.value)
    return place(found, band) in {Place.ABOVE, Place.BELOW}


def _forget_gate(gate: _Gate, reading: Measured, direction: str, *, told: bool) -> _Gate:
    """Hold a reading on forgotten records against the retrained model's."""
    after, reference = reading.after, reading.reference
    if not isinstance(after, Reading):
        gate.missing = after.reason
        return gate
    if not isinstance(reference, Reading):
        gate.missing = reference.reason if isinstance(reference, Unmeasured) else "no_retrained_reference"
        return gate
    if reading.floor is not None:
        gate.epsilon = max(gate.epsilon, min(reading.floor, WIDEST))
    low = -gate.epsilon if direction in {"band", "min"} else -INFINITE
    high = gate.epsilon if direction in {"band", "max"} else INFINITE
    above, below = _codes(reading.leak_side)
    if isinstance(reading.paired, Reading):
        comparison = _Comparison(reading.paired, Interval(low, high), above, below)
    else:
        comparison = _Comparison(after, Interval(reference.value + low, reference.value + high), above, below)
    gate.comparisons.append(comparison)
    gate.sensitive = _sensitive(reading.before, Interval(reference.value + low, reference.value + high), told=told)
    return gate


def _absolute_gate(gate: _Gate, reading: Measured, direction: str, *, told: bool) -> _Gate:
    """Hold a reading on forgotten records against a number of the plan, where there is no reference to hold it against."""
    if not isinstance(reading.after, Reading):
        gate.missing = reading.after.reason
        return gate
    bound = Interval(-INFINITE, gate.epsilon) if direction == "max" else Interval(gate.epsilon, INFINITE)
    gate.comparisons.append(_Comparison(reading.after, bound, *_codes(reading.leak_side)))
    gate.sensitive = _sensitive(reading.before, bound, told=told)
    return gate


def _retained_gate(gate: _Gate, reading: Measured, direction: str) -> _Gate:
    """Hold a reading on retained records against the original's, and a floor against the retrained model's as well."""
    high = gate.epsilon if direction in {"band", "max"} else INFINITE
    low = -gate.epsilon if direction in {"band", "min"} else -INFINITE
    known_better = "retain_leak" if reading.kind == "attack" or (reading.split == "retain_train" and reading.leak_side == "above") else "utility"
    above, below = known_better, "retain_leak" if reading.kind == "attack" else "utility"
    numbers: list[Number | None] = [reading.change]
    if direction != "max" and reading.kind == "metric":
        numbers.append(reading.paired)
    for number in numbers:
        if isinstance(number, Unmeasured):
            gate.missing = number.reason
        if isinstance(number, Reading):
            # a drop or a rise has to be shown, not excluded: few records must not fail an honest run, and forgetting is judged elsewhere
            gate.comparisons.append(_Comparison(number, Interval(low, high), above, below, must_be_inside=False))
    if not gate.comparisons and not gate.missing:
        gate.missing = reading.after.reason if isinstance(reading.after, Unmeasured) else "no_paired_form"
    return gate


def _codes(leak_side: str) -> tuple[str, str]:
    """Return the codes of lying above and below the band."""
    return {"above": ("leak", "over_unlearned"), "below": ("over_unlearned", "leak")}.get(leak_side, ("unsigned", "unsigned"))


def _utility_gate(plan: Mapping[str, Any], held: Mapping[tuple[str, str, str], Measured]) -> _Gate | None:
    """Return the paired drop on the retained classes, in total and for each class, held against the plan's floors.

    Where the plan says `besides` retrained, a drop counts that is one from the original and from the retrained model: what retraining itself costs is
    no fault of a method.
    """
    limits = plan.get("utility")
    if limits is None:
        return None
    gate = _Gate("metric", "utility", "retain_test", float(limits["total"]), about_forgetting=False)
    reading = held.get(("metric", "accuracy", "retain_test"))
    change = reading.change if reading is not None else None
    if not isinstance(change, Reading):
        gate.missing = change.reason if isinstance(change, Unmeasured) else "not_measured"
        return gate
    besides = limits.get("besides") == "retrained"
    paired = reading.paired if besides and reading is not None and isinstance(reading.paired, Reading) else None
    floor, worst = Interval(-gate.epsilon, INFINITE), Interval(-float(limits["worst_class"]), INFINITE)
    gate.comparisons.append(_Comparison(change, floor, "utility", "utility", must_be_inside=False, besides=paired))
    theirs = _per_class(paired) if paired is not None else {}
    for label, number in _per_class(change).items():
        gate.comparisons.append(_Comparison(number, worst, "utility", "utility", must_be_inside=False, besides=theirs.get(label)))
    return gate


def _per_class(number: Reading) -> dict[str, Reading]:
    """Return the paired difference of each class, by label."""
    classes: Any = number.detail.get("per_class", {})
    return {label: Reading(row["value"], row["low"], row["high"], number.level, row["n"]) for label, row in classes.items()}


def _state(gate: _Gate, readings: Sequence[Measured], *, alpha: float, tests: int) -> ReadingState:
    """Return the state of a gate whose comparisons have been corrected."""
    head = (gate.kind, gate.name, gate.split)
    if gate.missing or not gate.comparisons:
        return ReadingState(*head, "null", reason=gate.missing or "not_measured", epsilon=gate.epsilon)
    p = min(comparison.p for comparison in gate.comparisons)
    first = gate.comparisons[0]
    half = (first.number.high - first.number.low) / 2
    noticed = detectable_effect(half, gate.epsilon, level=first.number.level, alpha=alpha, tests=tests)
    facts: dict[str, Any] = {"epsilon": gate.epsilon, "p": p, "detectable": noticed}
    outside = [comparison for comparison, flag in zip(gate.comparisons, gate.significant, strict=True) if flag]
    if outside:
        code = outside[0].side
        return ReadingState(*head, "outside", code=_signed(readings) if code == "unsigned" else code, **facts)
    binding = [comparison for comparison in gate.comparisons if comparison.must_be_inside]
    if any(comparison.number.n < LEAST_RECORDS for comparison in binding):
        return ReadingState(*head, "undecided", reason="too_few_records", **facts)
    if any(place(comparison.interval, comparison.band) is not Place.INSIDE for comparison in binding):
        return ReadingState(*head, "undecided", **facts)
    if gate.about_forgetting and not gate.sensitive:
        return ReadingState(*head, "insensitive", reason="the original model does not lie beyond the band", **facts)
    return ReadingState(*head, "inside", **facts)


def _signed(readings: Sequence[Measured]) -> str:
    """Return which failure a distance shows, read from the largest difference among the readings that have a sign."""
    differences: list[float] = []
    for reading in readings:
        if not reading.split.startswith("forget") or reading.leak_side == "unsigned" or not isinstance(reading.paired, Reading):
            continue
        differences.append(reading.paired.value if reading.leak_side == "above" else -reading.paired.value)
    largest = max(differences, key=abs, default=0.0)
    return "over_unlearned" if largest < 0 else "leak"


def _informative(plan: Mapping[str, Any], readings: Sequence[Measured], family: Sequence[_Gate]) -> list[ReadingState]:
    """Return the states of the readings that do not gate, planned or not."""
    gating = {(gate.kind, gate.name, gate.split) for gate in family}
    epsilons = {(e["kind"], e["name"], e.get("split")): e.get("epsilon") for e in plan["readings"]}
    found: list[ReadingState] = []
    for reading in readings:
        head = (reading.kind, reading.name, reading.split)
        if head in gating:
            continue
        if isinstance(reading.after, Unmeasured):
            found.append(ReadingState(*head, "null", reason=reading.after.reason))
        else:
            found.append(ReadingState(*head, "info", epsilon=epsilons.get(head)))
    return found
