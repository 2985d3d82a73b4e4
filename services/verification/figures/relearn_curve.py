"""Relearn curve: how soon a model is back where the original was, when it is trained on the forgotten records again.

Source: Tarun et al., arXiv 2111.08947.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from services.learning.data import Splits
from services.learning.run import Run
from services.learning.task import Task
from services.verification.figure import FIGURES, LEAST_FORGOTTEN, TOO_FEW, Axis, Figure, FigureData, Role, curve, line
from services.verification.metric import Models
from services.verification.reading import Measured, Reading, Unmeasured

MOST_POINTS = 60


@FIGURES.register("relearn_curve")
class RelearnCurve(Figure):
    """Median over seeds of the score after every step of relearning, with the range over seeds, and the bar."""

    tasks = frozenset({"classification", "regression", "forecasting", "language_model"})
    title = "How fast the forgotten records are learned again"
    caption = (
        "Each model is trained once more with the forgotten records. A model in which little is left needs about as many steps as the retrained "
        "one to reach the dashed bar; a model that only hides what it knows is there much sooner."
    )

    def measure(self, models: Models, data: Splits, task: Task, run: Run, readings: Sequence[Measured]) -> FigureData | Unmeasured:  # noqa: ARG002
        """Return the courses that the reading `relearn_time` took down."""
        taken = next((reading for reading in readings if reading.name == "relearn_time"), None)
        if taken is None:
            return Unmeasured("not_run")
        if isinstance(taken.after, Unmeasured):
            return taken.after
        if taken.after.n < LEAST_FORGOTTEN:
            return TOO_FEW
        columns: dict[Role, object] = {"unlearned": taken.after, "retrained": taken.reference}
        series = [_course(role, number.detail) for role, number in columns.items() if isinstance(number, Reading)]
        bar: Any = taken.after.detail["bar"]
        right = "share answered right" if task.name == "classification" else "minus the mean loss"
        marks = [{"axis": "y", "at": float(bar), "label": "the bar"}]
        return curve(Axis("training steps", low=0.0), Axis(right), series, marks=marks, note=f"Judged on {taken.after.n} records.")


def _course(role: Role, detail: Mapping[str, Any]) -> dict[str, Any]:
    """Return median and range over seeds at each step; a run that has reached the bar keeps its last value."""
    courses: list[list[float]] = detail["courses"]
    steps = max(len(course) for course in courses)
    table = np.array([[*course, *([course[-1]] * (steps - len(course)))] for course in courses])
    shown = np.unique(np.linspace(0, steps - 1, min(steps, MOST_POINTS)).round().astype(int))
    columns = (np.median(table, axis=0), table.min(axis=0), table.max(axis=0))
    median, low, high = (column[shown].tolist() for column in columns)
    return line(role, shown.tolist(), median, low=low, high=high)
