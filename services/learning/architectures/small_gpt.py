"""A small decoder-only transformer, trained from scratch on the project's own tokens.

Source: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019.
Differs: embedding and head share no weights, so that every tensor is its own; projections are separate layers, under
the names that adapters look for.
"""

from pydantic import Field, model_validator
from torch import Tensor, cat, nn, randn
from torch.nn.functional import gelu, scaled_dot_product_attention

from services.learning.architecture import ARCHITECTURES, Architecture
from services.learning.tokens import FIRST_WORD, WordTokenizer

Past = list[tuple[Tensor, Tensor]]


class Block(nn.Module):
    """Causal self-attention and a two-layer network, each added to its input. x (B, T, W)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention = nn.LayerNorm(width)
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.o_proj = nn.Linear(width, width)
        self.before_wide = nn.LayerNorm(width)
        self.up_proj = nn.Linear(width, 4 * width)
        self.down_proj = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, past: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return (B, T, W), and keys and values (B, heads, T, d) of all tokens so far. With a past, x is one token (T = 1)."""
        count, length, width = x.shape
        normal = self.before_attention(x)
        query, key, value = (
            layer(normal).view(count, length, self.heads, width // self.heads).transpose(1, 2) for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        if past is not None:
            key, value = cat([past[0], key], dim=2), cat([past[1], value], dim=2)
        read = scaled_dot_product_attention(query, key, value, is_causal=past is None)
        x = x + self.dropout(self.o_proj(read.transpose(1, 2).reshape(count, length, width)))
        return x + self.dropout(self.down_proj(gelu(self.up_proj(self.before_wide(x))))), (key, value)


class SmallGPTNet(nn.Module):
    """Token and place vectors, blocks, a head. tokens (B, T) int64 -> logits (B, T, V). Padding at the end changes nothing before it."""

    def __init__(self, outputs: int, max_length: int, width: int, *, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.longest = max_length
        self.tokens = nn.Embedding(outputs, width)
        self.places = nn.Parameter(randn(max_length, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.last_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, outputs, bias=False)
        nn.init.normal_(self.tokens.weight, std=0.1)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, T, V)."""
        return self.continued(x)[0]

    def continued(self, x: Tensor, past: Past | None = None) -> tuple[Tensor, Past]:
        """Return logits (B, T, V) and the state to go on from. Without a past x is the whole text, with one it is the next token (T = 1)."""
        start = 0 if past is None else past[0][0].shape[2]
        hidden = self.dropout(self.tokens(x) + self.places[start : start + x.shape[1]])
        state: Past = []
        for number, block in enumerate(self.blocks):
            hidden, held = block(hidden, None if past is None else past[number])
            state.append(held)
        return self.head(self.last_norm(hidden)), state


@ARCHITECTURES.register("small_gpt")
class SmallGPT(Architecture):
    """A small language model over words of a given list, with bytes for all others."""

    modality = "text"
    tasks = frozenset({"language_model"})
    lacks = frozenset({"convolutions"})
    head = "head"

    class Parameters(Architecture.Parameters):
        """Parameters of `small_gpt`. `outputs` is the number of token ids: 259 and one for each word of the vocabulary."""

        vocabulary: tuple[str, ...] = Field((), max_length=200_000, description="Words in order, as the dataset's; none: bytes alone.")
        max_length: int = Field(128, ge=4, le=4096, description="Most tokens per record; as the dataset's.")
        width: int = Field(128, ge=8, le=2048, description="Width of the hidden vectors; a multiple of `heads`.")
        layers: int = Field(3, ge=1, le=48, description="Blocks.")
        heads: int = Field(4, ge=1, le=64, description="Attention heads.")
        dropout: float = Field(0.0, ge=0, lt=1, description="Dropout of embeddings and of each block.")

        @model_validator(mode="after")
        def _fits(self) -> "SmallGPT.Parameters":
            if self.width % self.heads:
                raise ValueError("width must be a multiple of heads")
            if self.outputs != FIRST_WORD + len(self.vocabulary):
                raise ValueError(f"outputs must be {FIRST_WORD} and one for each word: {FIRST_WORD + len(self.vocabulary)}")
            return self

    @property
    def tokenizer(self) -> WordTokenizer:
        """The tokenizer of its records."""
        return WordTokenizer(self.parameters.vocabulary)

    def build(self) -> nn.Module:
        """Return the network, freshly drawn."""
        p = self.parameters
        return SmallGPTNet(p.outputs, p.max_length, p.width, layers=p.layers, heads=p.heads, dropout=p.dropout)
