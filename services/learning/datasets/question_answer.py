"""Questions and their answers as tokens: what is asked is read, what is answered is learned."""

from collections.abc import Callable, Mapping

import numpy as np
from pydantic import Field
from torch import Tensor

from services.errors import InvalidInput
from services.learning.data import identity
from services.learning.dataset import DATASETS, DatasetAdapter, column
from services.learning.tokens import Tokenizer, TransformersTokenizer, WordTokenizer, packed


@DATASETS.register("question_answer")
class QuestionAnswer(DatasetAdapter):
    """Pairs of question and answer, one a record: x the tokens of both, y those of the answer, everything else masked."""

    modality = "text"
    tasks = frozenset({"language_model"})
    columns = ("question", "answer")

    class Parameters(DatasetAdapter.Parameters):
        """Parameters of `question_answer`."""

        question_column: str = Field("question", min_length=1, max_length=128, description="Column of what is asked.")
        answer_column: str = Field("answer", min_length=1, max_length=128, description="Column of what is answered.")
        vocabulary: tuple[str, ...] = Field(
            (), max_length=200_000, description="Words in order, each with the space before it; what is not among them is spelled in bytes."
        )
        tokenizer: str | None = Field(None, max_length=4096, description="Directory or hub id of a model's tokenizer, in place of a vocabulary.")
        max_length: int = Field(128, ge=4, le=32_768, description="Tokens per record; a longer answer loses its end.")

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of its records."""
        p = self.parameters
        return WordTokenizer(p.vocabulary) if p.tokenizer is None else TransformersTokenizer(p.tokenizer)

    def decode(self, rows: Mapping[str, np.ndarray]) -> tuple[Tensor, Tensor]:
        """Return x (n, max_length) int64 and y like it, -100 outside the answers. Raises InvalidInput: a column or a text is missing or too long."""
        p, tokenizer = self.parameters, self.tokenizer
        texts = [column(rows, name).tolist() for name in (p.question_column, p.answer_column)]
        for name, values in zip((p.question_column, p.answer_column), texts, strict=True):
            if not all(isinstance(value, str) and value.strip() for value in values):
                raise InvalidInput(detail=f"every value of the column {name!r} must be a text that is not empty")
        pairs = [(tokenizer.prompt(question), tokenizer.answer(answer)) for question, answer in zip(*texts, strict=True)]
        return packed(pairs, tokenizer, p.max_length)

    def prepare(self) -> Callable[[Tensor], Tensor]:
        """Return the identity: the model takes token ids."""
        return identity
