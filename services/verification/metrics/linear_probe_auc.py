"""Linear probe: can a linear classifier still read from the features what was forgotten?

Source: Alain and Bengio, "Understanding intermediate layers using linear classifier probes", 2016 (arXiv 1610.01644).
"""

from typing import ClassVar
from weakref import WeakKeyDictionary

import numpy as np
from pydantic import Field
from torch import nn

from services.learning.data import Split, Splits
from services.learning.run import Run
from services.learning.task import Task
from services.verification.areas import area, area_difference
from services.verification.features import features_on
from services.verification.metric import METRICS, Direction, Metric, Models
from services.verification.outputs import by_id, generator_of, rows_of, with_labels_of
from services.verification.reading import Reading, Unmeasured, all_measured
from services.verification.statistics.learned import cross_fitted_scores
from services.verification.statistics.roc import Sides, auc, class_weights

FOLDS = 5
_FITTED: WeakKeyDictionary[Run, dict[tuple[int, tuple[str, ...], tuple[str, ...]], tuple[nn.Module, Sides | Unmeasured]]] = WeakKeyDictionary()


@METRICS.register("linear_probe_auc")
class LinearProbe(Metric):
    """AUC of a five-fold logistic probe on the frozen input of the head: 1 readable, .5 not.

    Class requests: the forgotten class against the rest. Record requests: the forgotten against held-out records of the same labels, weighted to
    the same class mix. The aim is the retrained model's value, not .5: its features may tell a class it never saw from the others, and so may
    those of a network that was never trained (`detail.untrained`). A method that edits the head alone leaves the original's value.
    """

    tasks = frozenset({"classification"})
    unit = "auc"
    bounds = (0.0, 1.0)
    direction: ClassVar[Direction] = "band"
    splits = ("forget_train", "forget_test")

    class Parameters(Metric.Parameters):
        """Parameters of the linear probe."""

        rows: int = Field(2000, ge=50, le=100_000, description="At most this many records a side.")
        untrained: bool = Field(default=True, description="Also probe a network of the same architecture that was never trained.")

    def measure(self, models: Models, data: Splits, task: Task, run: Run, *, split: str) -> Reading | Unmeasured:  # noqa: ARG002
        """Return the AUC of the out-of-fold scores with DeLong's interval."""
        sides = self._sides(data, run, split)
        if isinstance(sides, Unmeasured):
            return sides
        forgotten, others = sides
        weights = _weights(forgotten, others, data)
        scores = self._scores(models.unlearned, forgotten, others, data, run)
        if isinstance(scores, Unmeasured):
            return scores
        detail: dict[str, object] = {"compared_with": len(others)}
        if self.parameters.untrained:
            never = self._scores(run.fresh_model("linear_probe_auc/untrained"), forgotten, others, data, run)
            detail["untrained"] = None if isinstance(never, Unmeasured) else auc(*never, weights)
        return area(scores, weights, level=self.parameters.level, n=len(forgotten), detail=detail)

    def difference(
        self,
        models: Models,
        data: Splits,
        task: Task,  # noqa: ARG002
        run: Run,
        *,
        split: str,
        versus: nn.Module,
    ) -> Reading | Unmeasured | None:
        """Return AUC minus the AUC of `versus`: same rows, same folds, scores resampled in pairs."""
        sides = self._sides(data, run, split)
        if isinstance(sides, Unmeasured):
            return sides
        pair = all_measured(self._scores(model, *sides, data, run) for model in (models.unlearned, versus))
        if isinstance(pair, Unmeasured):
            return pair
        purpose, level = f"linear_probe_auc/{split}/paired", self.parameters.level
        return area_difference(pair[0], pair[1], _weights(*sides, data), run, purpose, level=level, n=len(sides[0]))

    def _scores(self, model: nn.Module, forgotten: Split, others: Split, data: Splits, run: Run) -> Sides | Unmeasured:
        """Return the scores, fitted once for all readings of one run. The model is held, so that no identity is reused."""
        known = _FITTED.setdefault(run, {})
        key = (id(model), forgotten.ids, others.ids)
        if key not in known:
            known[key] = (model, self._fitted(model, forgotten, others, data, run))
        return known[key][1]

    def _fitted(self, model: nn.Module, forgotten: Split, others: Split, data: Splits, run: Run) -> Sides | Unmeasured:
        features = all_measured(features_on(model, rows, run) for rows in (forgotten, others))
        if isinstance(features, Unmeasured):
            return features
        rng = generator_of(run, "linear_probe_auc/folds")
        return Sides(*cross_fitted_scores(features[0], features[1], _weights(forgotten, others, data), rng=rng, folds=FOLDS))

    def _sides(self, data: Splits, run: Run, split: str) -> tuple[Split, Split] | Unmeasured:
        forgotten = rows_of(data, split)
        if isinstance(forgotten, Unmeasured):
            return forgotten
        rest = {"forget_train": "retain_train", "forget_test": "retain_test"}[split] if data.kind == "class" else "test"
        others = rows_of(data, rest)
        if isinstance(others, Unmeasured):
            return others
        if data.kind != "class":
            forgotten, others = with_labels_of(forgotten, others), with_labels_of(others, forgotten)
        if min(len(forgotten), len(others)) < FOLDS:
            return Unmeasured("too_few_records")
        streams = [run.stream(f"linear_probe_auc/{name}") for name in (split, rest)]
        most = self.parameters.rows
        return by_id(forgotten, at_most=most, generator=streams[0]), by_id(others, at_most=most, generator=streams[1])


def _weights(forgotten: Split, others: Split, data: Splits) -> np.ndarray:
    """Return the weights of the other side, (n,): equal for a class against the rest, else those of the same class mix."""
    if data.kind == "class":
        return np.ones(len(others))
    return class_weights(forgotten.y.cpu().numpy(), others.y.cpu().numpy())
