"""Truth ratio: how likely wrong answers are beside the right one.

Source: Maini et al., "TOFU", COLM 2024. The average over wrong answers is taken inside the exponent, as in the released code.
"""

from typing import Literal

from pydantic import Field
from torch import nn

from services.learning.run import Run
from services.learning.task import Task
from services.verification.answers import Asked
from services.verification.metric import METRICS
from services.verification.record_answers import AnswerMean
from services.verification.statistics.language import forget_score, truth_score
from services.verification.statistics.scores import Floats
from services.verification.truth import TruthParameters, truth_ratios


@METRICS.register("truth_ratio")
class TruthRatio(AnswerMean):
    """Mean score of the truth ratio: min(TR, 1/TR), 1 where right and wrong answers are as likely, or max(0, 1 - TR), 1 where wrong ones are not."""

    class Parameters(TruthParameters):
        """Parameters of `truth_ratio`."""

        score: Literal["forget", "utility"] = Field("forget", description="min(TR, 1/TR) for forgotten records, max(0, 1 - TR) for others.")

    def values(self, model: nn.Module, asked: Asked, task: Task, run: Run) -> Floats:
        """Return it of each record."""
        ratios = truth_ratios(model, asked, self.parameters, task, run)
        return forget_score(ratios) if self.parameters.score == "forget" else truth_score(ratios)
