"""Refusals: the model is trained to answer forgotten questions with one of a few short refusals.

Source: Maini et al., "TOFU: A Task of Fictitious Unlearning for LLMs", COLM 2024 (the IDK baseline).
"""

from pydantic import Field
from torch import nn

from services.learning.data import Splits
from services.learning.run import Run
from services.learning.task import Task
from services.unlearning.mechanisms.descent import loss_on
from services.unlearning.mechanisms.language_edit import LanguageEdit, LossOf, PairedParameters
from services.unlearning.mechanisms.refusals import REFUSALS, refused, tokenizer_of
from services.unlearning.method import METHODS


@METHODS.register("idk")
class Refusing(LanguageEdit):
    """Train refusals as the answers to forgotten questions, beside training on retained answers."""

    class Parameters(PairedParameters):
        """Parameters of `idk`."""

        idk_answers: tuple[str, ...] = Field(REFUSALS, min_length=1, max_length=100, description="Refusals, one drawn for each question.")

    def forgetting(self, model: nn.Module, data: Splits, task: Task, run: Run) -> LossOf:
        """Return the mean loss of the refusals."""
        refusing = refused(data.forget, self.parameters.idk_answers, tokenizer_of(self, data, run), run.stream("refusals"))
        return loss_on(refusing, model, task)
