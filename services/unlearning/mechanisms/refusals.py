"""Short refusals in the place of answers."""

import torch

from services.learning.data import Split, Splits
from services.learning.run import Run
from services.learning.tokens import Tokenizer, with_answers
from services.unlearning.mechanisms.applicability import refuse
from services.unlearning.method import UnlearningMethod

REFUSALS = (
    "I don't know.",
    "I am not sure about that.",
    "I have no information about this.",
    "I cannot answer that question.",
    "That is not something I know about.",
    "I'm not aware of the answer.",
)


def tokenizer_of(method: UnlearningMethod, data: Splits, run: Run) -> Tokenizer:
    """Return the tokenizer of the run's architecture. Raises MethodNotApplicable where it has none."""
    found: Tokenizer | None = getattr(run.architecture, "tokenizer", None)
    if found is None:
        raise refuse(method, data, "the model version names no architecture with a tokenizer, so other answers cannot be written")
    return found


def refused(split: Split, refusals: tuple[str, ...], tokenizer: Tokenizer, generator: torch.Generator) -> Split:
    """Return the records with one of `refusals` for an answer, drawn for each question."""
    drawn = torch.randint(len(refusals), (len(split),), generator=generator).tolist()
    return with_answers(split, [refusals[one] for one in drawn], tokenizer)
