"""Causal language models of the transformers package, from a local directory or a hub id. Weights are read from safetensors alone.

Source: Wolf et al., "Transformers: State-of-the-Art Natural Language Processing", EMNLP 2020.
Differs: where a model shares one tensor between embedding and head, the head gets its own copy, so that every tensor of a checkpoint is its own;
no code that comes with a model is run.
"""

from functools import cached_property
from importlib import import_module
from typing import Any, Literal

from pydantic import Field
from torch import Tensor, nn

from services.errors import ParameterOutOfRange
from services.learning.architecture import ARCHITECTURES, Architecture
from services.learning.tokens import Tokenizer, TransformersTokenizer


class TransformersNet(nn.Module):
    """A model of transformers as the project runs it. tokens (B, T) int64 -> logits (B, T, V); records are padded at the end."""

    def __init__(self, network: nn.Module, longest: int) -> None:
        super().__init__()
        self.network = network
        self.longest = longest

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, T, V)."""
        return self.network(input_ids=x, use_cache=False).logits

    def continued(self, x: Tensor, past: Any = None) -> tuple[Tensor, Any]:
        """Return logits (B, T, V) and the state to go on from. Without a past x is the whole text, with one it is the next token (T = 1)."""
        found = self.network(input_ids=x, past_key_values=past, use_cache=True)
        return found.logits, found.past_key_values


@ARCHITECTURES.register("transformers_lm")
class TransformersLM(Architecture):
    """A causal language model that transformers can load, by directory or hub id, fresh from its published weights or from its form alone."""

    modality = "text"
    tasks = frozenset({"language_model"})

    class Parameters(Architecture.Parameters):
        """Parameters of `transformers_lm`. `outputs` is the model's number of token ids."""

        model: str = Field(min_length=1, max_length=4096, description="Local directory, or hub id, of the model and its tokenizer.")
        revision: str | None = Field(None, max_length=128, description="Commit of a hub id; null: its main branch.")
        start: Literal["published", "random"] = Field(
            "published", description="What a fresh model is: the published weights, which never saw the records, or weights drawn anew."
        )

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of its records."""
        return TransformersTokenizer(self.parameters.model)

    @cached_property
    def head(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]  each model names its own
        """Path of the layer that makes the logits."""
        network = self._random()
        last = network.get_output_embeddings()
        return "network." + next(name for name, module in network.named_modules() if module is last)

    def build(self) -> nn.Module:
        """Return the network. Raises ParameterOutOfRange: transformers is not installed, nothing can be loaded, or the tokens do not fit."""
        config = self._config()
        if self.parameters.outputs != config.vocab_size:
            raise ParameterOutOfRange(name="outputs", detail=f"the model has {config.vocab_size} tokens, not {self.parameters.outputs}")
        network = self._random() if self.parameters.start == "random" else self._published()
        longest = int(getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 2048)
        return TransformersNet(network, longest)

    def _config(self) -> Any:
        return _called("AutoConfig", self.parameters.model, revision=self.parameters.revision or "main")

    def _random(self) -> Any:
        config = self._config()
        config.tie_word_embeddings = False
        return import_module("transformers").AutoModelForCausalLM.from_config(config, trust_remote_code=False).float()

    def _published(self) -> Any:
        network = _called("AutoModelForCausalLM", self.parameters.model, revision=self.parameters.revision or "main", use_safetensors=True).float()
        head, tokens = network.get_output_embeddings(), network.get_input_embeddings()
        if head.weight is tokens.weight:
            head.weight = nn.Parameter(tokens.weight.detach().clone())
            network.config.tie_word_embeddings = False
        return network


def _called(family: str, source: str, **how: object) -> Any:
    """Return what `family.from_pretrained` makes of `source`."""
    try:
        transformers = import_module("transformers")  # optional, and its types take the checker a quarter of a minute
    except ImportError as missing:
        raise ParameterOutOfRange(name="model", detail="the package transformers is not installed here") from missing
    try:
        return getattr(transformers, family).from_pretrained(source, trust_remote_code=False, **how)
    except (OSError, ValueError) as error:
        raise ParameterOutOfRange(name="model", detail=f"nothing could be loaded from {source}: {error}") from error
