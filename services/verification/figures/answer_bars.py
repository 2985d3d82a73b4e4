"""Answers: how much of the right answers a language model still gives, before and after, beside a retrained one."""

from collections.abc import Sequence
from typing import NamedTuple

from services.learning.data import Splits
from services.learning.run import Run
from services.learning.task import Task
from services.verification.figure import FIGURES, Axis, Figure, FigureData, Role, bars
from services.verification.metric import Models
from services.verification.reading import Measured, Reading, Unmeasured


class Shown(NamedTuple):
    """A reading of the plan, and what its bars are called."""

    name: str
    split: str
    label: str


SHOWN = (
    Shown("exact_match", "forget_train", "forgotten, word for word"),
    Shown("rouge_l", "forget_train", "forgotten, ROUGE-L"),
    Shown("appearance_rate", "forget_train", "forgotten, name said"),
    Shown("quantised_forgetting", "forget_train", "forgotten, likelihood in 4 bits"),
    Shown("exact_match", "retain_train", "kept, word for word"),
    Shown("rouge_l", "retain_train", "kept, ROUGE-L"),
    Shown("model_utility", "retain_train", "kept, utility"),
)
NOTHING_MEASURED = Unmeasured("no_reading_of_answers")


@FIGURES.register("answer_bars")
class AnswerBars(Figure):
    """Shares of right answers on forgotten and on kept records, of original, unlearned and retrained model, as the readings of the plan have them."""

    tasks = frozenset({"language_model"})
    title = "What the model answers"
    caption = (
        "Each group of bars is a share between 0 and 1. On forgotten records the unlearned model should answer as the retrained one does, which never "
        "saw them; on kept records it should answer as the original does."
    )

    def measure(self, models: Models, data: Splits, task: Task, run: Run, readings: Sequence[Measured]) -> FigureData | Unmeasured:  # noqa: ARG002
        """Return a group of bars for each reading that was taken on every model shown."""
        roles: tuple[Role, ...] = ("original", "unlearned") if models.retrained is None else ("original", "unlearned", "retrained")
        taken = {(one.name, one.split): one for one in readings if one.kind == "metric"}
        groups = {shown.label: found for shown in SHOWN if (found := _values(taken.get((shown.name, shown.split)), roles)) is not None}
        if not groups:
            return NOTHING_MEASURED
        values: dict[Role, list[float]] = {role: [group[role] for group in groups.values()] for role in roles}
        return bars(Axis("share", low=0.0, high=1.0), list(groups), values)


def _values(reading: Measured | None, roles: Sequence[Role]) -> dict[Role, float] | None:
    """Return the reading's number for each role, or None where one was not measured."""
    if reading is None:
        return None
    named: dict[Role, object] = {"original": reading.before, "unlearned": reading.after, "retrained": reading.reference}
    numbers: dict[Role, float] = {role: number.value for role in roles if isinstance(number := named[role], Reading)}
    return numbers if len(numbers) == len(roles) else None
