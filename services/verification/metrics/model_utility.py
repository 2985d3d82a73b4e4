"""Model utility: one number for what a language model still knows beside the forgotten.

Source: Maini et al., "TOFU", COLM 2024: the harmonic mean of probability, ROUGE-L recall and truth-ratio score on retained records, real authors and
world facts.
"""

from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from torch import nn

from services.learning.answers import rouge_l, spoken
from services.learning.data import Splits
from services.learning.run import Run
from services.learning.task import Task
from services.verification.answers import Asked, Question, as_records, asked_of, mean_nlls, right_answers, said_by
from services.verification.metric import METRICS, Direction, Metric, Models
from services.verification.outputs import generator_of
from services.verification.reading import Reading, Unmeasured
from services.verification.statistics.intervals import percentile_interval
from services.verification.statistics.language import normalised_probability, truth_ratio, truth_score, utility
from services.verification.truth import TruthParameters, truth_ratios

RESAMPLES = 200
PARTS = ("probability", "rouge_l_recall", "truth")
Table = NDArray[np.float64]


def utility_of(tables: Sequence[Table]) -> float:
    """Return the harmonic mean of the means of every row of tables (k, n)."""
    return utility([table.mean(axis=1) for table in tables])


def resampled(tables: Sequence[Table], rng: np.random.Generator) -> Iterator[list[Table]]:
    """Yield the tables (k, n) with their columns drawn anew, all rows alike."""
    for _ in range(RESAMPLES):
        yield [table[:, rng.integers(table.shape[1], size=table.shape[1])] for table in tables]


@METRICS.register("model_utility")
class ModelUtility(Metric):
    """Harmonic mean of three numbers on each set: 1 all known, 0 where one of them is 0. Without further sets it stands on retained records alone.

    `detail.parts` has each number; probability on the further sets is p(right) / (p(right) + sum of p(wrong)).
    """

    tasks = frozenset({"language_model"})
    unit = "share"
    bounds = (0.0, 1.0)
    direction: ClassVar[Direction] = "min"
    splits = ("retain_train", "test")

    class Parameters(TruthParameters):
        """Parameters of `model_utility`."""

        sets: dict[str, tuple[Question, ...]] = Field(
            {}, max_length=10, description="Further sets of questions by name, as real authors and world facts."
        )
        most_tokens: int = Field(64, ge=1, le=4096, description="Tokens after which an answer is cut off.")

    def measure(self, models: Models, data: Splits, task: Task, run: Run, *, split: str) -> Reading | Unmeasured:
        """Return the harmonic mean with its percentile interval, questions of each set resampled."""
        asked = asked_of(data, split, run, at_most=self.parameters.rows)
        if isinstance(asked, Unmeasured):
            return asked
        tables = self._tables(models.unlearned, asked, task, run, split)
        value = utility_of(list(tables.values()))
        drawn = [utility_of(part) for part in resampled(list(tables.values()), generator_of(run, f"model_utility/{split}"))]
        low, high = percentile_interval(np.array(drawn), level=self.parameters.level, around=value)
        parts = {name: dict(zip(PARTS, table.mean(axis=1).tolist(), strict=True)) for name, table in tables.items()}
        return Reading(value, low, high, self.parameters.level, sum(table.shape[1] for table in tables.values()), {"parts": parts})

    def difference(self, models: Models, data: Splits, task: Task, run: Run, *, split: str, versus: nn.Module) -> Reading | Unmeasured:
        """Return the difference, the same questions of each set resampled for both models."""
        asked = asked_of(data, split, run, at_most=self.parameters.rows)
        if isinstance(asked, Unmeasured):
            return asked
        mine, theirs = (list(self._tables(model, asked, task, run, split).values()) for model in (models.unlearned, versus))
        value = utility_of(mine) - utility_of(theirs)
        both = resampled([np.concatenate(pair) for pair in zip(mine, theirs, strict=True)], generator_of(run, f"model_utility/{split}/paired"))
        drawn = [utility_of([table[: len(PARTS)] for table in part]) - utility_of([table[len(PARTS) :] for table in part]) for part in both]
        low, high = percentile_interval(np.array(drawn), level=self.parameters.level, around=value)
        return Reading(value, low, high, self.parameters.level, sum(table.shape[1] for table in mine))

    def _tables(self, model: nn.Module, asked: Asked, task: Task, run: Run, split: str) -> dict[str, Table]:
        """Return the numbers of each question, (3, n) for each set, the records of the split first."""
        tables = {split: self._on_records(model, asked, task, run)}
        for name, questions in self.parameters.sets.items():
            tables[name] = self._on_questions(model, questions, asked, task, name)
        return tables

    def _on_records(self, model: nn.Module, asked: Asked, task: Task, run: Run) -> Table:
        said = said_by(model, asked, run, most=self.parameters.most_tokens)
        recall = [rouge_l(mine, right)[1] for mine, right in zip(said, right_answers(asked), strict=True)]
        truth = truth_score(truth_ratios(model, asked, self.parameters, task, run))
        return np.stack([np.exp(-mean_nlls(model, asked.rows, task)), np.array(recall), truth])

    def _on_questions(self, model: nn.Module, questions: tuple[Question, ...], asked: Asked, task: Task, name: str) -> Table:
        def losses(pairs: list[tuple[str, str]], tag: str) -> list[float]:
            return mean_nlls(model, as_records(pairs, asked.rows, asked.tokenizer, f"{name}/{tag}"), task).tolist()

        right = losses([(one.question, one.answer) for one in questions], "right")
        counts = [len(one.wrong) for one in questions]
        flat = losses([(one.question, other) for one in questions for other in one.wrong], "wrong") if sum(counts) else []
        ends = np.cumsum(counts).tolist()
        wrong = [flat[end - count : end] for end, count in zip(ends, counts, strict=True)]
        records = as_records([(one.question, one.answer) for one in questions], asked.rows, asked.tokenizer, f"{name}/asked")
        said = spoken(model, records, asked.tokenizer, most=self.parameters.most_tokens)
        recall = [rouge_l(mine, one.answer)[1] for mine, one in zip(said, questions, strict=True)]
        likely = [normalised_probability(mine, others) for mine, others in zip(right, wrong, strict=True)]
        truth = truth_score([truth_ratio(others, mine) if others else 0.0 for mine, others in zip(right, wrong, strict=True)])
        return np.stack([np.array(likely), np.array(recall), truth])
