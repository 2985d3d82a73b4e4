"""ROUGE-L: how much of the right answer the model's own answer holds, in order.

Source: Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004; recall is what TOFU uses (Maini et al., COLM 2024).
"""

from typing import Literal

import numpy as np
from pydantic import Field
from torch import nn

from services.learning.answers import rouge_l
from services.learning.run import Run
from services.learning.task import Task
from services.verification.answers import Asked, SampleParameters, right_answers, said_by
from services.verification.metric import METRICS
from services.verification.record_answers import AnswerMean
from services.verification.statistics.scores import Floats


@METRICS.register("rouge_l")
class RougeL(AnswerMean):
    """Mean ROUGE-L of greedy answers against the records' own: 1 word for word; on forgotten records the aim is the retrained model's."""

    class Parameters(SampleParameters):
        """Parameters of `rouge_l`."""

        score: Literal["f1", "recall"] = Field("f1", description="Against both answers' lengths, or against the right one's alone.")

    def values(self, model: nn.Module, asked: Asked, task: Task, run: Run) -> Floats:  # noqa: ARG002
        """Return it of each record."""
        place = 0 if self.parameters.score == "f1" else 1
        said = said_by(model, asked, run, most=self.parameters.most_tokens)
        return np.array([rouge_l(mine, right)[place] for mine, right in zip(said, right_answers(asked), strict=True)])
