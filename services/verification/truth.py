"""Right and wrong answers to the same question, and how likely a model finds each.

Wrong answers are the operator's, by record id; for records without any they are the answers of other records of the split, drawn by the seed: a
reading says on how many records it stands on such.
"""

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from services.learning.run import Run
from services.learning.task import Task
from services.verification.answers import Asked, mean_nlls, right_answers, told_otherwise
from services.verification.metric import Metric
from services.verification.outputs import generator_of
from services.verification.statistics.language import truth_ratio
from services.verification.statistics.scores import Floats


class Alternatives(BaseModel):
    """Other answers to one record's question."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(min_length=1, max_length=512, description="The record's id.")
    paraphrase: str | None = Field(None, max_length=10_000, description="The right answer in other words; null: the record's own.")
    wrong: tuple[str, ...] = Field((), max_length=100, description="Wrong answers of the same form.")


class TruthParameters(Metric.Parameters):
    """Parameters of metrics that compare right and wrong answers."""

    alternatives: tuple[Alternatives, ...] = Field((), max_length=100_000, description="Paraphrased and wrong answers, by record.")
    drawn: int = Field(3, ge=1, le=20, description="Wrong answers of a record that has none here: so many answers of other records.")
    rows: int = Field(200, ge=1, le=100_000, description="At most this many records are used, drawn by the seed.")


def truth_ratios(model: nn.Module, asked: Asked, p: TruthParameters, task: Task, run: Run) -> Floats:
    """Return the truth ratio of each record, (n,)."""
    right, wrong = answers_beside(asked, p, run)
    paraphrased = mean_nlls(model, told_otherwise(asked, right, "right"), task)
    most = max(len(each) for each in wrong)
    filled = [[each[place % len(each)] for each in wrong] for place in range(most)]
    losses = [mean_nlls(model, told_otherwise(asked, answers, f"wrong{place}"), task) for place, answers in enumerate(filled)]
    return np.array(
        [truth_ratio([losses[place][row] for place in range(len(each))], float(paraphrased[row])) for row, each in enumerate(wrong)], dtype=np.float64
    )


def answers_beside(asked: Asked, p: TruthParameters, run: Run) -> tuple[list[str], list[tuple[str, ...]]]:
    """Return the right answer of each record in other words, and wrong ones."""
    own = right_answers(asked)
    given = {one.id: one for one in p.alternatives}
    rng = generator_of(run, "truth/drawn")
    right, wrong = list[str](), list[tuple[str, ...]]()
    for name, answer in zip(asked.rows.ids, own, strict=True):
        held = given.get(name)
        right.append((held.paraphrase if held is not None else None) or answer)
        others = [other for other in own if other != answer] or [answer[::-1]]
        chosen = tuple(others[int(place)] for place in rng.choice(len(others), size=min(p.drawn, len(others)), replace=False))
        wrong.append(held.wrong if held is not None and held.wrong else chosen)
    return right, wrong
