"""Direct preference optimisation with refusals: a refusal is preferred to each forgotten answer, relative to the original.

Source: Rafailov et al., "Direct Preference Optimization", NeurIPS 2023; with refusals as the preferred answers: Maini et al., "TOFU", COLM 2024.
Differs: the original's log-probabilities of both answers are computed once and kept.
"""

from pydantic import Field
from torch import Tensor, nn

from services.learning.data import Splits
from services.learning.run import Run
from services.learning.sequences import sequence_nll
from services.learning.task import Task
from services.unlearning.mechanisms.language_edit import LanguageEdit, LossOf, PairedParameters
from services.unlearning.mechanisms.preference import direct_preference, remembered_likelihood
from services.unlearning.mechanisms.refusals import REFUSALS, refused, tokenizer_of
from services.unlearning.method import METHODS, Cost, Memory


@METHODS.register("dpo")
class DirectPreference(LanguageEdit):
    """Prefer a refusal to each forgotten answer, beside training on retained ones."""

    cost = Cost(per_forget=10 * 9.0, least=9 * 150 * 32)
    memory = Memory(batches=3.0, adapter="lora", more={"retain_loss=kl": 1.0})

    class Parameters(PairedParameters):
        """Parameters of `dpo`."""

        beta: float = Field(0.1, ge=1e-3, le=100, description="Sharpness.")
        idk_answers: tuple[str, ...] = Field(REFUSALS, min_length=1, max_length=100, description="Refusals, one drawn for each question.")

    def forgetting(self, model: nn.Module, data: Splits, task: Task, run: Run) -> LossOf:  # noqa: ARG002
        """Return -(2 / beta) E log sigmoid(beta ((l - l0)(refusal) - (l - l0)(answer))), whole answers."""
        p = self.parameters
        preferred = refused(data.forget, p.idk_answers, tokenizer_of(self, data, run), run.stream("refusals"))
        before = [remembered_likelihood(model, rows, run, stage=stage) for rows, stage in ((preferred, "refusals"), (data.forget, "reference"))]

        def loss_of(rows: Tensor) -> Tensor:
            held = rows.to(before[0].device)
            winning, losing = (
                -sequence_nll(model, split.batch(rows))[0] - known[held] for split, known in zip((preferred, data.forget), before, strict=True)
            )
            return direct_preference(winning, losing, p.beta)

        return loss_of
