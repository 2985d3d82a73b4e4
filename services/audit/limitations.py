"""What a report does not show: a closed catalogue of codes with their texts, and when each of them holds.

Each code is considered for every report. The catalogue may grow; a code that is used never changes its meaning.
"""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from services.audit.runs import Run, Subject, deciding
from services.db.tables import DeletionRequest, ReadingRow

SMALL_BATCH = 16
SHADOW_BAND = "shadow-band"
"""The mode of reference in which readings are held against models on random halves of the records."""

LIMITATIONS = {
    "no_retrained_reference": "No retrained reference was available; the readings are compared with nothing that never saw the records.",
    "models_on_halves": "The readings are compared with models that had not seen the record, not with a retrain. Each learned from a random half of the "
    "records: it knows less than a retrained model would, which is allowed for by what held-out records show of it, and it may have seen like records "
    "of the same request, so that what the new model still knows by those can be missed.",
    "power_too_low": "With {n} forgotten records the tests cannot notice a small difference.",
    "power_unknown": "What the tests could tell was not simulated before the run, since it is not known how far two retrained models differ in {gates}.",
    "attack_power": "The attack {name} would have called out a difference of {detectable} and no smaller one; its limit is {epsilon}.",
    "attacks_not_run": "Only the attacks listed here were run; a stronger one may see more.",
    "attack_without_number": "The attack {name} was planned and gave no number: {reason}.",
    "same_seed": "The retrained reference was trained under the seed of the original; its likeness to the original may come from that.",
    "pretrained_backbone": "Both the original and the retrained reference began from the same pre-trained weights; what those weights know is not tested.",
    "few_seeds": "Each model stands for one seed; another seed would give other numbers.",
    "sample_level": "The attacks are on records of a batch, not on one person.",
    "suppression_only": "The outputs no longer show the class; the representation may still hold it ({probe}; {relearned}).",
    "class_left_inside": "Below its outputs the new model still tells the class: a linear probe of its inner features finds it with an AUC of {after}, on the "
    "original with {before}, on the retrained model with {reference}. Whoever has the weights can read it there, or teach it to the outputs again.",
    "censored_relearning": "Relearning was cut off before every run had reached the bar; its numbers are bounds.",
    "reconstruction": "Whoever holds both the old and the new version may reconstruct part of what was forgotten (batch of {batch} requests).",
    "other_people": "The effect of this removal on the privacy of other people was not proved.",
    "poisoned_requests": "Whether the request was crafted to damage the model was tested only by the utility floor.",
    "copies": "Backups, and copies held by recipients, are outside what this service can see.",
    "storage": "Reclaiming storage media is the operator's; superseded versions are quarantined, not yet destroyed.",
    "storage_reclaim": "Superseded versions are unreachable through the S3 API, as their certificates say; reclaiming storage media is the operator's.",
    "log_without_copy": "No witness had signed the log when this report was made: without an outside copy the operator could rewrite this log.",
    "reconstructed_method": "The method {name} is written in the manner of a paper without published code; the authors' own may behave differently.",
    "paper_values": "Default values of {name} are this project's choice where the paper's could not be verified.",
    "process": "The process is attested; absence is not provable.",
}

ALWAYS = ("attacks_not_run", "few_seeds", "sample_level", "other_people", "poisoned_requests", "copies")
RECONSTRUCTED = frozenset({"cascaded_gan", "emmn"})
"""Methods whose paper came without code: their own pages say `in the manner of`."""

ON_CONDITION = {
    "linear_probe_auc": "linear probe",
    "relearn_time": "relearning time",
    "lira": "likelihood-ratio attacks with shadow models",
    "canaries": "backdoor canaries",
}
"""Tests by the name of the reading that would stand for each; what was not read is said to be not tested."""


def limitations(request: DeletionRequest, subjects: Sequence[Subject], runs: Sequence[Run], *, witnessed: bool) -> list[dict[str, str]]:
    """Return the limitations that hold, each with its code and text; first what the reference was not."""
    modes = {str(run.plan_body.get("reference")) for run in runs if run.plan is not None}
    first = [
        *([_entry("no_retrained_reference")] if modes - {"retrained", SHADOW_BAND} else []),
        *([_entry("models_on_halves")] if SHADOW_BAND in modes else []),
    ]
    last = deciding(runs)
    readings = [row for run in last for row in run.readings]
    return [
        *first,
        *(_entry(code) for code in ALWAYS),
        _entry(_storage(subjects)),
        *([] if witnessed else [_entry("log_without_copy")]),
        *_few(request, runs),
        *_unknown_power(last),
        *_reference(subjects, last),
        *_suppression(runs, readings),
        *_left_inside(last),
        *_attacks(readings),
        *([_entry("censored_relearning")] if any(_censored(row) for row in readings) else []),
        *_methods(runs),
    ]


def not_tested(runs: Sequence[Run]) -> list[str]:
    """Return what no reading of the runs stands for."""
    taken = {row.name for run in deciding(runs) for row in run.readings if row.after is not None}
    return [name for reading, name in ON_CONDITION.items() if reading not in taken]


