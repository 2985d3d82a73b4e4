"""The sentences of a verdict. They speak of tests and of what those would have noticed; they never claim more than was measured."""

from collections.abc import Mapping, Sequence
from typing import Any

REFERENCES = {
    "retrained": "a model retrained without these records",
    "shadow-band": "models that had not seen the record (not like a retrain)",
    "none": "records that were never trained on",
}

PASSED = (
    "In {tests}, the new model behaved like {reference} within the limits set {when}. "
    "The tests would have noticed a difference larger than {detectable}. This is evidence, not proof of absence."
)
PASSED_ABSOLUTE = (
    "In {tests}, on records that it never saw, the new model stayed within the limits set {when}: it recognises at most {detectable} of what was to "
    "be forgotten. No training data are held, so there is no retrained model to compare it with. This is evidence, not proof of absence."
)
PASSED_EXACT = (
    "{version} was computed from a fresh start (or from a state older than the records) without reading the {n} listed records. "
    "Anyone holding the inputs can repeat the run on the named hardware and software and compare digests."
)
FAILED = "The new model was not published: {reason}. {step}"
INCONCLUSIVE = "With {n} records the tests cannot tell the new model from, nor equate it with, one that never saw them. {step}"
SUPPRESSION = "Its outputs were tested; the representation may still hold what was to be forgotten."
NOT_DETECTED = "Not detected with this power: a difference of {detectable} would have been."
NO_REFERENCE = "No retrained reference was available."
FORESEEN = (
    "The plan said so before the run: a model retrained without the records would pass it with a chance of {passes}, and the original would fail it "
    "with a chance of {fails}."
)
UNKNOWN = "unknown size"
INSENSITIVE = "The original model lies within the limits too, so these tests cannot show that anything was forgotten."

REASONS = {
    "leak": "the tests show that it still treats the listed records as records it was trained on",
    "over_unlearned": "it treats the listed records as stranger than records it never saw, which is itself a trace of them",
    "utility": "on what it should keep it lost more accuracy than the limit allows",
    "representation": "only its last layer was changed: whatever the layers below it learned from the listed records is still there",
    "retain_leak": "it exposes the remaining records to a membership attack more than the original did",
    "integrity": "the run, its inputs or its weights could not be confirmed",
}
STEPS = {
    "next": "The next method of the policy is tried; the last is always a retrain.",
    "next_of_few": "The next method of the policy is tried. A retrain is not possible: {why}.",
    "none_left": "No further method of the policy can serve the request; a person has to decide.",
    "none_left_of_few": "No further method of the policy can serve the request, and a retrain is not possible: {why}. A person has to decide.",
    "integrity": "A person has to look into the run before anything else is tried.",
    "cannot_pass": "The request goes to an exact retrain.",
    "again": "The retraining is made once more, under a fresh seed.",
    "gentler": "The same method is tried once more, at reduced strength.",
}
NO_RETRAIN = {
    "no_data": "nothing of the training data is held",
    "no_recipe": "the version came without a training recipe",
    "data_in_part": "only a part of what the version learned from is held in one dataset",
}


def shown(number: float) -> str:
    """Return a number for a sentence, with as many digits as it carries: 0.05, 0.0123."""
    return f"{number:.4f}".rstrip("0").rstrip(".")


def passed(*, tests: int, reference: str, set_on: str | None, detectable: float, suppression: bool, absolute: bool = False) -> str:
    """Return the sentence of a model that passed by tests; `absolute` when every bound was a number and none a retrained model."""
    count = "1 test" if tests == 1 else f"{tests} tests"
    when = f"on {set_on}" if set_on else "before the run"
    named = REFERENCES.get(reference, REFERENCES["retrained"])
    sentence = (PASSED_ABSOLUTE if absolute else PASSED).format(tests=count, reference=named, when=when, detectable=shown(detectable))
    return f"{sentence} {SUPPRESSION}" if suppression else sentence


def passed_exact(*, version: str, n: int) -> str:
    """Return the sentence of a model that was computed without the records."""
    return PASSED_EXACT.format(version=f"Version {version}" if version else "The new version", n=n)


def step(codes: Sequence[str], ladder: Mapping[str, Any]) -> str:
    """Return the sentence of what comes after a verdict that did not pass, by what the plan says of its `ladder`.

    `next` is the method of the next rung, None where there is none; `no_retrain` a key of NO_RETRAIN, None where the ladder ends in a retrain; `again`
    says that a retraining which lost too much is made once more, `gentler` that another method is, at reduced strength.
    A plan that says nothing of its ladder has a retrain at its end.
    """
    if "integrity" in codes:
        return STEPS["integrity"]
    if set(codes) == {"utility"} and ladder.get("again"):
        return STEPS["again"]
    if set(codes) == {"utility"} and ladder.get("gentler"):
        return STEPS["gentler"]
    name = "none_left" if ladder.get("next", "") is None else "next"
    why = NO_RETRAIN.get(str(ladder.get("no_retrain")))
    if "cannot_pass" in codes and name == "next" and why is None:
        return STEPS["cannot_pass"]
    return STEPS[name] if why is None else STEPS[f"{name}_of_few"].format(why=why)


def failed(codes: Sequence[str], *, ladder: Mapping[str, Any] | None = None) -> str:
    """Return the sentence of a model that failed for `codes`."""
    return FAILED.format(reason="; ".join(REASONS[code] for code in codes), step=step(codes, ladder or {}))


def inconclusive(
    *, n: int, codes: Sequence[str], reasons: Sequence[str], detectable: float | None, ladder: Mapping[str, Any] | None = None,
    chances: tuple[float | None, float | None] | None = None,
) -> str:  # fmt: skip
    """Return the sentence of a model about which the tests say nothing; `chances` are those of a plan that could not be passed by its own account."""
    parts = [INCONCLUSIVE.format(n=n, step=step(codes, ladder or {}))]
    if chances is not None:
        passes, fails = (UNKNOWN if chance is None else shown(chance) for chance in chances)
        parts.append(FORESEEN.format(passes=passes, fails=fails))
    elif "cannot_pass" in codes:
        parts.append(INSENSITIVE)
    if "no_retrained_reference" in reasons:
        parts.append(NO_REFERENCE)
    if detectable is not None:
        parts.append(NOT_DETECTED.format(detectable=shown(detectable)))
    return " ".join(parts)
