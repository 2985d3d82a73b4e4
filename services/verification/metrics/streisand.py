"""Streisand check: do the forgotten records stand out, on either side, from records that the model should treat alike?

Source: Golatkar et al., "Eternal Sunshine of the Spotless Net", CVPR 2020 (the effect); Mann and Whitney, 1947 (the test).
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from pydantic import Field
from torch import nn

from services.learning.data import Splits
from services.learning.run import Run
from services.learning.task import Task
from services.verification.areas import area, area_beside_unseen, area_difference
from services.verification.metric import METRICS, BesideUnseen, Direction, Metric, Models
from services.verification.outputs import NO_HELD_OUT, NO_REFERENCE, Outputs, generator_of, outputs_on, rows_of, with_labels_of
from services.verification.reading import Reading, Unmeasured, all_measured
from services.verification.shadows import Shadows
from services.verification.statistics.equivalence import Place, place
from services.verification.statistics.intervals import Interval
from services.verification.statistics.ranks import mann_whitney_p
from services.verification.statistics.roc import Sides, class_weights
from services.verification.statistics.scores import Floats, entropies, margins

SIDES = {Place.ABOVE: "leak", Place.BELOW: "over_unlearned", Place.INSIDE: "inside", Place.UNDECIDED: "undecided"}


@dataclass(frozen=True, slots=True)
class _Compared:
    """Outputs on the forgotten records and on what they are compared with, whose rows weigh `weights` (n,)."""

    forgotten: Outputs
    others: Outputs
    weights: Floats
    without_counterpart: int = 0

    @property
    def margins(self) -> Sides:
        return Sides(margins(self.forgotten.z, self.forgotten.y), margins(self.others.z, self.others.y))


@METRICS.register("streisand")
class Streisand(Metric):
    """AUC of the margin, forgotten records against their like: .5 indistinguishable, towards 1 still known, towards 0 conspicuously unknown.

    Record requests: against held-out records of the same labels, weighted to the same class mix. Class requests: those are forgotten as well, so
    the same records under the retrained model are the comparison. `detail.side` is `leak` or `over_unlearned` where the interval lies wholly
    beyond .5 + or - epsilon; `detail.p` is the two-sided Mann-Whitney test, by permutation below 50 records (of unweighted rows);
    `detail.entropy_gap` the mean entropy of the forgotten records minus the others', nats. The interval is DeLong's, whose limit is that of a
    bootstrap of both sides.
    """

    tasks = frozenset({"classification"})
    unit = "auc"
    bounds = (0.0, 1.0)
    compares_to = frozenset({"retrained"})
    direction: ClassVar[Direction] = "band"
    splits = ("forget_train", "forget_test")

    class Parameters(Metric.Parameters):
        """Parameters of the Streisand check."""

        epsilon: float = Field(0.05, gt=0, lt=0.5, description="Half-width of the band about .5 that `detail.side` is read from.")

    def measure(self, models: Models, data: Splits, task: Task, run: Run, *, split: str) -> Reading | Unmeasured:
        """Return the AUC with DeLong's interval."""
        found = self._compared(models.unlearned, models, data, task, split)
        if isinstance(found, Unmeasured):
            return found
        (inside, outside), epsilon = found.margins, self.parameters.epsilon
        reading = area(found.margins, found.weights, level=self.parameters.level, n=len(inside), detail={})
        entropy, others = (entropies(out.log_p) for out in (found.forgotten, found.others))
        detail: dict[str, object] = {
            "side": SIDES[place(Interval(reading.low, reading.high), Interval(0.5 - epsilon, 0.5 + epsilon))],
            "p": mann_whitney_p(inside, outside, rng=generator_of(run, f"streisand/{split}")),
            "entropy_gap": float(entropy.mean() - np.average(others, weights=found.weights)),
            "compared_with": len(outside),
            "without_counterpart": found.without_counterpart,
        }
        return replace(reading, detail=detail)

    def difference(self, models: Models, data: Splits, task: Task, run: Run, *, split: str, versus: nn.Module) -> Reading | Unmeasured | None:
        """Return AUC minus the AUC of `versus` on the same rows, both sides resampled in pairs."""
        pair = all_measured(self._compared(model, models, data, task, split) for model in (models.unlearned, versus))
        if isinstance(pair, Unmeasured):
            return pair
        (mine, theirs), level = pair, self.parameters.level
        return area_difference(mine.margins, theirs.margins, mine.weights, run, f"streisand/{split}/paired", level=level, n=len(mine.forgotten))

    def beside_unseen(
        self,
        models: Models,
        data: Splits,
        task: Task,
        run: Run,  # noqa: ARG002
        *,
        split: str,
        unseen: Shadows,
    ) -> BesideUnseen | Unmeasured:
        """Return the AUC of records beside that of models which had not seen them; held-out records no model has seen."""
        parts = all_measured(rows_of(data, name) for name in (split, "test"))
        if isinstance(parts, Unmeasured):
            return parts
        forget = with_labels_of(parts[0], parts[1])
        if not len(forget):
            return NO_HELD_OUT
        others = with_labels_of(parts[1], forget)
        outputs = outputs_on(models.unlearned, forget, task), outputs_on(models.unlearned, others, task)
        return area_beside_unseen((forget, others), outputs, unseen, np.asarray, level=self.parameters.level)

    def _compared(self, model: nn.Module, models: Models, data: Splits, task: Task, split: str) -> _Compared | Unmeasured:
        forget = rows_of(data, split)
        if isinstance(forget, Unmeasured):
            return forget
        if data.kind == "class":
            if models.retrained is None:
                return NO_REFERENCE
            return _Compared(outputs_on(model, forget, task), outputs_on(models.retrained, forget, task), np.ones(len(forget)))
        held_out = rows_of(data, "test")
        if isinstance(held_out, Unmeasured):
            return held_out
        forgotten, others = (outputs_on(model, rows, task) for rows in (forget, held_out))
        known, wanted = np.isin(forgotten.y, others.y), np.isin(others.y, forgotten.y)
        if not known.any():
            return NO_HELD_OUT
        forgotten, others = Outputs(forgotten.z[known], forgotten.y[known]), Outputs(others.z[wanted], others.y[wanted])
        return _Compared(forgotten, others, class_weights(forgotten.y, others.y), int(np.sum(~known)))
