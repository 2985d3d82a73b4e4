"""Relearn time: the optimiser steps that bring the forgotten records back to the original's accuracy."""

from typing import ClassVar

import numpy as np

from services.learning.data import Splits
from services.learning.run import Run
from services.learning.task import Task
from services.verification.metric import METRICS, Direction, LeakSide, Metric, Models
from services.verification.outputs import generator_of
from services.verification.reading import Reading, Unmeasured
from services.verification.relearning import COARSE_STEPS, RelearningParameters, lesson_of, relearned_over_seeds
from services.verification.statistics.ratios import median_interval

DIGITS = 6


@METRICS.register("relearn_time")
class RelearnTime(Metric):
    """Median over seeds of the steps until the forgotten are back at the bar: 0 already there, few where information is left.

    The bar is 95 % of the original's accuracy on them (regression: 105 % of its loss). A run that is cut off counts as the cap and is flagged:
    with `detail.censored` the value is a lower bound. `detail.courses` has the accuracy (regression: minus the loss) after every step and
    `detail.areas` its mean over the cap, the last value held. Alone it says little: see `ain`.
    Source: Tarun et al., arXiv 2111.08947.
    Differs: the paper counts epochs of 500 random training records, printed ">100" where the bar is never reached; here steps, for resolution.
    """

    tasks = frozenset({"classification", "regression", "forecasting", "language_model"})
    unit = "steps"
    bounds = (0.0, float("inf"))
    direction: ClassVar[Direction] = "info"
    leak_side: ClassVar[LeakSide] = "below"
    splits = ("forget_train",)

    class Parameters(RelearningParameters):
        """Parameters of the relearn time."""

    def measure(self, models: Models, data: Splits, task: Task, run: Run, *, split: str) -> Reading | Unmeasured:
        """Return the median with its bootstrap interval over seeds; neither model is changed.

        Raises:
            Cancelled, DeadlineExceeded: through `run.report`.
        """
        p = self.parameters
        lesson = lesson_of(p, models, data, task, run, split)
        if isinstance(lesson, Unmeasured):
            return lesson
        found = relearned_over_seeds(models.unlearned, lesson, p, task, run)
        if isinstance(found, Unmeasured):
            return found
        steps = [one.steps for one in found]
        low, high = median_interval(steps, level=p.level, rng=generator_of(run, "relearn_time"))
        value = float(np.median(steps))
        detail = {
            "per_seed": steps,
            "range": [min(steps), max(steps)],
            "censored": any(one.censored for one in found),
            "censored_runs": sum(one.censored for one in found),
            "coarse": max(steps) <= COARSE_STEPS,
            "bar": lesson.bar,
            "train_data": p.train_data,
            "judged_on": lesson.judged_on,
            "courses": [[round(at, DIGITS) for at in one.course] for one in found],
            "areas": [one.area(p.steps) for one in found],
        }
        return Reading(value, min(low, value), max(high, value), p.level, lesson.records, detail)
