"""The step `verify`: hold the readings against the frozen plan and write the verdict, with every number as a decimal string."""

import json
from collections.abc import Mapping
from typing import Any

from models_store import tensors
from services.jobs.compute.context import Bench
from services.jobs.messages import BASE_FILE, CANDIDATE_FILE, READINGS_FILE, RUN_FILE, VERDICT_FILE
from services.unlearning.method import METHODS
from services.verification.integrity import WeightFacts
from services.verification.reading import Measured, Number, Reading, Unmeasured
from services.verification.verdict import IntegrityFacts, ReadingState, judge

DIGITS = 4


def verify(bench: Bench) -> None:
    """Write `verdict.json`: {verdict: {verdict, codes, sentence, detectable}, readings: [rows of table `reading`]}."""
    measured = [Measured.from_dict(body) for body in json.loads((bench.folder / READINGS_FILE).read_text())]
    found = judge(bench.spec.plan, measured, facts_of(bench))
    states = {(state.kind, state.name, state.split): state for state in found.states}
    planned = {(entry["kind"], entry["name"], entry.get("split")): entry for entry in bench.spec.plan["readings"]}
    rows = [row(reading, states, planned, bench.spec.plan) for reading in measured]
    verdict = {
        "verdict": found.verdict,
        "codes": list(found.codes),
        "sentence": found.sentence,
        "detectable": decimal(found.detectable),
    }
    (bench.folder / VERDICT_FILE).write_text(json.dumps({"verdict": verdict, "readings": rows}))


def facts_of(bench: Bench) -> IntegrityFacts:
    """Return what is known of the run: the candidate's weights compared with the base's, and what the method was given."""
    weights = WeightFacts.of(tensors.load(bench.folder / BASE_FILE), tensors.load(bench.folder / CANDIDATE_FILE), head=bench.architecture.head)
    chosen = METHODS[bench.spec.method or ""]
    run = json.loads((bench.folder / RUN_FILE).read_text())
    return IntegrityFacts(
        finite=weights.finite,
        differs_from_parent=weights.differs,
        head_only=weights.head_only,
        plan_precedes_run=bool(bench.spec.plan),
        fresh_start=bool(run.get("fresh_start", False)),
        forget_read=chosen.needs.forget_set,
        guarantee=str(run.get("guarantee") or chosen.guarantee),
        records=len(bench.splits.forget) or None,  # with no training data held, as many as the gates rest on
    )


def row(
    reading: Measured,
    states: Mapping[tuple[str, str, str], ReadingState],
    planned: Mapping[tuple[str, str, str | None], Mapping[str, Any]],
    plan: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the row of table `reading`: columns before, after, reference, interval of after, band, state."""
    key = (reading.kind, reading.name, reading.split)
    state = states.get(key)
    entry = planned.get(key) or planned.get((reading.kind, reading.name, None)) or {}
    after = reading.after
    reason = after.reason if isinstance(after, Unmeasured) else (state.reason if state is not None and state.reason else None)
    return {
        "kind": reading.kind,
        "name": reading.name,
        "split": reading.split,
        "before": value(reading.before),
        "after": value(after),
        "reference": value(reading.reference),
        "ci_low": decimal(after.low) if isinstance(after, Reading) else None,
        "ci_high": decimal(after.high) if isinstance(after, Reading) else None,
        "level": decimal(after.level) if isinstance(after, Reading) else None,
        "direction": reading.direction,
        "band": band(reading, state),
        "n": after.n if isinstance(after, Reading) else None,
        "seeds": dict(plan["seeds"]),
        "detail": detail(reading, state, entry),
        "state": state.state if state is not None else "info",
        "reason": reason,
    }


def band(reading: Measured, state: ReadingState | None) -> dict[str, Any] | None:
    """Return reference and half-width of the band in force, for a reading that has one."""
    if state is None or state.epsilon is None or reading.direction == "info":
        return None
    return {"reference": value(reading.reference), "epsilon": decimal(state.epsilon), "floor": decimal(reading.floor)}


def detail(reading: Measured, state: ReadingState | None, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return further numbers of the measurement, and what the verdict made of it, as decimal strings."""
    numbers = {"gate": reading.gate, "parameters": strings(entry.get("parameters") or {})}
    if reading.gate and isinstance(reading.before, Reading):  # whoever recomputes the verdict must see how well the test knew the original
        numbers["before"] = {"low": decimal(reading.before.low), "high": decimal(reading.before.high)}
    for name in ("after", "paired", "change"):
        number = getattr(reading, name)
        if isinstance(number, Reading):
            bounds = {} if name == "after" else {"value": decimal(number.value), "low": decimal(number.low), "high": decimal(number.high)}
            numbers[name] = {**bounds, **strings(number.detail)}
    if state is not None:
        numbers |= {"code": state.code or None, "p": decimal(state.p), "detectable": decimal(state.detectable)}
    return numbers


def value(number: Number | None) -> str | None:
    """Return a reading's value as a decimal string; None where there is none."""
    return decimal(number.value) if isinstance(number, Reading) else None


def decimal(number: float | None) -> str | None:
    """Return a number with fixed digits; None and what is not finite become None, so that no float drifts between languages."""
    if number is None or number != number or number in {float("inf"), float("-inf")}:  # noqa: PLR0124  NaN is the one that differs from itself
        return None
    return f"{number:.{DIGITS}f}"


def strings(body: Any) -> Any:
    """Return JSON-able `body` with every float as a decimal string."""
    if isinstance(body, Mapping):
        return {str(key): strings(part) for key, part in body.items()}
    if isinstance(body, list | tuple):
        return [strings(part) for part in body]
    if isinstance(body, float):
        return decimal(body)
    return body
