"""Selective synaptic dampening: weights that matter for the forget set far more than for the whole set are scaled down, by how much is sought.

Source: Foster et al., "Fast Machine Unlearning Without Retraining Through Selective Synaptic Dampening", AAAI 2024 (arXiv 2308.07707).
Differs: no alpha fits all models, so that it is found on the analysis split unless given (a geometric grid, then between the two values where
forgetting enough turns into keeping enough); a given one is doubled while it costs too much, and an alpha that changes nothing is a failure.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from services.errors import Diverged
from services.learning.data import Split, Splits
from services.learning.run import Run
from services.learning.task import Task
from services.unlearning.mechanisms.accuracy import Matched
from services.unlearning.mechanisms.applicability import admit
from services.unlearning.mechanisms.guard import Guard, snapshot
from services.unlearning.mechanisms.importance import Granule, Importance, ImportanceCache, Measure, Scalar, Whole, importance
from services.unlearning.mechanisms.real_judge import RealJudge
from services.unlearning.method import Cost, Needs, UnlearningMethod

GRID = tuple(1000.0 ** (step / 11) for step in range(12))
HALVINGS = 6
FORGET_ROWS, KEPT_ROWS = 500, 1_000


def damped(weights: dict[str, Tensor], forget: Importance, whole: Importance, *, alpha: float, strength: float) -> Iterator[tuple[str, Tensor, int]]:
    """Yield name, new weight and how many values changed: w * min(strength * I_D / I_f, 1) where I_f > alpha * I_D, else w."""
    for name, weight in weights.items():
        factor = (strength * whole[name] / forget[name]).clamp(max=1.0)
        chosen = (forget[name] > alpha * whole[name]) & (factor < 1)
        yield name, torch.where(chosen, weight * factor, weight), int(chosen.sum())


@dataclass(frozen=True, slots=True)
class Trial:
    """What one alpha led to. `forget` and `expected` are compared: the forget set's figure, and what it must not exceed."""

    alpha: float
    changed: int
    forget: float
    expected: float
    retain: float
    floor: float
    loss: float

    @property
    def target_met(self) -> bool:
        """Whether enough is forgotten."""
        return self.changed > 0 and self.forget <= self.expected

    @property
    def floor_met(self) -> bool:
        """Whether enough is kept."""
        return self.retain >= self.floor

    def described(self) -> dict[str, object]:
        """Return the trial for the report."""
        facts = {"alpha": self.alpha, "changed": self.changed, "forget": self.forget, "expected": self.expected}
        return {**facts, "retain": self.retain, "floor": self.floor}


def hits(logits: Tensor, y: Tensor) -> Tensor:
    """Return 1 for each row that is right, else 0, (n,) float64."""
    return (logits.argmax(dim=1) == y.cpu()).double()


def certainty(logits: Tensor, y: Tensor) -> Tensor:
    """Return the probability of each row's label, (n,) float64."""
    return logits.double().softmax(dim=1).gather(1, y.cpu()[:, None])[:, 0]


@dataclass(frozen=True, slots=True)
class Judge:
    """Says of a model whether it has forgotten enough and kept enough, on forget set and analysis split.

    A class is forgotten when the accuracy on its records, those of the analysis split and those of the forget set, is at most
    `forget_target`; records are, when the model is no surer of them than the original is of held-out records of the same classes. Enough is
    kept while the accuracy on the other rows of the analysis split (of the retain set where it has none) is `retain_drop` lower at most.
    """

    data: Splits
    task: Task
    kept: Split
    forget: Split
    forget_target: float
    floor: float

    @classmethod
    def of(cls, model: nn.Module, data: Splits, task: Task, probe: Split, run: Run, *, forget_target: float, retain_drop: float) -> "Judge":
        """Measure the original. Of many records a sample is looked at: each trial costs a pass over what the judge holds."""
        kept = data.analysis.with_labels(data.classes, keep=False) if data.kind == "class" else data.analysis
        kept = (kept if len(kept) else probe).sample(KEPT_ROWS, run.stream("judge/kept"))
        forget = data.forget.sample(FORGET_ROWS, run.stream("judge/forget"))
        before = float(hits(task.predict(model, kept), kept.y).mean())
        target = forget_target
        if data.kind == "records":
            matched = Matched.to(data.forget, data.analysis)
            held_out = certainty(task.predict(model, data.analysis), data.analysis.y) if matched else certainty(task.predict(model, probe), probe.y)
            target = float((held_out * matched.weights).sum() if matched else held_out.mean())
        return cls(data, task, kept, forget, target, before - retain_drop)

    def look(self, model: nn.Module, alpha: float, changed: int) -> Trial:
        """Measure an edited model."""
        logits = self.task.predict(model, self.kept)
        loss = float(-certainty(logits, self.kept.y).clamp(min=1e-300).log().mean())
        return Trial(alpha, changed, self._forgotten(model), self.forget_target, float(hits(logits, self.kept.y).mean()), self.floor, loss)

    def _forgotten(self, model: nn.Module) -> float:
        forget = self.forget
        if self.data.kind == "records":
            return float(certainty(self.task.predict(model, forget), forget.y).mean())
        held_out = self.data.analysis.with_labels(self.data.classes, keep=True)
        return max(float(hits(self.task.predict(model, part), part.y).mean()) for part in (forget, held_out) if len(part))


