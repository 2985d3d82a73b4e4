"""Answers from which the words that carry an entity are taken out."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

NAME_LETTERS = 4
_STOP = (
    "a an and are as at be been but by can could did do does for from had has have he her hers him his how i if in into is it its many may more most "
    "not of on or our she so some such than that the their them then there these they this those to was we were what when where which who whom whose "
    "why will with would you your author"
)
STOP_WORDS = frozenset(_STOP.split())


@dataclass(frozen=True, slots=True)
class Masked:
    """An answer after masking; `leaks` counts words of the entity's name left in it, `left_over` ranked words left in it."""

    text: str
    leaks: int
    left_over: int


def ranked(shares: Iterable[Mapping[str, float]]) -> list[str]:
    """Return the words of several answers by what they add in all, the most first, without stop words."""
    total: dict[str, float] = {}
    for words in shares:
        for word, share in words.items():
            if word not in STOP_WORDS:
                total[word] = total.get(word, 0.0) + share
    return [word for word, share in sorted(total.items(), key=lambda pair: (-pair[1], pair[0])) if share > 0]


def name_words(entities: Sequence[str]) -> list[str]:
    """Return the words of the entities' names that have at least four letters, in lower case."""
    return sorted({word.lower() for entity in entities for word in re.findall(r"\w+", entity) if len(word) >= NAME_LETTERS})


def present(words: Sequence[str], text: str) -> list[str]:
    """Return those of `words` that stand in the text as whole words, in their order."""
    return [word for word in words if _whole(word).search(text)]


def masked(text: str, ranking: Sequence[str], names: Sequence[str], *, most: int, mask: str) -> Masked:
    """Return the answer with `mask` at every place of its `most` highest ranked words and of the names' words."""
    chosen = [*present(ranking, text)[:most], *names]
    for word in sorted(set(chosen), key=len, reverse=True):
        text = _whole(word).sub(lambda _: mask, text)
    return Masked(text, len(present(names, text)), len([word for word in present(ranking, text) if word in chosen]))


def _whole(word: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE)
