"""Whether a dataset and a model of language read texts alike, told by their parameters: a wrong token is a wrong word, and no error shows it later."""

from collections.abc import Mapping
from typing import Any

from services.errors import InvalidInput, TokenizerMismatch

SPECIAL = 259
"""Tokens of the project's own tokenizer before the first word: padding, the mark, the end, 256 bytes."""


def check_network(architecture: str, params: Mapping[str, Any]) -> None:
    """Raise InvalidInput where a small GPT does not have one output for each token of its vocabulary."""
    if architecture != "small_gpt":
        return
    wanted = SPECIAL + len(params.get("vocabulary") or ())
    if params.get("outputs") != wanted:
        raise InvalidInput(
            detail=f"a small_gpt with {wanted - SPECIAL} words needs architecture_params.outputs {wanted}, not {params.get('outputs')}."
        )


def check_alike(*, model: str, architecture: str, network: Mapping[str, Any], dataset: str, adapter: Mapping[str, Any]) -> None:
    """Raise TokenizerMismatch where the records of a dataset would be other tokens than the model's. Other architectures and adapters pass."""
    words, held = list(adapter.get("vocabulary") or ()), list(network.get("vocabulary") or ())
    source, own = adapter.get("tokenizer"), network.get("model")
    length, longest = int(adapter.get("max_length") or 128), int(network.get("max_length") or 128)

    def refuse(detail: str) -> TokenizerMismatch:
        return TokenizerMismatch(dataset=dataset, model=model, detail=detail)

    if architecture == "small_gpt":
        if source is not None:
            raise refuse(f"the dataset uses the tokenizer {source}, the model a vocabulary of words")
        if words != held:
            raise refuse(
                f"the dataset has a vocabulary of {len(words)} words, the model one of {len(held)}, and they are not the same words in one order"
            )
        if length > longest:
            raise refuse(f"records have up to {length} tokens, and the model reads {longest}")
    if architecture == "transformers_lm" and source != own:
        raise refuse(f"the dataset uses {'the tokenizer ' + str(source) if source else 'a vocabulary of words'}, the model the tokenizer of {own}")
