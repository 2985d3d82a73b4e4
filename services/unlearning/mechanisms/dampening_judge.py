"""Whether a dampened model has forgotten enough and kept enough, on forget set and analysis split; never on the verification split."""

from dataclasses import dataclass

from torch import Tensor, nn

from services.learning.data import Split, Splits
from services.learning.run import Run
from services.learning.task import Task
from services.unlearning.mechanisms.accuracy import Matched
from services.unlearning.mechanisms.importance import Granule

FORGET_ROWS, KEPT_ROWS = 500, 1_000


@dataclass(frozen=True, slots=True)
class Form:
    """A way to dampen at any alpha: whose gradients the importances are of, and lambda."""

    importance: Granule
    strength: float

    def described(self) -> dict[str, object]:
        """Return the form for the report."""
        return {"importance": self.importance, "strength": self.strength}


@dataclass(frozen=True, slots=True)
class Trial:
    """What one alpha led to in one form. `forget` and `expected` are compared: the forget set's figure, and what it must not exceed."""

    alpha: float
    form: Form
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
        facts = {"alpha": self.alpha, **self.form.described(), "changed": self.changed, "forget": self.forget, "expected": self.expected}
        return {**facts, "retain": self.retain, "floor": self.floor}

    def told(self) -> str:
        """Return the trial for a message."""
        form = f"importance {self.form.importance} and strength {self.form.strength:g}"
        return f"alpha {self.alpha:.4g} with {form} leaves {self.forget:.4g} and keeps {self.retain:.4g}"


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

    def look(self, model: nn.Module, alpha: float, form: Form, changed: int) -> Trial:
        """Measure an edited model."""
        logits = self.task.predict(model, self.kept)
        loss = float(-certainty(logits, self.kept.y).clamp(min=1e-300).log().mean())
        return Trial(alpha, form, changed, self._forgotten(model), self.forget_target, float(hits(logits, self.kept.y).mean()), self.floor, loss)

    def _forgotten(self, model: nn.Module) -> float:
        forget = self.forget
        if self.data.kind == "records":
            return float(certainty(self.task.predict(model, forget), forget.y).mean())
        held_out = self.data.analysis.with_labels(self.data.classes, keep=True)
        return max(float(hits(self.task.predict(model, part), part.y).mean()) for part in (forget, held_out) if len(part))
