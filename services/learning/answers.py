"""What a language model answers: greedy generation, and how an answer is compared with the right one.

Source of ROUGE-L: Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004. Words are runs of the letters a to z and of digits, in lower
case, as in Google's implementation, without stemming.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from services.learning.data import Split
from services.learning.modes import evaluating
from services.learning.tokens import Tokenizer, answers_of, prompts_of

WORD = re.compile(r"[a-z0-9]+")
ROWS_AT_ONCE = 256


def greedy(model: nn.Module, prompts: Sequence[Sequence[int]], *, end: int, most: int) -> list[list[int]]:
    """Return the likeliest next tokens after each prompt, one by one, until `end` (left out) or `most` tokens; eval mode, modes are restored.

    Prompts of one length go together, so that no padding stands between a prompt and its answer.
    """
    found: list[list[int]] = [[] for _ in prompts]
    by_length: dict[int, list[int]] = {}
    for row, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(row)
    device = next(model.parameters()).device
    with evaluating(model), torch.inference_mode():
        for length, rows in sorted(by_length.items()):
            for start in range(0, len(rows), ROWS_AT_ONCE):
                chosen = rows[start : start + ROWS_AT_ONCE]
                asked = torch.tensor([list(prompts[row]) for row in chosen], dtype=torch.int64, device=device)
                room = min(most, int(getattr(model, "longest", length + most)) - length)
                for row, tokens in zip(chosen, _continued(model, asked, end=end, most=room), strict=True):
                    found[row] = tokens
    return found


def _continued(model: Any, asked: Tensor, *, end: int, most: int) -> list[list[int]]:
    """Return the tokens after each row of `asked` (B, T), all of one length."""
    if most <= 0:
        return [[] for _ in asked]
    drawn, state, shown = list[Tensor](), None, asked
    ended = torch.zeros(len(asked), dtype=torch.bool, device=asked.device)
    for _ in range(most):
        logits, state = model.continued(shown, state)
        following = logits[:, -1].argmax(dim=-1)
        drawn.append(following)
        ended |= following == end
        if bool(ended.all()):
            break
        shown = following[:, None]
    return [row[: row.index(end)] if end in row else row for row in torch.stack(drawn, dim=1).tolist()]


def spoken(model: nn.Module, split: Split, tokenizer: Tokenizer, *, most: int = 64) -> list[str]:
    """Return the model's greedy answer to each record's question."""
    return [tokenizer.decode(ids) for ids in greedy(model, prompts_of(split), end=tokenizer.end, most=most)]


def expected(split: Split, tokenizer: Tokenizer) -> list[str]:
    """Return each record's own answer."""
    return [tokenizer.decode(ids) for ids in answers_of(split)]


def content_words(text: str) -> list[str]:
    """Return the words of a text that ROUGE compares."""
    return WORD.findall(text.lower())


def longest_common(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the length of the longest sequence of words that both hold in the same order."""
    row = [0] * (len(second) + 1)
    for word in first:
        diagonal = 0
        for place, other in enumerate(second, start=1):
            above = row[place]
            row[place] = diagonal + 1 if word == other else max(above, row[place - 1])
            diagonal = above
    return row[-1]


def rouge_l(said: str, right: str) -> tuple[float, float]:
    """Return ROUGE-L as F1 and as recall: the longest common sequence of words against both lengths, and against the right answer's."""
    mine, theirs = content_words(said), content_words(right)
    if not mine or not theirs:
        return 0.0, 0.0
    common = longest_common(mine, theirs)
    precision, recall = common / len(mine), common / len(theirs)
    return (2 * precision * recall / (precision + recall) if common else 0.0), recall


def appears(entity: str, text: str) -> bool:
    """Say whether a text holds the entity, whatever the case; a hyphen is a space, and several spaces are one."""
    return _plain(entity) in _plain(text)


def appearance(answers: Iterable[str], entities: Sequence[str]) -> list[bool]:
    """Say of each answer whether it holds one of the entities."""
    return [any(appears(entity, answer) for entity in entities) for answer in answers]


def _plain(text: str) -> str:
    return " ".join(text.lower().replace("-", " ").split())
