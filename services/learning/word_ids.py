"""Words of a text as numbers by a fixed rule, for the adapters of texts."""

import re
from functools import lru_cache
from hashlib import blake2b

WORD = re.compile(r"\w+|[^\w\s]")


def word_ids(text: str, vocab_size: int, max_length: int) -> list[int]:
    """Return an id from 1 to vocab_size - 1 for each of the first words and signs of the lower-case text."""
    words = (match.group() for match in WORD.finditer(text.lower()))
    return [1 + digest(word) % (vocab_size - 1) for word, _ in zip(words, range(max_length), strict=False)]


@lru_cache(maxsize=65536)
def digest(word: str) -> int:
    """Return 64 bits of the word's BLAKE2b."""
    return int.from_bytes(blake2b(word.encode("utf-8", errors="replace"), digest_size=8).digest(), "big")
