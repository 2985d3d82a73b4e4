"""Exact match: the share of records whose whole answer the model would write by itself.

Source: greedy decoding, told without generating: the answer is what greedy decoding writes just where each of its tokens is the likeliest next one.
"""

from torch import nn

from services.learning.run import Run
from services.learning.task import Task
from services.learning.tokens import IGNORED
from services.verification.answers import Asked
from services.verification.metric import METRICS
from services.verification.record_answers import AnswerShare
from services.verification.statistics.scores import Floats


@METRICS.register("exact_match")
class ExactMatch(AnswerShare):
    """Share of records answered word for word; on forgotten records the aim is the retrained model's share."""

    def values(self, model: nn.Module, asked: Asked, task: Task, run: Run) -> Floats:  # noqa: ARG002
        """Return 1 where the whole answer is the greedy one, else 0."""
        likeliest = task.predict(model, asked.rows)[:, 1:, 1] == 1
        others = (asked.rows.y[:, 1:] == IGNORED).cpu()
        return (likeliest | others).all(dim=1).double().numpy()
