"""Gradient difference: climb the loss of the forgotten answers and descend that of retained ones in the same step.

Source: Liu et al., "Continual Learning and Private Unlearning", CoLLAs 2022; Maini et al., "TOFU", COLM 2024.
"""

from torch import nn

from services.learning.data import Splits
from services.learning.run import Run
from services.learning.task import Task
from services.unlearning.mechanisms.descent import loss_on
from services.unlearning.mechanisms.language_edit import LanguageEdit, LossOf, PairedParameters
from services.unlearning.method import METHODS


@METHODS.register("grad_diff")
class GradDiff(LanguageEdit):
    """Climb the loss of the forgotten answers while retained answers are trained on."""

    class Parameters(PairedParameters):
        """Parameters of `grad_diff`."""

    def forgetting(self, model: nn.Module, data: Splits, task: Task, run: Run) -> LossOf:  # noqa: ARG002
        """Return minus the mean loss of the forgotten answers."""
        climbed = loss_on(data.forget, model, task)
        return lambda rows: -climbed(rows)
