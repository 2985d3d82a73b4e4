"""Outputs beside those of networks that never learned anything: what both forms of the zero retrain forgetting score are made of.

Source: Chundawat et al., "Can Bad Teaching Induce Forgetting?", AAAI 2023 (arXiv 2205.08096).
"""

from collections.abc import Callable

import numpy as np
from pydantic import Field
from torch import nn

from services.errors import ParameterOutOfRange
from services.learning.data import Split, Splits
from services.learning.run import Run, derived_seed
from services.learning.task import Task
from services.verification.metric import Metric
from services.verification.outputs import NO_ARCHITECTURE, outputs_on, rows_of
from services.verification.reading import Unmeasured
from services.verification.statistics.scores import Floats


class UntrainedParameters(Metric.Parameters):
    """Parameters of a score against untrained teachers."""

    excluded_seeds: tuple[int, ...] = Field((), description="Seeds of teachers that the method used; a score with one of them is refused.")


def likeness(
    divergence: Callable[[Floats, Floats], Floats],
    model: nn.Module,
    data: Splits,
    task: Task,
    run: Run,
    *,
    split: str,
    teachers: int,
    excluded_seeds: tuple[int, ...],
) -> Floats | Unmeasured:
    """Return 1 - divergence between the outputs of `model` and of each untrained teacher, record by record, (teachers, n).

    Raises:
        ParameterOutOfRange: the seed of a teacher is one of `excluded_seeds`.
    """
    rows = rows_of(data, split)
    if isinstance(rows, Unmeasured):
        return rows
    if run.architecture is None:
        return NO_ARCHITECTURE
    log_p = outputs_on(model, rows, task).log_p
    return np.stack([1.0 - divergence(log_p, _teacher(rows, task, run, f"zrf/{k}", excluded_seeds)) for k in range(teachers)])


def _teacher(rows: Split, task: Task, run: Run, purpose: str, excluded_seeds: tuple[int, ...]) -> Floats:
    """Return the log-probabilities of the teacher of `purpose`, (n, C)."""
    seed = derived_seed(run.seed, purpose)
    if seed in excluded_seeds:
        raise ParameterOutOfRange(name="excluded_seeds", detail=f"the score seed {seed} is the seed of the method's own teacher")
    return outputs_on(run.fresh_model(purpose), rows, task).log_p
