"""Evaluation: every reading of a plan on the original, the unlearned and the retrained model.

All randomness comes from the plan's evaluation seed and the reading's own name, so a reading does not depend on which others are taken.
Each model's outputs on each set of records are computed once. Those of the judged models on many records are kept in the job's cache, for the
original and the retrained models are the same on every rung of a request; those of reference models that learned from some of the records are not.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from services.learning.cache import Cache, Remembering, model_digest, records_digest, worth_keeping
from services.learning.data import Batch, Split, Splits
from services.learning.recipe import Recipe
from services.learning.run import Run
from services.learning.task import Stepper, Task
from services.verification.attack import ATTACKS
from services.verification.metric import METRICS, Metric, Models
from services.verification.outputs import NO_REFERENCE
from services.verification.reading import Measured, Number, Reading, Unmeasured
from services.verification.reference_attack import ReferenceAttack

UTILITY = ("metric", "accuracy", "retain_test")


class _CachedTask(Task):
    """A task that remembers the outputs of each model on each set of records. The models are held, so that no identity is reused; none is trained on."""

    def __init__(self, inner: Task, batch_size: int, cache: Cache) -> None:
        super().__init__(inner.outputs, label_smoothing=inner.label_smoothing, targets=inner.targets)
        self.name = inner.name  # pyright: ignore[reportAttributeAccessIssue]  the wrapper speaks for the task it wraps
        self.modalities = inner.modalities  # pyright: ignore[reportAttributeAccessIssue]  the wrapper speaks for the task it wraps
        self.loss_unit = inner.loss_unit  # pyright: ignore[reportAttributeAccessIssue]  the wrapper speaks for the task it wraps
        self._inner = inner
        self._batch_size = batch_size
        self._cache = cache
        self.judged: tuple[nn.Module | None, ...] = ()
        self._held: dict[tuple[int, tuple[str, ...]], tuple[nn.Module, Tensor]] = {}
        self._digests: dict[object, str] = {}

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        return self._inner.losses(model, batch)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return self._inner.loss(model, batch)

    def predict(self, model: nn.Module, split: Split, *, batch_size: int = 1024) -> Tensor:  # noqa: ARG002  the plan's size is used
        key = (id(model), split.ids)
        if key not in self._held:
            self._held[key] = (model, self._outputs(model, split))
        return self._held[key][1]

    def _outputs(self, model: nn.Module, split: Split) -> Tensor:
        """Return the outputs of a judged model kept for its weights, the records with their order and the task, row by row, else compute them."""

        def key() -> dict[str, object]:
            return {
                "checkpoint": self._digest(id(model), lambda: model_digest(model)),
                "records": self._digest(split.ids, lambda: records_digest(split)),
                "task": [self.name, self.outputs, None if self.targets is None else self.targets.model_dump(mode="json")],
                "batch": self._batch_size,
            }

        def compute() -> dict[str, Tensor]:
            return {"outputs": self._inner.predict(model, split, batch_size=self._batch_size)}

        if not (any(model is each for each in self.judged) and worth_keeping(model, split)):
            return compute()["outputs"]
        return self._cache.remember("outputs", key, compute, records=split.ids, by_row=True)["outputs"].cpu()

    def _digest(self, name: object, made: Callable[[], str]) -> str:
        if name not in self._digests:
            self._digests[name] = made()
        return self._digests[name]

    def trivial_loss(self, split: Split) -> float:
        return self._inner.trivial_loss(split)

    def check(self, split: Split) -> None:
        self._inner.check(split)

    def stepper(self, model: nn.Module, recipe: Recipe, run: Run, generator: torch.Generator) -> Stepper | None:
        return self._inner.stepper(model, recipe, run, generator)


class _EvaluationRun(Run):
    """A run on the evaluation seed that builds each fresh model once and reports through the job's run."""

    def __init__(self, outer: Run, seed: int) -> None:
        super().__init__(
            seed=seed, device=outer.device, architecture=outer.architecture, recipe=outer.recipe, precision=outer.precision,
            cache=Remembering(outer.cache), spread=outer.spread,
        )  # fmt: skip
        self._outer = outer
        self._built: dict[str, nn.Module] = {}

    def fresh_model(self, purpose: str) -> nn.Module:
        """Return the newly initialised model of `purpose`, the same object at each call."""
        if purpose not in self._built:
            self._built[purpose] = super().fresh_model(purpose)
        return self._built[purpose]

    def report(self, step: int, of: int, *, stage: str = "", **values: float | Tensor) -> None:
        """Report through the job's run, which may raise Cancelled or DeadlineExceeded."""
        self._outer.report(step, of, stage=stage, **values)


def discover() -> None:
    """Import every metric and attack of this distribution."""
    METRICS.discover("services.verification.metrics")
    ATTACKS.discover("services.verification.attacks")


