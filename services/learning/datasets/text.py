"""Texts to token ids by a fixed rule: no vocabulary is learned from records, so none has to be forgotten."""

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from services.errors import InvalidInput
from services.learning.data import identity
from services.learning.dataset import DATASETS, DatasetAdapter, LabelledParameters, column, labels
from services.learning.word_ids import word_ids

BYTES = 256


@DATASETS.register("text")
class Text(DatasetAdapter):
    """Texts cut into words or bytes; a word's id is its keyless BLAKE2 digest modulo the vocabulary, so that two words may share an id."""

    modality = "text"
    tasks = frozenset({"classification", "regression"})
    columns = ("text", "label")

    class Parameters(LabelledParameters):
        """Parameters of `text`."""

        tokens: Literal["words", "bytes"] = Field("words", description="What a token is: a lower-case word or sign, or one byte of UTF-8.")
        vocab_size: int = Field(8192, ge=2, le=1_000_000, description="Token ids, padding (0) included; bytes need 257.")
        max_length: int = Field(64, ge=1, le=4096, description="Tokens per record; longer texts are cut, shorter ones padded.")

        @model_validator(mode="after")
        def _room_for_bytes(self) -> "Text.Parameters":
            if self.tokens == "bytes" and self.vocab_size <= BYTES:
                raise ValueError("bytes need a vocab_size of at least 257")
            return self

    def decode(self, rows: Mapping[str, np.ndarray]) -> tuple[Tensor, Tensor]:
        """Return x (n, max_length) int64, 0 is padding, and y (n,) int64. Raises MissingLabels, or InvalidInput where a text is missing."""
        p = self.parameters
        y = labels(rows, p)
        texts = column(rows, "text").tolist()
        if not all(isinstance(text, str) for text in texts):
            raise InvalidInput(detail="every value of the column 'text' must be a string")
        tokenise = byte_ids if p.tokens == "bytes" else word_ids
        x = np.zeros((len(texts), p.max_length), dtype=np.int64)
        for row, text in enumerate(texts):
            ids = tokenise(text, p.vocab_size, p.max_length)
            x[row, : len(ids)] = ids
        return torch.from_numpy(x), y

    def prepare(self) -> Callable[[Tensor], Tensor]:
        """Return the identity: the model takes token ids."""
        return identity


def byte_ids(text: str, vocab_size: int, max_length: int) -> list[int]:  # noqa: ARG001  one signature for both rules
    """Return 1 + byte for the first bytes of the text's UTF-8."""
    return [1 + byte for byte in text.encode("utf-8", errors="replace")[:max_length]]
