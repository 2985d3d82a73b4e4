"""Selective synaptic dampening: weights that matter for the forget set far more than for the whole set are scaled down, by how much is sought.

Source: Foster et al., "Fast Machine Unlearning Without Retraining Through Selective Synaptic Dampening", AAAI 2024 (arXiv 2308.07707).
Differs: no alpha fits all models, so that it is found on the analysis split unless given (a geometric grid, then between the two values where
forgetting enough turns into keeping enough); a given one is doubled while it costs too much, and an alpha that changes nothing is a failure.
Where no alpha will do, it is sought in other forms: a weight cannot matter to single records of a tenth of the data more than ten times as much as
to single records of all of it, so the paper's importances of batches come next, in which what a class has in common stands out; then both at a
strength below the paper's 1. Importance for a forget set is a mean, so that of a large one 2,048 records are drawn.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from services.errors import Diverged
from services.learning.data import Splits
from services.learning.run import Run
from services.learning.task import Task
from services.unlearning.mechanisms.applicability import admit
from services.unlearning.mechanisms.dampening_judge import Form, Judge, Trial
from services.unlearning.mechanisms.guard import GuardFactor, snapshot
from services.unlearning.mechanisms.guarded_edit import GuardedEdit
from services.unlearning.mechanisms.importance import Granule, Importance, ImportanceCache, Importances, Scalar
from services.unlearning.mechanisms.real_judge import RealJudge
from services.unlearning.method import Cost, Gentler, Memory, Needs, UnlearningMethod

GRID = tuple(1000.0 ** (step / 11) for step in range(12))
HALVINGS = 6
FORMS = (Form("per_sample", 1.0), Form("batch", 1.0), Form("per_sample", 0.3), Form("batch", 0.3))


def damped(weights: dict[str, Tensor], forget: Importance, whole: Importance, *, alpha: float, strength: float) -> Iterator[tuple[str, Tensor, int]]:
    """Yield name, new weight and how many values changed: w * min(strength * I_D / I_f, 1) where I_f > alpha * I_D, else w."""
    for name, weight in weights.items():
        factor = (strength * whole[name] / forget[name]).clamp(max=1.0)
        chosen = (forget[name] > alpha * whole[name]) & (factor < 1)
        yield name, torch.where(chosen, weight * factor, weight), int(chosen.sum())


@dataclass(slots=True)
class Dampening:
    """The trials of one run: each edits the model at some alpha and form, always from the weights it held at first.

    Every trial is reported as one of the most that can be, `of`, and listed in the note `trials`.
    """

    model: nn.Module
    importances: Importances
    judge: Judge | RealJudge
    run: Run
    of: int
    tried: list[Trial] = field(default_factory=list)
    original: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.original = snapshot(self.model)

    def attempt(self, alpha: float, form: Form, *, target: bool = True) -> bool:
        """Dampen the model and measure it; return whether enough is kept and, unless `target` is waived, forgotten. Raises Cancelled."""
        self.model.load_state_dict(self.original)
        pair = self.importances.of(form.importance)
        weights = {name: self.original[name] for name in pair.forget}
        held, changed = dict(self.model.named_parameters()), 0
        with torch.no_grad():
            for name, weight, count in damped(weights, pair.forget, pair.whole, alpha=alpha, strength=form.strength):
                held[name].copy_(weight)
                changed += count
        trial = self.judge.look(self.model, alpha, form, changed)
        self.tried.append(trial)
        self.run.note("trials", [each.described() for each in self.tried])
        will_do = trial.floor_met and (trial.target_met or not target)
        self.run.report(self.of if will_do else len(self.tried), self.of, stage="dampen", loss=trial.loss)
        return will_do

    def found(self, form: Form) -> bool:
        """Seek the largest alpha that forgets enough, then keeps enough: over the grid, then between two of its values."""
        first = len(self.tried)
        return any(self.attempt(alpha, form) for alpha in reversed(GRID)) or self._found_between(self.tried[first:], form)

    def _found_between(self, tried: list[Trial], form: Form) -> bool:
        """Halve, on the logarithmic scale, the interval from the largest alpha that forgets enough to the next larger one of the grid."""
        low = next((place for place, trial in enumerate(tried) if trial.target_met), 0)
        if low == 0 or not tried[low - 1].floor_met:
            return False
        below, above = tried[low].alpha, tried[low - 1].alpha
        for _ in range(HALVINGS):
            middle = math.sqrt(below * above)
            if self.attempt(middle, form):
                return True
            below, above = (middle, above) if self.tried[-1].target_met else (below, middle)
        return False

    def why_not(self) -> str:
        """Return why no trial will do, with the one that came nearest."""
        enough = [trial for trial in self.tried if trial.target_met]
        if not enough:
            return f"none forgets enough: {min(self.tried, key=lambda trial: trial.forget).told()}, {self.tried[0].expected:.4g} may be left"
        best = max(enough, key=lambda trial: trial.retain)
        return f"where enough is forgotten, too little is kept: {best.told()}, the floor is {best.floor:.4g}"


class SynapticDampening(UnlearningMethod):
    """The two methods that dampen; they differ in what importance is measured by, `scalar`."""

    tasks = frozenset({"classification"})
    granularities = frozenset({"class", "records"})
    guarantee = "approximate"
    needs = Needs(forget_set=True, retain_set=True)
    cost = Cost(per_forget=3.0, per_retain=3.0)
    memory = Memory(copies=4.0, states=0.0)  # the original, and importances of both sets
    gentler = Gentler("retain_drop", 0.5)
    retries = 0  # there is no rate to lower
    scalar: ClassVar[Scalar]

    class Parameters(UnlearningMethod.Parameters):
        """Parameters of `ssd` and `lfssd`."""

        alpha: float | None = Field(
            None, ge=0.1, le=1000, description="Dampen weights this many times as important for the forget set; null: found on the analysis split."
        )
        strength: float | None = Field(
            None,
            ge=0,
            le=10,
            description="Lambda: a chosen weight is scaled by this times the ratio of importances, at most 1; null: 1, then 0.3 where no alpha will do.",
        )
        importance: Granule | None = Field(
            None,
            description="Gradients of single records, or of the mean over each batch as in the released code; null: of records, then of batches "
            "where no alpha will do.",
        )
        batch_size: int = Field(64, ge=1, le=4096, description="Records per pass; it changes the result of batches alone.")
        forget_rows: int = Field(2048, ge=16, le=10_000_000, description="Most records of the forget set that importance is measured on.")
        backoff_max: int = Field(6, ge=0, le=20, description="How often a given alpha is doubled while too little is kept.")
        forget_target: float = Field(0.05, ge=0, le=1, description="Accuracy on a class, or fit of a range, that counts as forgotten.")
        retain_drop: float = Field(0.05, ge=0, le=1, description="How much accuracy on the other records, or fit, may be lost.")
        guard_factor: GuardFactor = 10.0

    def __init__(self, parameters: object, cache: ImportanceCache | None = None) -> None:
        """`cache` keeps the importance for the whole set under the digest of weights and measure, from one request to the next."""
        super().__init__(parameters)
        self.cache = cache

    def unlearn(self, model: nn.Module, data: Splits, task: Task, run: Run) -> nn.Module:
        """Change `model` in place and return it in eval mode; its buffers stay. x (B, *record), y (B,) int64 or (B, 1) real."""
        admit(self, data, task, run)
        p = self.parameters
        edit = GuardedEdit.of(self, model, data.retain, task, run, stage="dampen")
        family = Judge if task.targets is None else RealJudge
        judge = family.of(model, data, task, edit.guard.probe, run, forget_target=p.forget_target, retain_drop=p.retain_drop)
        importances = Importances(model, data, task, run, self.scalar, p.batch_size, p.forget_rows, self.cache)
        forms = self._forms()
        most = len(forms) * (len(GRID) + HALVINGS) if p.alpha is None else p.backoff_max + 1
        dampening = Dampening(model, importances, judge, run, most)

        def attempt(_: float) -> None:
            if p.alpha is None:
                self._search(dampening, forms)
            else:
                self._back_off(dampening, p.alpha, forms[0])
            trial = dampening.tried[-1]
            facts = {"batch_size": p.batch_size, "importance_cached": importances.of(trial.form.importance).cached}
            edit.planned({"alpha": trial.alpha, "changed": trial.changed, **trial.form.described(), **facts}, len(dampening.tried))

        return edit.carry_out(attempt, ended_by=None)

    def _forms(self) -> tuple[Form, ...]:
        """Return the forms to try: those that do not contradict a given importance or strength."""
        p = self.parameters
        forms = [Form(p.importance or form.importance, form.strength if p.strength is None else p.strength) for form in FORMS]
        return tuple(dict.fromkeys(forms))

    def _search(self, dampening: Dampening, forms: tuple[Form, ...]) -> None:
        if not any(dampening.found(form) for form in forms):
            raise Diverged(method=self.name, stage="dampen", detail=f"no alpha between 1 and 1000 will do: {dampening.why_not()}")
        dampening.run.note("ended_by", "target")

    def _back_off(self, dampening: Dampening, alpha: float, form: Form) -> None:
        for number in range(dampening.of):
            safe = dampening.attempt(alpha * 2**number, form, target=False)
            last = dampening.tried[-1]
            if last.changed == 0:
                raise Diverged(method=self.name, stage="dampen", detail=f"alpha {last.alpha:g} changes no weight")
            if safe:
                dampening.run.note("ended_by", "floor" if number else "alpha")
                return
        last = dampening.tried[-1]
        detail = f"retain accuracy {last.retain:.4g} at alpha {last.alpha:g} is under the floor {last.floor:.4g}, after {dampening.of - 1} doublings"
        raise Diverged(method=self.name, stage="dampen", detail=detail)
