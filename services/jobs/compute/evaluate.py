"""The step `evaluate`: train the reference, then take every reading of the plan on original, unlearned and retrained model, and draw the figures.

For a training job the step is `measure`: loss and accuracy on training and held-out records, as information.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from services.errors import MethodNotApplicable
from services.jobs.compute.context import Bench, withheld
from services.jobs.messages import BASE_FILE, CANDIDATE_FILE, FIGURES_FILE, READINGS_FILE, REFERENCE_FILE, RUN_FILE, TWIN_FILE
from services.learning.cache import records_digest
from services.learning.data import Split, Splits
from services.learning.modes import evaluating
from services.learning.run import Run, derived_seed
from services.learning.task import Task
from services.unlearning.method import METHODS
from services.verification import evaluation, figure
from services.verification.metric import Models
from services.verification.outputs import outputs_on, rows_of
from services.verification.reading import Measured, Reading, Unmeasured
from services.verification.shadows import Shadows, shadows
from services.verification.statistics.divergence import jensen_shannon_bits

REFERENCES = {"reference": REFERENCE_FILE, "reference_twin": TWIN_FILE}
KEPT = frozenset({"reference", "shadow"})
"""Kinds of what the cache keeps that stand for references."""


def evaluate(bench: Bench) -> None:
    """Write `readings.json`, `figures.json`, and the reference models that the plan asks for; note the digest of the weights that were judged.

    What references took is noted apart from what the readings took: the first is paid once for a dataset version, the second by every job.
    """
    plan = scored_apart(bench.spec.plan, _notes(bench))
    task, run = evaluation.shared(plan, bench.task, bench.run("evaluate", bench.spec.seeds.evaluate))
    found = references(bench, run)
    beside = (found.retrained.get("reference"), found.retrained.get("reference_twin"), found.unseen)
    models = Models(bench.model(BASE_FILE), bench.model(CANDIDATE_FILE), *beside)
    started = time.perf_counter()
    measured = evaluation.evaluate(plan, models, bench.splits, task, run)
    bench.write(READINGS_FILE, json.dumps([reading.as_dict() for reading in measured]))
    bench.write(FIGURES_FILE, json.dumps(figure.drawn(models, bench.splits, task, run, measured)))
    bench.note_cache()  # again: attacks may have trained models of their own, or found them
    moved = drifted(models, bench.splits, task, measured)
    bench.note(evaluation_seconds=time.perf_counter() - started, metrics={}, judged=bench.digest(CANDIDATE_FILE), drift=moved)


@dataclass(frozen=True, slots=True)
class References:
    """What readings are held against: retrained models by purpose, or models on random halves of the records."""

    retrained: Mapping[str, nn.Module] = field(default_factory=dict[str, nn.Module])
    unseen: Shadows | None = None


def references(bench: Bench, run: Run) -> References:
    """Return the models that the plan's readings are held against, trained now or kept from before; note the seconds that took, and which it was.

    Models that attacks of the plan ask for are trained here too, under `run`, which the evaluation goes on with. Raises what training raises.
    """
    started, plan = time.perf_counter(), bench.spec.plan
    retrained = {purpose: _retrained(bench, purpose, file) for purpose, file in REFERENCES.items()} if plan["reference"] == "retrained" else {}
    halves = {number: shadows(bench.splits, bench.task, run, models=number) for number in sorted(evaluation.shadows_asked(plan))}
    if retrained or halves:
        bench.note_cache()
        bench.note(reference_seconds=time.perf_counter() - started, reference_from=_whence(bench))
    unseen = halves[int(plan["reference_models"])] if plan["reference"] == "shadow-band" else None
    return References(retrained, None if isinstance(unseen, Unmeasured) else unseen)


def _whence(bench: Bench) -> Literal["trained", "cache"]:
    """Return whether every reference of the job came from the cache, or one was trained now."""
    known = json.loads((bench.folder / RUN_FILE).read_text()) if (bench.folder / RUN_FILE).exists() else {}
    hits = [entry["hit"] for entry in known.get("derived", []) if entry["kind"] in KEPT]
    return "cache" if hits and all(hits) else "trained"


def drifted(models: Models, splits: Splits, task: Task, measured: Sequence[Measured]) -> dict[str, float]:
    """Return how far the run moved the model, as its ledger counts it, of what can be measured for the task.

    `js` is the mean divergence in bits from the original on all held-out records, `utility_drop` the accuracy lost on retained classes, at least 0.
    """
    found: dict[str, float] = {}
    rows = rows_of(splits, "test")
    if task.name == "classification" and isinstance(rows, Split):
        before, after = (outputs_on(model, rows, task).log_p for model in (models.original, models.unlearned))
        found["js"] = float(jensen_shannon_bits(before, after).mean())
    kept = next((one.change for one in measured if (one.name, one.split) == ("accuracy", "retain_test")), None)
    if isinstance(kept, Reading):
        found["utility_drop"] = max(0.0, -kept.value)
    return {name: round(amount, 6) for name, amount in found.items()}


def scored_apart(plan: Mapping[str, Any], notes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plan with the seed of the method's own random teacher shut out of every ZRF: a score under it would be maximal by construction."""
    seed = notes.get("teacher_seed")
    if seed is None:
        return dict(plan)
    readings = [
        {**reading, "parameters": {**reading.get("parameters", {}), "excluded_seeds": [int(seed)]}} if reading["name"].startswith("zrf") else reading
        for reading in plan["readings"]
    ]
    return {**plan, "readings": readings}


