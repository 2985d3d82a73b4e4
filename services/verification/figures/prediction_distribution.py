"""Prediction distribution: which of the remaining classes the forgotten records are now given to.

Source: Tarun et al., "Fast Yet Effective Machine Unlearning", IEEE TNNLS 2023.
"""

from collections.abc import Sequence

import numpy as np
from torch import nn

from services.learning.data import Split, Splits
from services.learning.run import Run
from services.learning.task import Task
from services.verification.figure import FIGURES, Axis, Figure, FigureData, Role, bars, compared, forgotten_split
from services.verification.metric import Models
from services.verification.outputs import outputs_on, rows_of
from services.verification.reading import Measured, Unmeasured
from services.verification.statistics.scores import Floats

MOST_CLASSES = 24
REST = "others"


@FIGURES.register("prediction_distribution")
class PredictionDistribution(Figure):
    """Shares of the forgotten records by the remaining class with the largest output, unlearned beside retrained."""

    tasks = frozenset({"classification"})
    kinds = frozenset({"class"})
    title = "Where the forgotten class goes"
    caption = (
        "Each forgotten record is counted to the remaining class that the model holds most likely. One tall bar that the retrained model does not "
        "have would tell an observer which class was forgotten."
    )

    def measure(self, models: Models, data: Splits, task: Task, run: Run, readings: Sequence[Measured]) -> FigureData | Unmeasured:  # noqa: ARG002
        """Return the shares; of many classes those with the largest shares are shown and the others together."""
        rows = rows_of(data, forgotten_split(data))
        if isinstance(rows, Unmeasured):
            return rows
        retained = [label for label in range(task.outputs) if label not in data.classes]
        if len(retained) < 2:
            return Unmeasured("too_few_retained_classes")
        shares: dict[Role, Floats] = {role: _shares(model, rows, task, retained) for role, model in compared(models, original=False).items()}
        largest = np.argsort(-np.stack(list(shares.values())).max(axis=0), kind="stable")
        shown = np.sort(largest[:MOST_CLASSES])
        categories = [str(retained[int(column)]) for column in shown]
        values: dict[Role, list[float]] = {role: share[shown].tolist() for role, share in shares.items()}
        if len(retained) > MOST_CLASSES:
            categories.append(REST)
            values = {role: [*column, max(0.0, 1.0 - sum(column))] for role, column in values.items()}
        return bars(Axis("share of the forgotten records", low=0.0), categories, values)


def _shares(model: nn.Module, rows: Split, task: Task, retained: list[int]) -> Floats:
    """Return the share of the rows by the position in `retained` of the class with the largest logit, (len(retained),)."""
    chosen = outputs_on(model, rows, task).z[:, retained].argmax(axis=1)
    return np.bincount(chosen, minlength=len(retained)) / len(rows)
