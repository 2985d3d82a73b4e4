"""A recurrent network that reads two texts, one after the other, and says what holds of the pair.

Source: the sentence model of Tarun et al., "Deep Regression Unlearning", ICML 2023 (arXiv 2210.08196): the last states of one recurrent layer on both
sentences, then narrowing layers.
Differs: vectors of tokens are learned (released: GloVe's, 300 wide, held); beside both states stand their distance and their product, each by place,
without which a few thousand pairs do not teach the network to compare.
"""

from itertools import pairwise

import torch
from pydantic import Field
from torch import Tensor, nn

from services.learning.architecture import ARCHITECTURES, Architecture


class SentencePairNet(nn.Module):
    """One recurrent layer for both texts, then layers half as wide each. tokens (B, 2 T) int64, 0 is padding -> outputs (B, C)."""

    def __init__(self, vocabulary: int, inputs: int, width: int, outputs: int, *, dropout: float) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, inputs, padding_idx=0)
        self.recurrent = nn.LSTM(inputs, width, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        widths = (4 * width, width, max(1, width // 2), max(1, width // 4))
        self.narrow = nn.Sequential(*(part for pair in pairwise(widths) for part in (nn.Linear(*pair), nn.ReLU())))
        self.head = nn.Linear(widths[-1], outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return outputs (B, C)."""
        first, second = (self._last(half) for half in x.chunk(2, dim=1))
        both = torch.cat([first, second, (first - second).abs(), first * second], dim=1)
        return self.head(self.narrow(self.dropout(both)))

    def _last(self, tokens: Tensor) -> Tensor:
        """Return the state at the last token, (B, W)."""
        steps: Tensor = self.recurrent(self.tokens(tokens))[0]
        return steps[:, -1]


@ARCHITECTURES.register("sentence_pair")
class SentencePair(Architecture):
    """A long short-term memory over both halves of a record of the `text_pair` adapter."""

    modality = "text"
    tasks = frozenset({"classification", "regression"})
    head = "head"

    class Parameters(Architecture.Parameters):
        """Parameters of `sentence_pair`."""

        vocab_size: int = Field(8192, ge=2, le=1_000_000, description="Token ids, padding (0) included; as the dataset's.")
        inputs: int = Field(64, ge=1, le=4096, description="Width of a token's vector.")
        width: int = Field(64, ge=4, le=4096, description="Width of the recurrent state.")
        dropout: float = Field(0.3, ge=0, lt=1, description="Dropout of the states of both texts.")

    def build(self) -> nn.Module:
        """Return the network, freshly drawn."""
        p = self.parameters
        return SentencePairNet(p.vocab_size, p.inputs, p.width, p.outputs, dropout=p.dropout)