def _entry(code: str, **facts: object) -> dict[str, str]:
    return {"code": code, "text": LIMITATIONS[code].format_map(facts)}


def _storage(subjects: Sequence[Subject]) -> str:
    versions = [version for subject in subjects for version in subject.superseded]
    data = [fate for subject in subjects for fate in subject.data]
    gone = all(version.status == "destroyed" for version in versions) and all(fate.disposition == "purged" for fate in data)
    return "storage_reclaim" if versions and gone else "storage"


def _few(request: DeletionRequest, runs: Sequence[Run]) -> list[dict[str, str]]:
    records = int(request.scope.get("records", 0) or 0)
    batch = max((run.batch for run in runs), default=1)
    return [
        *([_entry("power_too_low", n=records)] if records < SMALL_BATCH else []),
        *([_entry("reconstruction", batch=batch)] if batch < SMALL_BATCH else []),
    ]


def _unknown_power(last: Sequence[Run]) -> list[dict[str, str]]:
    """Return that the power of a plan is not known, with the deciding tests for which it could not be simulated."""
    names = {name for run in last for name in (run.plan_body.get("power") or {}).get("not_simulated", ())}
    return [_entry("power_unknown", gates=", ".join(sorted(name.partition("/")[0].replace("_", " ") for name in names)))] if names else []


def _reference(subjects: Sequence[Subject], last: Sequence[Run]) -> list[dict[str, str]]:
    """Return what the original and its reference have in common beyond the recipe."""
    held = {subject.model.id: subject.model for subject in subjects if subject.model is not None}
    codes: set[str] = set()
    for run in last:
        seeds = run.plan_body.get("seeds", {})
        if seeds.get("reference") is not None and seeds["reference"] == run.job.seeds.get("train"):
            codes.add("same_seed")
        model = held.get(run.job.model_id)
        if (
            model is not None
            and model.architecture == "transformers_lm"
            and (model.architecture_params or {}).get("start", "published") == "published"
        ):
            codes.add("pretrained_backbone")
    return [_entry(code) for code in sorted(codes)]


def _suppression(runs: Sequence[Run], readings: Sequence[ReadingRow]) -> list[dict[str, str]]:
    if not any(run.guarantee == "suppression" for run in runs):
        return []
    probed, again = (_number(readings, name) for name in ("linear_probe_auc", "relearn_time"))
    probe = "no linear probe gave a number" if probed is None else f"a linear probe finds it with an AUC of {probed}"
    relearned = "no relearning test gave a number" if again is None else f"relearning it took {again} steps"
    return [_entry("suppression_only", probe=probe, relearned=relearned)]


def _left_inside(last: Sequence[Run]) -> list[dict[str, str]]:
    """Return that the class is still to be read inside, where a probe finds it better than in the retrained model, beyond its interval."""
    of_class = [run for run in last if run.guarantee == "approximate" and run.plan_body.get("request_kind") == "class"]
    rows = [row for run in of_class for row in run.readings if row.name == "linear_probe_auc"]
    left = [row for row in rows if row.ci_low is not None and row.reference is not None and Decimal(row.ci_low) > Decimal(row.reference)]
    return [_entry("class_left_inside", after=row.after, before=row.before, reference=row.reference) for row in left]


def _number(readings: Sequence[ReadingRow], name: str) -> str | None:
    """Return a reading with that of the retrained model beside it, as words."""
    row = next((row for row in readings if row.name == name and row.after is not None), None)
    if row is None:
        return None
    return f"{row.after}" if row.reference is None else f"{row.after} (the retrained model: {row.reference})"


def _attacks(readings: Sequence[ReadingRow]) -> list[dict[str, str]]:
    """Return which attacks gave no number, and which could not have seen what their limits ask for."""
    found: list[dict[str, str]] = []
    for row in sorted((row for row in readings if row.kind == "attack"), key=lambda row: (row.name, row.split)):
        detail: Mapping[str, Any] = row.detail or {}
        epsilon, detectable = (row.band or {}).get("epsilon"), detail.get("detectable")
        if row.after is None:
            found.append(_entry("attack_without_number", name=row.name, reason=(row.reason or "unknown").replace("_", " ")))
        elif detail.get("gate") and epsilon and detectable and float(detectable) > float(epsilon):
            found.append(_entry("attack_power", name=row.name, detectable=detectable, epsilon=epsilon))
    return [entry for place, entry in enumerate(found) if entry not in found[:place]]


def _censored(row: ReadingRow) -> bool:
    after: Mapping[str, Any] = (row.detail or {}).get("after") or {}
    return (row.name == "relearn_time" and bool(after.get("censored"))) or (row.name in {"ain", "ain_fresh"} and after.get("bound") is not None)


def _methods(runs: Sequence[Run]) -> list[dict[str, str]]:
    names = sorted({run.job.method for run in runs if run.job.method in RECONSTRUCTED})
    return [_entry(code, name=name) for name in names for code in ("reconstructed_method", "paper_values")]
