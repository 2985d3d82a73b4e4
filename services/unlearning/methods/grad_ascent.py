"""Gradient ascent: climb the loss of the forgotten answers, and nothing else. A control: it destroys the model when it runs long.

Source: Jang et al., "Knowledge Unlearning for Mitigating Privacy Risks in Language Models", ACL 2023.
Differs: ends when the forgotten answers are no likelier than those of held-out records, which are also what the guard watches.
"""

from torch import nn

from services.learning.data import Splits
from services.learning.run import Run
from services.learning.task import Task
from services.unlearning.mechanisms.descent import loss_on
from services.unlearning.mechanisms.language_edit import LanguageEdit, LanguageParameters, LossOf
from services.unlearning.method import METHODS, Cost, Needs


@METHODS.register("grad_ascent")
class GradAscent(LanguageEdit):
    """Climb the loss of the forgotten answers without anything to hold the rest in place: a control, not for use."""

    needs = Needs(forget_set=True, retain_set=False)
    cost = Cost(per_forget=10 * 3.0, least=3 * 150 * 32)
    stage = "ascend"

    class Parameters(LanguageParameters):
        """Parameters of `grad_ascent`."""

    def forgetting(self, model: nn.Module, data: Splits, task: Task, run: Run) -> LossOf:  # noqa: ARG002
        """Return minus the mean loss of the forgotten answers."""
        climbed = loss_on(data.forget, model, task)
        return lambda rows: -climbed(rows)
