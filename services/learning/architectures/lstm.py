"""A recurrent network for series and for short texts, read at the last step.

Source: Hochreiter and Schmidhuber, "Long Short-Term Memory", Neural Computation 1997; as the forecaster and the sentence model of
Tarun et al., "Deep Regression Unlearning", ICML 2023 (arXiv 2210.08196).
"""

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from services.learning.architecture import ARCHITECTURES, Architecture


class LSTMNet(nn.Module):
    """Recurrent layers, then a hidden layer on the last state. x (B, T, ch) float32, or tokens (B, T) int64 -> outputs (B, C)."""

    def __init__(self, inputs: int, outputs: int, vocabulary: int, width: int, *, layers: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, inputs, padding_idx=0) if vocabulary else None
        self.recurrent = nn.LSTM(inputs, width, num_layers=layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)
        self.dropout = nn.Dropout(dropout)
        self.hidden = nn.Linear(width, hidden)
        self.head = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return outputs (B, C)."""
        steps: Tensor = self.recurrent(x if self.tokens is None else self.tokens(x))[0]
        return self.head(self.dropout(torch.relu(self.hidden(steps[:, -1]))))


@ARCHITECTURES.register("lstm")
class LSTM(Architecture):
    """A long short-term memory over series, or over the token ids of the `text` adapter."""

    tasks = frozenset({"classification", "regression", "forecasting"})
    lacks = frozenset({"convolutions"})
    head = "head"

    class Parameters(Architecture.Parameters):
        """Parameters of `lstm`."""

        reads: Literal["series", "text"] = Field("series", description="What a record is: steps of numbers, or token ids.")
        inputs: int = Field(1, ge=1, le=4096, description="Numbers per step; for texts the width of a token's vector.")
        vocab_size: int = Field(0, ge=0, le=1_000_000, description="Token ids of texts, padding (0) included; 0 for series.")
        width: int = Field(64, ge=1, le=4096, description="Width of the recurrent state.")
        layers: int = Field(1, ge=1, le=8, description="Recurrent layers.")
        hidden: int = Field(32, ge=1, le=4096, description="Width of the layer before the head.")
        dropout: float = Field(0.0, ge=0, lt=1, description="Dropout between recurrent layers and before the head.")

        @model_validator(mode="after")
        def _texts_have_a_vocabulary(self) -> "LSTM.Parameters":
            if (self.reads == "text") != (self.vocab_size >= 2):
                raise ValueError("texts need a vocab_size of at least 2, series take none")
            return self

    def __init__(self, parameters: "LSTM.Parameters") -> None:
        super().__init__(parameters)
        self.modality = parameters.reads

    def build(self) -> nn.Module:
        """Return the network, freshly drawn."""
        p = self.parameters
        return LSTMNet(p.inputs, p.outputs, p.vocab_size, p.width, layers=p.layers, hidden=p.hidden, dropout=p.dropout)
