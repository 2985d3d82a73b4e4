"""Appearance rate: how often the model's answers name an entity that is to be forgotten.

Source: Chang et al., arXiv 2405.15662 (text): the share of greedy answers that hold the entity's name.
"""

from dataclasses import replace

import numpy as np
from pydantic import Field
from torch import nn

from services.learning.answers import appearance, spoken
from services.learning.data import Splits
from services.learning.run import Run
from services.learning.task import Task
from services.verification.answers import Asked, SampleParameters, as_records, asked_of, right_answers, said_by
from services.verification.metric import METRICS, Models
from services.verification.reading import Reading, Unmeasured
from services.verification.record_answers import AnswerShare
from services.verification.statistics.scores import Floats

NO_ENTITY = Unmeasured("no_entity_named")
NEVER_OCCURS = Unmeasured("entity_occurs_in_no_answer")


@METRICS.register("appearance_rate")
class AppearanceRate(AnswerShare):
    """Share of greedy answers that hold one of the entities, whatever the case, a hyphen being a space; 0 where none does.

    `detail.paraphrased` is the share on the operator's paraphrased questions, `detail.records` on how many records' own answers it stands.
    """

    class Parameters(SampleParameters):
        """Parameters of `appearance_rate`."""

        entities: tuple[str, ...] = Field((), max_length=1000, description="Names to look for; none: those that the request is about.")
        paraphrases: tuple[str, ...] = Field((), max_length=10_000, description="Other questions about them, asked beside the records'.")

    def values(self, model: nn.Module, asked: Asked, task: Task, run: Run) -> Floats | Unmeasured:  # noqa: ARG002
        """Return 1 where the answer holds an entity, else 0."""
        entities = self.parameters.entities or asked.entities
        if not entities:
            return NO_ENTITY
        return np.array(appearance(said_by(model, asked, run, most=self.parameters.most_tokens), entities), dtype=np.float64)

    def measure(self, models: Models, data: Splits, task: Task, run: Run, *, split: str) -> Reading | Unmeasured:
        """Return the share with its interval. Unmeasured: no entity is named, or the split's own answers never hold one of those named."""
        found = super().measure(models, data, task, run, split=split)
        asked = asked_of(data, split, run, at_most=self.parameters.rows)
        if isinstance(found, Unmeasured) or isinstance(asked, Unmeasured):
            return found
        p, entities = self.parameters, self.parameters.entities or asked.entities
        holding = sum(appearance(right_answers(asked), entities))
        if holding == 0 and split.startswith("forget"):
            return NEVER_OCCURS
        detail: dict[str, object] = {"records": holding, "paraphrased": None}
        if p.paraphrases:
            records = as_records([(question, "-") for question in p.paraphrases], asked.rows, asked.tokenizer, "paraphrase")
            said = spoken(models.unlearned, records, asked.tokenizer, most=p.most_tokens)
            detail["paraphrased"] = float(np.mean(appearance(said, entities)))
        return replace(found, detail=detail)
