"""A dataset and a model of language are held against each other by their parameters."""

import pytest

from services.errors import InvalidInput, TokenizerMismatch
from services.learning.tokens import FIRST_WORD
from services.model_versions.tokenizers import SPECIAL, check_alike, check_network

WORDS = {"vocabulary": [" a", " b"], "max_length": 64}


def alike(architecture: str, network: dict[str, object], adapter: dict[str, object]) -> None:
    check_alike(model="m", architecture=architecture, network=network, dataset="d", adapter=adapter)


def test_one_vocabulary_in_one_order_and_no_longer_records_pass():
    alike("small_gpt", WORDS, WORDS)
    alike("small_gpt", WORDS, {**WORDS, "max_length": 32})
    alike("transformers_lm", {"model": "here/gpt"}, {"tokenizer": "here/gpt"})
    alike("text_transformer", {"vocabulary": [" c"]}, WORDS)


@pytest.mark.parametrize(
    ("architecture", "network", "adapter", "told"),
    [
        ("small_gpt", WORDS, {**WORDS, "vocabulary": [" b", " a"]}, "not the same words in one order"),
        ("small_gpt", WORDS, {**WORDS, "max_length": 65}, "up to 65 tokens, and the model reads 64"),
        ("small_gpt", {"vocabulary": []}, {"tokenizer": "here/gpt"}, "the tokenizer here/gpt"),
        ("transformers_lm", {"model": "here/gpt"}, WORDS, "a vocabulary of words"),
        ("transformers_lm", {"model": "here/gpt"}, {"tokenizer": "there/gpt"}, "there/gpt"),
    ],
)
def test_other_tokens_are_refused_with_the_difference(architecture, network, adapter, told):
    with pytest.raises(TokenizerMismatch, match=told):
        alike(architecture, network, adapter)


def test_a_small_network_has_one_output_for_each_token():
    assert SPECIAL == FIRST_WORD
    check_network("small_gpt", {**WORDS, "outputs": SPECIAL + 2})
    check_network("mlp", {"outputs": 3})
    with pytest.raises(InvalidInput, match=f"outputs {SPECIAL + 2}, not 10"):
        check_network("small_gpt", {**WORDS, "outputs": 10})
