"""Pairs of texts to token ids, by the fixed rule of single texts: no vocabulary is learned from records, so none has to be forgotten.

Source: the sentence pairs of Tarun et al., "Deep Regression Unlearning", ICML 2023 (arXiv 2210.08196), padded on the left.
Differs: tokens are hashed (released: GloVe's vectors, words that it lacks as the mean of the others), and no word is left out.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from services.errors import InvalidInput
from services.learning.data import identity
from services.learning.dataset import DATASETS, DatasetAdapter, LabelledParameters, column, labels
from services.learning.word_ids import word_ids


@DATASETS.register("text_pair")
class TextPair(DatasetAdapter):
    """Two texts per record and what holds of the pair: a score, or a class. The first text fills the first half of a record, the second the other."""

    modality = "text"
    tasks = frozenset({"classification", "regression"})
    columns = ("first", "second", "label")

    class Parameters(LabelledParameters):
        """Parameters of `text_pair`."""

        first_column: str = Field("first", min_length=1, max_length=128, description="Column of the first text.")
        second_column: str = Field("second", min_length=1, max_length=128, description="Column of the second text.")
        vocab_size: int = Field(8192, ge=2, le=1_000_000, description="Token ids, padding (0) included.")
        max_length: int = Field(32, ge=1, le=2048, description="Words and signs of each text; longer texts are cut, shorter ones padded on the left.")

    def decode(self, rows: Mapping[str, np.ndarray]) -> tuple[Tensor, Tensor]:
        """Return x (n, 2 * max_length) int64, 0 is padding, and y (n,). Raises MissingLabels, or InvalidInput where a text is missing."""
        p = self.parameters
        y = labels(rows, p)
        halves = [self._half(column(rows, name).tolist(), name) for name in (p.first_column, p.second_column)]
        return torch.from_numpy(np.concatenate(halves, axis=1)), y

    def _half(self, texts: list[object], name: str) -> np.ndarray:
        """Return the ids of texts, (n, max_length), each at the end of its row."""
        p = self.parameters
        x = np.zeros((len(texts), p.max_length), dtype=np.int64)
        for row, text in enumerate(texts):
            if not isinstance(text, str):
                raise InvalidInput(detail=f"every value of the column {name!r} must be a string")
            ids = word_ids(text, p.vocab_size, p.max_length)
            x[row, p.max_length - len(ids) :] = ids
        return x

    def prepare(self) -> Callable[[Tensor], Tensor]:
        """Return the identity: the model takes token ids."""
        return identity
