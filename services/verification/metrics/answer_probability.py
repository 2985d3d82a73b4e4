"""Answer probability: how likely the model finds the right answers, per token.

Source: Maini et al., "TOFU: A Task of Fictitious Unlearning for LLMs", COLM 2024: exp(-mean loss per token).
"""

import numpy as np
from torch import nn

from services.learning.run import Run
from services.learning.task import Task
from services.verification.answers import Asked, mean_nlls
from services.verification.metric import METRICS
from services.verification.record_answers import AnswerMean
from services.verification.statistics.scores import Floats


@METRICS.register("answer_probability")
class AnswerProbability(AnswerMean):
    """Mean over records of exp(-mean loss per answer token): 1 known by heart; on forgotten records the aim is the retrained model's, not 0."""

    def values(self, model: nn.Module, asked: Asked, task: Task, run: Run) -> Floats:  # noqa: ARG002
        """Return it of each record."""
        return np.exp(-mean_nlls(model, asked.rows, task))