def component_of(entry: Mapping[str, Any], level: float) -> Metric:
    """Return the metric or attack that a plan's reading names, with its parameters.

    Raises:
        UnknownComponent: nothing has that name. ValidationError: a parameter is out of range.
    """
    component = METRICS[entry["name"]] if entry["kind"] == "metric" else ATTACKS[entry["name"]]
    return component(component.Parameters(**{"level": level, **entry.get("parameters", {})}))


def shared(plan: Mapping[str, Any], task: Task, run: Run, models: Models | None = None) -> tuple[Task, Run]:
    """Return task and run as an evaluation uses them: outputs and fresh models are kept, so that readings and figures compute each once.

    What was made so already is returned as it is. Outputs of `models` outlive the evaluation, in the cache of the run.
    """
    cached = task if isinstance(task, _CachedTask) else _CachedTask(task, int(plan.get("batch_size", 1024)), run.cache)
    if models is not None:
        cached.judged = (models.original, models.unlearned, models.retrained, models.retrained_twin)
    if isinstance(run, _EvaluationRun):
        return cached, run
    own = _EvaluationRun(run, int(plan["seeds"]["evaluate"]))
    own.shadow_seed = plan["seeds"].get("shadows")
    return cached, own


def shadows_asked(plan: Mapping[str, Any]) -> set[int]:
    """Return how many models on random halves of the records the readings of a plan ask for, and its reference, each number once.

    Raises as `component_of` does.
    """
    discover()
    asked = {int(plan.get("reference_models", 0))} if plan.get("reference") == "shadow-band" else set[int]()
    components = [component_of(entry, float(plan.get("level", 0.90))) for entry in plan["readings"]]
    return asked | {int(one.parameters.models) for one in components if isinstance(one, ReferenceAttack)}


def evaluate(plan: Mapping[str, Any], models: Models, data: Splits, task: Task, run: Run) -> list[Measured]:
    """Return every reading of the plan, in its order, and retained accuracy last where the plan sets a utility floor without listing it.

    A reading that cannot be taken (no records, no reference, another task) is Unmeasured with its reason.

    Raises:
        UnknownComponent: the plan names no known metric or attack. ParameterOutOfRange: a score seed is one that the method used.
        Cancelled, DeadlineExceeded: through `run.report`.
    """
    discover()
    entries = _entries(plan)
    cached, own_run = shared(plan, task, run, models)
    level = float(plan.get("level", 0.90))
    found: list[Measured] = []
    for step, entry in enumerate(entries):
        own_run.report(step, len(entries), stage="evaluate")
        found.append(_measured(entry, component_of(entry, level), models, data, cached, own_run))
    own_run.report(len(entries), len(entries), stage="evaluate")
    return found


def _entries(plan: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the plan's readings, with retained accuracy where the utility floor needs it."""
    entries: Sequence[Mapping[str, Any]] = plan["readings"]
    listed = {(entry["kind"], entry["name"], entry.get("split")) for entry in entries}
    if plan.get("utility") is None or UTILITY in listed:
        return list(entries)
    kind, name, split = UTILITY
    return [*entries, {"kind": kind, "name": name, "split": split, "direction": "info", "gate": False}]


def _measured(entry: Mapping[str, Any], component: Metric, models: Models, data: Splits, task: Task, run: Run) -> Measured:
    """Return one reading in all its columns."""
    split: str = entry.get("split") or component.splits[0]
    gate = bool(entry.get("gate", False))
    refused = _refused(component, task, split)

    def taken_on(model: nn.Module | None) -> Number:
        if refused is not None:
            return refused
        if model is None:
            return NO_REFERENCE
        return component.measure(models.judged_as(model), data, task, run, split=split)

    def compared_to(model: nn.Module | None) -> Number | None:
        if refused is not None or model is None:
            return refused
        return component.difference(models, data, task, run, split=split, versus=model)

    direction = entry.get("direction", component.direction)
    reference: Number = taken_on(models.retrained)
    paired = compared_to(models.retrained)
    twin = taken_on(models.retrained_twin) if direction == "band" and models.retrained_twin is not None else None
    floor = abs(twin.value - reference.value) if isinstance(twin, Reading) and isinstance(reference, Reading) else None
    if models.unseen is not None and split == "forget_train" and refused is None:
        found = component.beside_unseen(models, data, task, run, split=split, unseen=models.unseen)
        reference, paired, floor = (found, found, None) if isinstance(found, Unmeasured) else (found.reference, found.paired, found.floor)
    return Measured(
        kind=entry["kind"],
        name=entry["name"],
        split=split,
        before=taken_on(models.original),
        after=taken_on(models.unlearned),
        reference=reference,
        paired=paired,
        direction=direction,
        epsilon=float(entry.get("epsilon") or 0.0),
        gate=gate,
        change=None if split.startswith("forget") else compared_to(models.original),
        floor=floor if direction == "band" else None,
        leak_side=component.leak_side,
    )


def _refused(component: Metric, task: Task, split: str) -> Unmeasured | None:
    """Return why the component cannot be taken at all, or None."""
    if task.name not in component.tasks:
        return Unmeasured("task_not_supported")
    if split not in component.splits:
        return Unmeasured("split_not_supported")
    return None
