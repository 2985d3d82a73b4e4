"""A small transformer encoder for short texts, read at a class token.

Source: Vaswani et al., "Attention Is All You Need", NeurIPS 2017; normalisation before each part, as in Xiong et al., ICML 2020.
"""

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from services.learning.architecture import ARCHITECTURES, Architecture

PADDING = 0


class Block(nn.Module):
    """Self-attention and a two-layer network, each added to its input. x (B, T, W), mask (B, 1, 1, T), true where a token may be read."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width)
        self.before_wide = nn.LayerNorm(width)
        self.widen = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return (B, T, W)."""
        count, length, width = x.shape
        parts = self.query_key_value(self.before_attention(x)).view(count, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
        read = scaled_dot_product_attention(query, key, value, attn_mask=mask)
        x = x + self.dropout(self.mix(read.transpose(1, 2).reshape(count, length, width)))
        return x + self.dropout(self.narrow(gelu(self.widen(self.before_wide(x)))))


class TextTransformerNet(nn.Module):
    """Token and place vectors, a class token before them, then blocks. tokens (B, T) int64, 0 is padding -> logits (B, C)."""

    def __init__(self, outputs: int, vocabulary: int, max_length: int, width: int, *, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width, padding_idx=PADDING)
        self.places = nn.Parameter(torch.randn(max_length + 1, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.last_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, C). The class token is always readable, so that a record of padding alone is finite too."""
        count, length = x.shape
        embedded = torch.cat([self.places[:1].expand(count, 1, -1), self.tokens(x) + self.places[1 : length + 1]], dim=1)
        readable = torch.cat([x.new_ones(count, 1), x], dim=1).ne(PADDING)[:, None, None, :]
        hidden = self.dropout(embedded)
        for block in self.blocks:
            hidden = block(hidden, readable)
        return self.head(self.last_norm(hidden[:, 0]))


@ARCHITECTURES.register("text_transformer")
class TextTransformer(Architecture):
    """A small transformer encoder over the token ids of the `text` adapter."""

    modality = "text"
    tasks = frozenset({"classification", "regression"})
    lacks = frozenset({"convolutions"})
    head = "head"

    class Parameters(Architecture.Parameters):
        """Parameters of `text_transformer`."""

        vocab_size: int = Field(8192, ge=2, le=1_000_000, description="Token ids, padding (0) included; as the dataset's.")
        max_length: int = Field(64, ge=1, le=4096, description="Most tokens per record; as the dataset's.")
        width: int = Field(64, ge=8, le=1024, description="Width of the hidden vectors; a multiple of `heads`.")
        layers: int = Field(2, ge=1, le=24, description="Blocks.")
        heads: int = Field(4, ge=1, le=32, description="Attention heads.")
        dropout: float = Field(0.1, ge=0, lt=1, description="Dropout of embeddings and of each block.")

        @model_validator(mode="after")
        def _heads_divide(self) -> "TextTransformer.Parameters":
            if self.width % self.heads:
                raise ValueError("width must be a multiple of heads")
            return self

    def build(self) -> nn.Module:
        """Return the network, freshly drawn."""
        p = self.parameters
        return TextTransformerNet(p.outputs, p.vocab_size, p.max_length, p.width, layers=p.layers, heads=p.heads, dropout=p.dropout)