def _notes(bench: Bench) -> dict[str, Any]:
    """Return what the method noted of its run; the file is there after a resume as well."""
    return json.loads((bench.folder / RUN_FILE).read_text()).get("notes", {})


def _retrained(bench: Bench, purpose: str, file: str) -> nn.Module:
    """Return a model trained from nothing on the retain set, under a seed that no other step uses; kept in `file`, and in the cache."""
    if bench.recipe is None:
        raise MethodNotApplicable(method="retrain", detail="the base version has no recipe", could="none")
    if (bench.folder / file).exists():
        return bench.model(file)
    recipe = bench.recipe.model_dump(mode="json")
    seeds = bench.spec.seeds
    run = bench.run(purpose, derived_seed(seeds.evaluate if seeds.reference is None else seeds.reference, purpose))

    def key() -> dict[str, object]:
        return {"records": records_digest(bench.splits.retain), "recipe": recipe, "task": bench.task.name, "seed": run.seed}

    def compute() -> dict[str, Tensor]:
        family = METHODS["retrain"]
        started = time.perf_counter()
        model = family(family.Parameters()).unlearn(bench.model(BASE_FILE), withheld(bench.splits, forget=False, retain=True), bench.task, run)
        seconds = time.perf_counter() - started
        if purpose == "reference":
            bench.note(retrain_seconds=seconds)
        return model.state_dict()

    bench.save_state(bench.cache.remember("reference", key, compute, records=bench.splits.retain.ids), file)
    return bench.model(file).eval()


def measure(bench: Bench) -> None:
    """Write loss and accuracy of a first version on its training and on its held-out records."""
    model = bench.model(CANDIDATE_FILE)
    started = time.perf_counter()
    found = {"train": _score(bench, model, bench.splits.retain)}
    if bench.splits.verification is not None:
        found["test"] = _score(bench, model, bench.splits.verification)
    bench.write(READINGS_FILE, json.dumps(found))
    bench.note(evaluation_seconds=time.perf_counter() - started, metrics=found)


def _score(bench: Bench, model: nn.Module, split: Split) -> dict[str, Any]:
    """Return n, the mean loss where the model has one, and for classification the share of right answers, as decimal strings."""
    if len(split) == 0 or not bench.task.scores(model):
        return {"n": len(split), "loss": None}
    total = 0.0
    with torch.inference_mode(), evaluating(model):
        for batch in split.batches(1024):
            total += float(bench.task.losses(model, batch).double().sum())
    found: dict[str, Any] = {"n": len(split), "loss": f"{total / len(split):.4f}"}
    if bench.task.name == "classification":
        right = bench.task.predict(model, split).argmax(dim=1) == split.y.cpu()
        found["accuracy"] = f"{right.double().mean().item():.4f}"
    return found