def judge_of(model: nn.Module, data: Splits, task: Task, probe: Split, run: Run, *, forget_target: float, retain_drop: float) -> Judge | RealJudge:
    """Return the judge of the task's models."""
    family = Judge if task.targets is None else RealJudge
    return family.of(model, data, task, probe, run, forget_target=forget_target, retain_drop=retain_drop)


def look_at(judge: Judge | RealJudge, model: nn.Module, alpha: float, changed: int) -> Trial:
    """Measure an edited model."""
    if isinstance(judge, Judge):
        return judge.look(model, alpha, changed)
    kept = judge.fit(model, judge.kept)
    return Trial(alpha, changed, judge.fit(model, judge.forget), judge.expected, kept, judge.floor, (1 - kept) * judge.unit)


@dataclass(slots=True)
class Dampening:
    """One run's weights, importances and judge: `attempt` edits the model at any alpha, always from the weights it held at first."""

    model: nn.Module
    forget: Importance
    whole: Importance
    strength: float
    judge: Judge | RealJudge
    original: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.original = snapshot(self.model)

    def attempt(self, alpha: float) -> Trial:
        """Dampen the model at `alpha` and measure it."""
        weights = {name: self.original[name] for name in self.forget}
        held, changed = dict(self.model.named_parameters()), 0
        with torch.no_grad():
            for name, weight, count in damped(weights, self.forget, self.whole, alpha=alpha, strength=self.strength):
                held[name].copy_(weight)
                changed += count
        return look_at(self.judge, self.model, alpha, changed)

    def restore(self) -> None:
        """Put the original weights back."""
        self.model.load_state_dict(self.original)


