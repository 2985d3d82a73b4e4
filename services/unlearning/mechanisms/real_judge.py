"""Whether a model with real-valued targets has forgotten enough and kept enough: by the share of the targets' spread that it explains."""

from dataclasses import dataclass

from torch import nn

from services.learning.data import Split, Splits
from services.learning.run import Run
from services.learning.task import Task
from services.unlearning.mechanisms.dampening_judge import FORGET_ROWS, KEPT_ROWS, Form, Trial
from services.unlearning.mechanisms.guard import mean_loss
from services.unlearning.mechanisms.real_targets import retain_validation


@dataclass(frozen=True, slots=True)
class RealJudge:
    """Fits are 1 - loss / loss of predicting the mean kept target: 1 exact, 0 as the mean, below 0 worse.

    A range is forgotten when the fit on its records is at most `forget_target`; records are, when it is at most the original's fit on held-out
    records. Enough is kept while the fit on held-out records like those that stay is `retain_drop` lower at most.
    """

    task: Task
    forget: Split
    kept: Split
    unit: float
    expected: float
    floor: float

    @classmethod
    def of(cls, model: nn.Module, data: Splits, task: Task, probe: Split, run: Run, *, forget_target: float, retain_drop: float) -> "RealJudge":
        """Measure the original. Of many records a sample is looked at."""
        kept = retain_validation(data, probe).sample(KEPT_ROWS, run.stream("judge/kept"))
        unit = task.trivial_loss(kept) or 1.0
        before = 1 - mean_loss(model, kept, task) / unit
        expected = forget_target if data.ranged else before
        return cls(task, data.forget.sample(FORGET_ROWS, run.stream("judge/forget")), kept, unit, expected, before - retain_drop)

    def look(self, model: nn.Module, alpha: float, form: Form, changed: int) -> Trial:
        """Measure an edited model."""
        kept = self.fit(model, self.kept)
        return Trial(alpha, form, changed, self.fit(model, self.forget), self.expected, kept, self.floor, (1 - kept) * self.unit)

    def fit(self, model: nn.Module, split: Split) -> float:
        """Return the share of the spread that `model` explains on `split`."""
        return 1 - mean_loss(model, split, self.task) / self.unit
