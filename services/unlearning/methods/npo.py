"""Negative preference optimisation: make forgotten answers less likely than they were, with a force that fades as they are.

Source: Zhang et al., "Negative Preference Optimization: From Catastrophic Collapse to Effective Unlearning", COLM 2024.
Differs: the original's log-probabilities are computed once and kept, not at every step.
"""

from pydantic import Field
from torch import Tensor, nn

from services.learning.data import Splits
from services.learning.run import Run
from services.learning.sequences import sequence_nll
from services.learning.task import Task
from services.unlearning.mechanisms.language_edit import LanguageEdit, LossOf, PairedParameters
from services.unlearning.mechanisms.preference import negative_preference, remembered_likelihood
from services.unlearning.method import METHODS, Gentler


@METHODS.register("npo")
class NegativePreference(LanguageEdit):
    """Lower the likelihood of forgotten answers below the original's, beside training on retained ones."""

    gentler = Gentler("alpha", 2.0)

    class Parameters(PairedParameters):
        """Parameters of `npo`."""

        beta: float = Field(0.1, ge=1e-3, le=100, description="Sharpness; towards 0 the method is gradient ascent.")

    def forgetting(self, model: nn.Module, data: Splits, task: Task, run: Run) -> LossOf:  # noqa: ARG002
        """Return -(2 / beta) E log sigmoid(-beta (log pi(y|x) - log pi0(y|x))), whole answers."""
        before = remembered_likelihood(model, data.forget, run)

        def loss_of(rows: Tensor) -> Tensor:
            nll, _ = sequence_nll(model, data.forget.batch(rows))
            return negative_preference(-nll - before[rows.to(before.device)], self.parameters.beta)

        return loss_of