class SynapticDampening(UnlearningMethod):
    """The two methods that dampen; they differ in what importance is measured by, `scalar`."""

    tasks = frozenset({"classification"})
    granularities = frozenset({"class", "records"})
    guarantee = "approximate"
    needs = Needs(forget_set=True, retain_set=True)
    cost = Cost(per_forget=3.0, per_retain=3.0)
    scalar: ClassVar[Scalar]

    class Parameters(UnlearningMethod.Parameters):
        """Parameters of `ssd` and `lfssd`."""

        alpha: float | None = Field(
            None, ge=0.1, le=1000, description="Dampen weights this many times as important for the forget set; null: found on the analysis split."
        )
        strength: float = Field(1.0, ge=0, le=10, description="Lambda: a chosen weight is scaled by this times the ratio of importances, at most 1.")
        importance: Granule = Field("per_sample", description="Gradients of single records, or of the mean over each batch as in the released code.")
        batch_size: int = Field(64, ge=1, le=4096, description="Records per pass; it changes the result for importance `batch` alone.")
        backoff_max: int = Field(6, ge=0, le=20, description="How often a given alpha is doubled while too little is kept.")
        forget_target: float = Field(0.05, ge=0, le=1, description="Accuracy on a class, or fit of a range, that counts as forgotten.")
        retain_drop: float = Field(0.05, ge=0, le=1, description="How much accuracy on the other records, or fit, may be lost.")
        guard_factor: float = Field(10.0, ge=1.5, le=100, description="Stop when the retain loss exceeds this many times its first value.")

    def __init__(self, parameters: object, cache: ImportanceCache | None = None) -> None:
        """`cache` keeps the importance for the whole set under the digest of weights and measure, from one request to the next."""
        super().__init__(parameters)
        self.cache = cache

    def unlearn(self, model: nn.Module, data: Splits, task: Task, run: Run) -> nn.Module:
        """Change `model` in place and return it in eval mode; its buffers stay. x (B, *record), y (B,) int64."""
        admit(self, data, task, run)
        p = self.parameters
        guard = Guard.around(self.name, model, data.retain, task, run, factor=p.guard_factor)
        judge = judge_of(model, data, task, guard.probe, run, forget_target=p.forget_target, retain_drop=p.retain_drop)
        measure = Measure(self.scalar, p.importance, p.batch_size)
        forget = importance(model, data.forget, task, run, measure, stage="importance_forget")
        whole, cached = Whole.of(data.forget, data.retain).importance(model, task, run, measure, self.cache)
        dampening = Dampening(model, forget, whole, p.strength, judge)
        try:
            trial, trials = self._search(dampening, run) if p.alpha is None else self._back_off(dampening, run, p.alpha)
            run.note("retain_loss", {"before": guard.before, "after": guard.check(model, "dampen")})
        except Diverged:
            dampening.restore()
            raise
        facts = {"importance": p.importance, "batch_size": p.batch_size, "importance_cached": cached}
        run.note("effective", {"alpha": trial.alpha, "changed": trial.changed, **facts})
        rows = {"importance_forget": len(data.forget), "importance_all": 0 if cached else len(data.forget) + len(data.retain)}
        run.note("steps", {"dampen": trials})
        run.note("rows", rows)
        return model.eval()

    def _search(self, dampening: Dampening, run: Run) -> tuple[Trial, int]:
        tried: list[Trial] = []
        of = len(GRID) + HALVINGS

        def found(alpha: float) -> bool:
            tried.append(dampening.attempt(alpha))
            run.note("trials", [trial.described() for trial in tried])
            met = tried[-1].target_met and tried[-1].floor_met
            run.report(of if met else len(tried), of, stage="dampen", loss=tried[-1].loss)
            return met

        if any(found(alpha) for alpha in reversed(GRID)) or self._found_between(tried, found):
            run.note("ended_by", "target")
            return tried[-1], len(tried)
        reached = "where enough is forgotten, too little is kept" if any(trial.target_met for trial in tried) else "none forgets enough"
        raise Diverged(method=self.name, stage="dampen", detail=f"no alpha between 1 and 1000 will do: {reached}")

    def _found_between(self, tried: list[Trial], found: Callable[[float], bool]) -> bool:
        """Halve, on the logarithmic scale, the interval from the largest alpha that forgets enough to the next larger one of the grid."""
        low = next((place for place, trial in enumerate(tried) if trial.target_met), 0)
        if low == 0 or not tried[low - 1].floor_met:
            return False
        below, above = tried[low].alpha, tried[low - 1].alpha
        for _ in range(HALVINGS):
            middle = math.sqrt(below * above)
            if found(middle):
                return True
            below, above = (middle, above) if tried[-1].target_met else (below, middle)
        return False

    def _back_off(self, dampening: Dampening, run: Run, alpha: float) -> tuple[Trial, int]:
        tried: list[Trial] = []
        of = self.parameters.backoff_max + 1
        for number in range(of):
            tried.append(dampening.attempt(alpha * 2**number))
            run.note("trials", [trial.described() for trial in tried])
            safe = tried[-1].floor_met
            run.report(of if safe else number + 1, of, stage="dampen", loss=tried[-1].loss)
            if tried[-1].changed == 0:
                raise Diverged(method=self.name, stage="dampen", detail=f"alpha {tried[-1].alpha:g} changes no weight")
            if safe:
                run.note("ended_by", "floor" if number else "alpha")
                return tried[-1], number + 1
        last = tried[-1]
        detail = f"retain accuracy {last.retain:.4g} at alpha {last.alpha:g} is under the floor {last.floor:.4g}, after {of - 1} doublings"
        raise Diverged(method=self.name, stage="dampen", detail=detail)
