"""A small temporal transformer: gated residual parts, a recurrent layer for what is near and attention for what is far, read at the last step.

Source: in the manner of Lim et al., "Temporal Fusion Transformers", International Journal of Forecasting 2021: gated residual networks, a
recurrent encoder before interpretable attention, gates around each part, quantiles at the head.
Differs: every channel of the past is one input vector (no selection of variables, no static covariates, no known future), and attention heads
have values of their own.
"""

from typing import ClassVar

from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import elu, glu, scaled_dot_product_attention

from services.learning.architecture import ARCHITECTURES, Architecture


class GatedResidual(nn.Module):
    """Two linear layers with ELU between them, gated, added to the input, and normalised. (..., W) -> (..., W)."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.gate = Gate(width)

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., W)."""
        return self.gate(self.dropout(self.second(elu(self.first(x)))), x)


class Gate(nn.Module):
    """A gated linear unit of one input, added to another, and normalised. (..., W), (..., W) -> (..., W)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 2 * width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Return (..., W)."""
        return self.norm(skip + glu(self.linear(x), dim=-1))


class Attend(nn.Module):
    """Attention of every step to those before it, gated, then a gated residual part. (B, T, W) -> (B, T, W)."""

    sequence_map: ClassVar[bool] = True

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width)
        self.gate = Gate(width)
        self.after = GatedResidual(width, dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, T, W)."""
        count, length, width = x.shape
        parts = self.query_key_value(x).view(count, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
        read = scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.after(self.gate(self.mix(read.transpose(1, 2).reshape(count, length, width)), x))


class TemporalTransformerNet(nn.Module):
    """Embedding, recurrent encoder, attention blocks, head. x (B, T, ch) float32 -> outputs (B, C), step by step, quantile by quantile."""

    def __init__(self, inputs: int, outputs: int, width: int, *, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.embed = nn.Linear(inputs, width)
        self.select = GatedResidual(width, dropout)
        self.near = nn.LSTM(width, width, batch_first=True)
        self.near_gate = Gate(width)
        self.far = nn.Sequential(*(Attend(width, heads, dropout) for _ in range(layers)))
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return outputs (B, C)."""
        embedded = self.select(self.embed(x))
        encoded = self.near_gate(self.near(embedded)[0], embedded)
        return self.head(self.far(encoded)[:, -1])


@ARCHITECTURES.register("temporal_transformer")
class TemporalTransformer(Architecture):
    """A small temporal transformer for forecasting, of about 50 thousand weights at its default width."""

    modality = "series"
    tasks = frozenset({"regression", "forecasting"})
    lacks = frozenset({"convolutions"})
    head = "head"

    class Parameters(Architecture.Parameters):
        """Parameters of `temporal_transformer`; `outputs` is steps times quantiles."""

        inputs: int = Field(1, ge=1, le=4096, description="Numbers per step.")
        width: int = Field(32, ge=4, le=1024, description="Width of the hidden vectors; a multiple of `heads`.")
        layers: int = Field(1, ge=1, le=12, description="Attention blocks.")
        heads: int = Field(4, ge=1, le=32, description="Attention heads.")
        dropout: float = Field(0.1, ge=0, lt=1, description="Dropout of each gated residual part.")

        @model_validator(mode="after")
        def _heads_divide(self) -> "TemporalTransformer.Parameters":
            if self.width % self.heads:
                raise ValueError("width must be a multiple of heads")
            return self

    def build(self) -> nn.Module:
        """Return the network, freshly drawn."""
        p = self.parameters
        return TemporalTransformerNet(p.inputs, p.outputs, p.width, layers=p.layers, heads=p.heads, dropout=p.dropout)
