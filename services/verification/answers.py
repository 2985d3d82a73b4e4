"""A language model's answers and likelihoods on one split, in an order that does not depend on how the records came."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import ArrayLike
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from services.learning.answers import expected, spoken
from services.learning.data import Split, Splits
from services.learning.run import Run
from services.learning.task import Task
from services.learning.tokens import IGNORED, Tokenizer, packed, with_answers
from services.verification.metric import Metric
from services.verification.outputs import NO_ARCHITECTURE, by_id, generator_of, rows_of
from services.verification.reading import Reading, Unmeasured
from services.verification.statistics.clusters import grouped_mean_interval, groups_of
from services.verification.statistics.scores import Floats

NO_TOKENIZER = Unmeasured("no_tokenizer")
_SPOKEN: WeakKeyDictionary[Run, dict[tuple[int, tuple[str, ...], int], tuple[nn.Module, list[str]]]] = WeakKeyDictionary()


class SampleParameters(Metric.Parameters):
    """Parameters of metrics that let the model answer."""

    rows: int = Field(200, ge=1, le=100_000, description="At most this many records are asked, drawn by the seed.")
    most_tokens: int = Field(64, ge=1, le=4096, description="Tokens after which an answer is cut off.")


class Question(BaseModel):
    """A question beside the records, with its right answer and wrong ones."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    question: str = Field(min_length=1, max_length=10_000, description="What is asked.")
    answer: str = Field(min_length=1, max_length=10_000, description="The right answer.")
    wrong: tuple[str, ...] = Field((), max_length=100, description="Wrong answers of the same form.")


@dataclass(frozen=True, slots=True)
class Asked:
    """Records of a split sorted by id, with the groups whose answers are not independent, and the names that the request is about."""

    rows: Split
    tokenizer: Tokenizer
    entities: tuple[str, ...] = field(default=(), repr=False)

    @property
    def groups(self) -> list[str]:
        """The group of each record."""
        return groups_of(self.rows.ids)


def tokenizer_in(run: Run) -> Tokenizer | Unmeasured:
    """Return the tokenizer of the run's architecture, or that there is none."""
    if run.architecture is None:
        return NO_ARCHITECTURE
    return getattr(run.architecture, "tokenizer", NO_TOKENIZER)


def asked_of(data: Splits, split: str, run: Run, *, at_most: int | None = None) -> Asked | Unmeasured:
    """Return at most so many records of a split, or why there are none."""
    rows, tokenizer = rows_of(data, split), tokenizer_in(run)
    if isinstance(rows, Unmeasured):
        return rows
    if isinstance(tokenizer, Unmeasured):
        return tokenizer
    return Asked(by_id(rows, at_most=at_most, generator=run.stream(f"asked/{split}")), tokenizer, data.entities)


def said_by(model: nn.Module, asked: Asked, run: Run, *, most: int) -> list[str]:
    """Return the model's greedy answers, generated once for all readings of one run. The model is held, so that no identity is reused."""
    known = _SPOKEN.setdefault(run, {})
    key = (id(model), asked.rows.ids, most)
    if key not in known:
        known[key] = (model, spoken(model, asked.rows, asked.tokenizer, most=most))
    return known[key][1]


def right_answers(asked: Asked) -> list[str]:
    """Return the records' own answers."""
    return expected(asked.rows, asked.tokenizer)


def token_logs(model: nn.Module, rows: Split, task: Task) -> list[Floats]:
    """Return the log-probabilities of each record's answer tokens, float64."""
    found = task.predict(model, rows)[..., 0].double().numpy()
    answered = (rows.y != IGNORED).cpu().numpy()
    answered[:, 0] = False
    return [logs[chosen] for logs, chosen in zip(found, answered, strict=True)]


def mean_nlls(model: nn.Module, rows: Split, task: Task) -> Floats:
    """Return the mean loss per answer token of each record, (n,) float64."""
    return np.array([-logs.mean() for logs in token_logs(model, rows, task)])


def told_otherwise(asked: Asked, answers: Sequence[str], tag: str) -> Split:
    """Return the same questions with other answers; the ids say so, so that no remembered output is taken for these."""
    other = with_answers(asked.rows, answers, asked.tokenizer)
    return Split(other.x, other.y, tuple(f"{one}#{tag}" for one in asked.rows.ids), other.prepare)


def as_records(pairs: Sequence[tuple[str, str]], like: Split, tokenizer: Tokenizer, tag: str) -> Split:
    """Return pairs of question and answer as records of the form of `like`."""
    x, y = packed([(tokenizer.prompt(question), tokenizer.answer(answer)) for question, answer in pairs], tokenizer, int(like.x.shape[1]))
    return Split(x.to(like.x.device), y.to(like.x.device), tuple(f"{tag}#{row}" for row in range(len(x))), like.prepare)


def grouped_reading(values: ArrayLike, groups: Sequence[str], run: Run, purpose: str, *, level: float) -> Reading:
    """Return the mean of `values` (n,) with its bootstrap interval over groups."""
    held = np.asarray(values, dtype=np.float64)
    low, high = grouped_mean_interval(held, groups, level=level, rng=generator_of(run, purpose))
    return Reading(float(held.mean()), low, high, level, len(held))
