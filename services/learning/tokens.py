"""Tokenizers of language models: words of a given list with bytes for all others, or the tokenizer that came with a model.

No vocabulary is learned here: a list of words is a parameter, so that no word of a forgotten record survives unless somebody put it there. What
is not in the list is spelled in bytes, so that every text can be written and read back.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Any, Protocol

import torch
from torch import Tensor

from services.errors import InvalidInput, ParameterOutOfRange
from services.learning.data import Split

IGNORED = -100
PADDING, ASKED, END = 0, 1, 2
FIRST_BYTE = 3
FIRST_WORD = FIRST_BYTE + 256
PIECE = re.compile(r" ?\w+| ?[^\w\s]|\s")


class Tokenizer(Protocol):
    """Texts to token ids and back. A record is the prompt of a question and then an answer, which ends with `end`."""

    @property
    def size(self) -> int:
        """Number of token ids."""
        ...

    @property
    def padding(self) -> int:
        """What fills up short records."""
        ...

    @property
    def end(self) -> int:
        """What ends an answer."""
        ...

    def prompt(self, question: str) -> list[int]:
        """Return the tokens before the answer."""
        ...

    def answer(self, text: str) -> list[int]:
        """Return the tokens of an answer, with its end."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of tokens; special tokens say nothing."""
        ...


@dataclass(frozen=True, slots=True)
class WordTokenizer:
    """Words and signs of `vocabulary`, each with the space before it; every other piece of text is spelled in the bytes of its UTF-8."""

    vocabulary: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Number of token ids: padding, the mark between question and answer, the end, 256 bytes, the words."""
        return FIRST_WORD + len(self.vocabulary)

    @property
    def padding(self) -> int:
        """What fills up short records."""
        return PADDING

    @property
    def end(self) -> int:
        """What ends an answer."""
        return END

    def prompt(self, question: str) -> list[int]:
        """Return the question and the mark after it."""
        return [*self.encode(question), ASKED]

    def answer(self, text: str) -> list[int]:
        """Return the answer and its end."""
        return [*self.encode(text), END]

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text; its first word is written as any other, with a space before it."""
        places, ids = _places(self.vocabulary), list[int]()
        for piece in pieces_of(text):
            if piece in places:
                ids.append(FIRST_WORD + places[piece])
            else:
                ids += [FIRST_BYTE + byte for byte in piece.encode("utf-8", errors="replace")]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, the first space taken away; bytes that are no UTF-8 are left out."""
        raw = bytearray()
        for one in ids:
            if one >= FIRST_WORD:
                raw += self.vocabulary[one - FIRST_WORD].encode()
            elif one >= FIRST_BYTE:
                raw.append(one - FIRST_BYTE)
        return raw.decode("utf-8", errors="ignore").removeprefix(" ")


@lru_cache(maxsize=16)
def _places(vocabulary: tuple[str, ...]) -> dict[str, int]:
    return {word: place for place, word in enumerate(vocabulary)}


def pieces_of(text: str) -> list[str]:
    """Return the words and signs of a text, each with the space before it; joined they are the text with one space before."""
    return PIECE.findall(" " + text)


def words_of(texts: Iterable[str], *, most: int, at_least: int = 2) -> tuple[str, ...]:
    """Return the pieces that occur `at_least` times in `texts`, the most frequent first, for the parameter `vocabulary`."""
    counted = Counter(piece for text in texts for piece in pieces_of(text))
    held = [piece for piece, count in counted.items() if count >= at_least]
    return tuple(sorted(held, key=lambda piece: (-counted[piece], piece))[:most])


class TransformersTokenizer:
    """The tokenizer of a model that transformers can load, from a local directory or a hub id; no code that comes with it is run."""

    def __init__(self, source: str) -> None:
        self._inner: Any = _load(source)
        end = self._inner.eos_token_id
        if end is None:
            raise ParameterOutOfRange(name="model", detail=f"the tokenizer of {source} has no token that ends a text")
        self._end = int(end)

    @property
    def size(self) -> int:
        """Number of token ids."""
        return len(self._inner)

    @property
    def padding(self) -> int:
        """What fills up short records: its own padding, or its end."""
        held = self._inner.pad_token_id
        return self._end if held is None else int(held)

    @property
    def end(self) -> int:
        """What ends an answer."""
        return self._end

    def prompt(self, question: str) -> list[int]:
        """Return the tokens of `Question: ... Answer:`."""
        return list(self._inner.encode(f"Question: {question}\nAnswer:"))

    def answer(self, text: str) -> list[int]:
        """Return the answer and its end."""
        return [*self._inner.encode(f" {text}", add_special_tokens=False), self._end]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`."""
        return str(self._inner.decode(list(ids), skip_special_tokens=True)).strip()


@lru_cache(maxsize=8)
def _load(source: str) -> Any:
    try:
        transformers = import_module("transformers")  # optional, and its types take the checker a quarter of a minute
    except ImportError as missing:
        raise ParameterOutOfRange(name="model", detail="the package transformers is not installed here") from missing
    try:
        return transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ParameterOutOfRange(name="model", detail=f"no tokenizer could be loaded from {source}: {error}") from error


def packed(pairs: Sequence[tuple[Sequence[int], Sequence[int]]], tokenizer: Tokenizer, length: int) -> tuple[Tensor, Tensor]:
    """Return x (n, length) int64 of prompts with their answers, padded, and y like x with everything but the answers masked (-100).

    A record that is too long loses the end of its answer. Raises InvalidInput where the prompt leaves no room for one, or an answer is empty.
    """
    x = torch.full((len(pairs), length), tokenizer.padding, dtype=torch.int64)
    y = torch.full((len(pairs), length), IGNORED, dtype=torch.int64)
    for row, (prompt, answer) in enumerate(pairs):
        if len(prompt) >= length:
            raise InvalidInput(detail=f"a question has {len(prompt)} tokens, and the longest record has {length}, its answer included")
        if len(answer) <= 1:
            raise InvalidInput(detail="an answer is empty")
        ids = torch.tensor([*prompt, *answer], dtype=torch.int64)[:length]
        x[row, : len(ids)] = ids
        y[row, len(prompt) : len(ids)] = ids[len(prompt) :]
    return x, y


def prompts_of(split: Split) -> list[list[int]]:
    """Return the tokens before the answer of each record."""
    starts = (split.y != IGNORED).int().argmax(dim=1).tolist()
    return [row[:start] for row, start in zip(split.x.tolist(), starts, strict=True)]


def answers_of(split: Split) -> list[list[int]]:
    """Return the answer's tokens of each record, its end with it."""
    return [[token for token in row if token != IGNORED] for row in split.y.tolist()]


def with_answers(split: Split, answers: Sequence[str], tokenizer: Tokenizer) -> Split:
    """Return the records with other answers to the same questions, of the same length in storage."""
    pairs = [(prompt, tokenizer.answer(text)) for prompt, text in zip(prompts_of(split), answers, strict=True)]
    x, y = packed(pairs, tokenizer, int(split.x.shape[1]))
    return Split(x.to(split.x.device), y.to(split.x.device), split.ids, split.prepare)
