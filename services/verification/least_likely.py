"""The least likely tokens of an answer as a membership score: forgotten records against records that nobody trained on."""

import numpy as np
from pydantic import Field
from torch import nn

from services.learning.data import Splits
from services.learning.run import Run
from services.learning.task import Task
from services.verification.answers import token_logs
from services.verification.metric import Metric
from services.verification.outputs import by_id, generator_of, rows_of
from services.verification.reading import Reading, Unmeasured
from services.verification.statistics import roc
from services.verification.statistics.intervals import RESAMPLES, percentile_interval
from services.verification.statistics.language import least_likely
from services.verification.statistics.scores import Floats


class MinKParameters(Metric.Parameters):
    """Parameters of metrics on the least likely tokens."""

    share: float = Field(0.4, gt=0, le=1, description="Share of an answer's tokens, the least likely ones.")


def auc(members: Floats, others: Floats) -> float:
    """Return the share of pairs in which the member's score is higher, ties counted as half; not a number where a score is none."""
    if np.isnan(members).any() or np.isnan(others).any():
        return float("nan")
    return roc.auc(members, others)


def scores_of(model: nn.Module, data: Splits, split: str, share: float, task: Task) -> tuple[Floats, Floats] | Unmeasured:
    """Return the scores of the split's records and of the non-members."""
    rows, others = rows_of(data, split), rows_of(data, "attack" if data.attack is not None else "test")
    if isinstance(rows, Unmeasured):
        return rows
    if isinstance(others, Unmeasured):
        return others
    mine, theirs = (np.array([least_likely(logs, share) for logs in token_logs(model, by_id(part), task)]) for part in (rows, others))
    return mine, theirs


def drawn_aucs(members: Floats, others: Floats, rng: np.random.Generator) -> Floats:
    """Return the AUC of resampled scores, (b,)."""
    return np.array([auc(rng.choice(members, len(members)), rng.choice(others, len(others))) for _ in range(RESAMPLES // 3)])


def separation(members: Floats, others: Floats, run: Run, *, level: float) -> Reading:
    """Return the AUC with its percentile interval, both sides resampled."""
    value = auc(members, others)
    low, high = percentile_interval(drawn_aucs(members, others, generator_of(run, "min_k")), level=level, around=value)
    return Reading(value, low, high, level, len(members), {"members": len(members), "non_members": len(others)})


def separation_difference(mine: tuple[Floats, Floats], theirs: tuple[Floats, Floats], run: Run, *, level: float) -> Reading:
    """Return one model's AUC minus another's, the same members and the same non-members drawn for both."""
    rng, value = generator_of(run, "min_k/paired"), auc(*mine) - auc(*theirs)
    members, others = len(mine[0]), len(mine[1])
    drawn: list[float] = []
    for _ in range(RESAMPLES // 3):
        one, other = rng.integers(members, size=members), rng.integers(others, size=others)
        drawn.append(auc(mine[0][one], mine[1][other]) - auc(theirs[0][one], theirs[1][other]))
    low, high = percentile_interval(np.array(drawn), level=level, around=value)
    return Reading(value, low, high, level, members)
