"""Simple negative preference optimisation: as NPO, on the mean over an answer's tokens and without a reference.

Source: Fan et al., "Simplicity Prevails: Rethinking Negative Preference Optimization for LLM Unlearning", 2024.
"""

from pydantic import Field
from torch import Tensor, nn

from services.learning.data import Splits
from services.learning.run import Run
from services.learning.sequences import sequence_nll
from services.learning.task import Task
from services.unlearning.mechanisms.language_edit import LanguageEdit, LossOf, PairedParameters
from services.unlearning.mechanisms.preference import simple_preference
from services.unlearning.method import METHODS, Gentler


@METHODS.register("simnpo")
class SimplePreference(LanguageEdit):
    """Raise the loss per token of forgotten answers, less the higher it is, beside training on retained ones."""

    gentler = Gentler("alpha", 2.0)

    class Parameters(PairedParameters):
        """Parameters of `simnpo`."""

        beta: float = Field(4.5, ge=1e-3, le=100, description="Sharpness.")
        delta: float = Field(0.0, ge=-10, le=10, description="Loss per token from which on an answer counts as forgotten.")
        gamma: float = Field(0.125, ge=0, le=10_000, description="Weight of the forget loss.")

    def forgetting(self, model: nn.Module, data: Splits, task: Task, run: Run) -> LossOf:  # noqa: ARG002
        """Return -(2 / beta) E log sigmoid(beta (nll / |y| - delta))."""
        p = self.parameters

        def loss_of(rows: Tensor) -> Tensor:
            nll, lengths = sequence_nll(model, data.forget.batch(rows))
            return simple_preference(nll, lengths, p.beta, p.delta)

        return loss_of
