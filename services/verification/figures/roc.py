"""ROC of the loss attack: how many forgotten records an observer would find at a given rate of false alarms.

Source: Yeom et al., "Privacy Risk in Machine Learning", CSF 2018 (the score); Carlini et al., arXiv 2112.03570 (both axes logarithmic).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from services.learning.data import Split, Splits
from services.learning.run import Run
from services.learning.task import Task
from services.verification.figure import FIGURES, LEAST_FORGOTTEN, TOO_FEW, Axis, Figure, FigureData, Role, compared, curve, line
from services.verification.metric import Models
from services.verification.outputs import by_id, outputs_on, rows_of, with_labels_of
from services.verification.predictions import REAL_VALUED, predictions_on
from services.verification.reading import Measured, Unmeasured, all_measured
from services.verification.statistics.intervals import clopper_pearson
from services.verification.statistics.operating_points import rates_at
from services.verification.statistics.roc import Sides, class_weights
from services.verification.statistics.scores import Floats, negative_losses

LEAST_OTHERS = 20
LEAST_FOR_LOG = 100
LEAST_FOR_LABEL = 10_000
LABELLED_RATE = 0.001
POINTS = 40
MOST_MEMBERS = 5000
LEVEL = 0.95


@FIGURES.register("roc")
class ReceiverOperatingCharacteristic(Figure):
    """True against false positive rate of the score -loss, forgotten records against like records never trained on."""

    tasks = frozenset({"classification"}) | REAL_VALUED
    title = "What an attack on the loss finds"
    caption = (
        "An observer calls a record a training record when the model's loss on it is small. The curve shows how many of the forgotten records "
        "are called so (up) at each rate of false alarms (right). Along the dashed diagonal the observer guesses."
    )

    def measure(self, models: Models, data: Splits, task: Task, run: Run, readings: Sequence[Measured]) -> FigureData | Unmeasured:  # noqa: ARG002
        """Return the curves from the false positive rate on that ten non-members stand behind."""
        sides = _sides(data, task, run)
        if isinstance(sides, Unmeasured):
            return sides
        members, others = sides
        weights = _weights(members, others, task)
        cut = 10 / len(others)
        grid = np.geomspace(cut, 1.0, POINTS)
        log = len(others) >= LEAST_FOR_LOG
        scores: dict[Role, Sides] = {role: Sides(*(_scores(model, rows, task) for rows in sides)) for role, model in compared(models).items()}
        series = [line(role, grid.tolist(), rates_at(inside, outside, weights, grid).tolist()) for role, (inside, outside) in scores.items()]
        low = min(cut, 1 / len(members))
        ends: dict[str, Any] = {"scale": "log", "low": low, "high": 1.0} if log else {"low": 0.0, "high": 1.0}
        note = f"{len(members)} forgotten records against {len(others)} records that were never trained on; false positive rates from {cut:.3g} on."
        marks = _label(*scores["unlearned"], weights) if len(others) >= LEAST_FOR_LABEL else []
        x = Axis("false positive rate", "log" if log else "linear", cut if log else 0.0, 1.0)
        return curve(x, Axis("true positive rate", **ends), series, diagonal=True, marks=marks, note=note)


def _sides(data: Splits, task: Task, run: Run) -> tuple[Split, Split] | Unmeasured:
    """Return the forgotten records, and those of the attack split that are like them."""
    parts = all_measured(rows_of(data, name) for name in ("forget_train", "attack"))
    if isinstance(parts, Unmeasured):
        return parts
    members, others = parts
    if task.name == "classification":
        others = with_labels_of(others, members)
        members = with_labels_of(members, others)
    elif data.span is not None:
        others = others.within(data.span, keep=True)
    if len(others) < LEAST_OTHERS:
        return Unmeasured("too_few_nonmembers")
    if len(members) < LEAST_FORGOTTEN:
        return TOO_FEW
    return by_id(members, at_most=MOST_MEMBERS, generator=run.stream("figures/roc/members")), by_id(others)


def _weights(members: Split, others: Split, task: Task) -> Floats:
    if task.name != "classification":
        return np.ones(len(others))
    return class_weights(members.y.cpu().numpy(), others.y.cpu().numpy())


def _scores(model: nn.Module, rows: Split, task: Task) -> Floats:
    """Return minus the loss of each record, (n,), rows sorted by record id."""
    if task.name != "classification":
        return -predictions_on(model, rows, task).residuals
    found = outputs_on(model, rows, task)
    return negative_losses(found.z, found.y)


def _label(members: Floats, others: Floats, weights: Floats) -> list[dict[str, Any]]:
    """Return the line at a false positive rate of .1 % with the true positive rate there and its interval."""
    rate = float(rates_at(members, others, weights, np.array([LABELLED_RATE]))[0])
    low, high = clopper_pearson(round(rate * len(members)), len(members), level=LEVEL)
    return [{"axis": "x", "at": LABELLED_RATE, "label": f"at 0.1 %: {rate:.4f} [{low:.4f}, {high:.4f}]"}]
