"""Which words carry an answer: integrated gradients of its log-probability along the answer's token vectors.

Source: Sundararajan et al., "Axiomatic Attribution for Deep Networks", ICML 2017; over answers: Chang et al., arXiv 2405.15662. The package captum.
Differs: Gauss-Legendre nodes by default; the released code's plain mean over a grid with both ends is `grid`. The way begins at the vector of padding
by default (released: at zeros, padding tried beside it): zeros lie where no token does, and from there 32 points of the grid leave an error of more
than the 5 % that is allowed (test 1 of `concept_poisoning_text`).
"""

import re
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from services.errors import ParameterOutOfRange
from services.learning.modes import evaluating
from services.learning.tokens import Tokenizer

Rule = Literal["gausslegendre", "grid"]
Baseline = Literal["zero", "pad"]
ROWS_AT_ONCE = 32
WORD = re.compile(r"\w+(?:[-']\w+)*")


class Attribution(NamedTuple):
    """What each answer token adds (T,), and how far their sum is from F(x) - F(baseline), as a share of it."""

    tokens: Tensor
    error: float


def embedding_of(model: nn.Module, tokens: int) -> nn.Embedding:
    """Return the layer of token vectors: the first with a row for each token. Raises ParameterOutOfRange: there is none."""
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.num_embeddings >= tokens:
            return module
    raise ParameterOutOfRange(name="method", detail="the model has no layer of token vectors")


@contextmanager
def vectors_given(embedding: nn.Embedding, vectors: Tensor) -> Generator[None]:
    """Let the layer return `vectors` (B, T, W) for a while, whatever it is asked."""
    handle = embedding.register_forward_hook(lambda *_: vectors)
    try:
        yield
    finally:
        handle.remove()


def integrated(score: Callable[[Tensor], Tensor], given: Tensor, start: Tensor, *, steps: int, rule: Rule) -> Attribution:
    """Return what each row of `given` (T, W) adds to `score`, which takes (S, T, W) and returns (S,), on the way from `start`."""
    if rule == "gausslegendre":
        from captum.attr import IntegratedGradients  # noqa: PLC0415  a second that every runner would wait

        inner: Any = IntegratedGradients(score)
        found = inner.attribute(given[None], baselines=start[None], n_steps=steps, method=rule, internal_batch_size=ROWS_AT_ONCE)[0]
    else:
        total = torch.zeros_like(given)
        for shares in torch.linspace(0, 1, steps, device=given.device).split(ROWS_AT_ONCE):
            point = (start + shares[:, None, None] * (given - start)).detach().requires_grad_()
            (slope,) = torch.autograd.grad(score(point).sum(), point)
            total += slope.sum(dim=0)
        found = (given - start) * total / steps
    with torch.no_grad():
        whole = float(score(given[None]) - score(start[None]))
    tokens = found.detach().sum(dim=-1)
    return Attribution(tokens, abs(float(tokens.sum()) - whole) / max(abs(whole), 1e-12))


def answer_attribution(
    model: nn.Module, prompt: Sequence[int], answer: Sequence[int], *, tokens: int, padding: int, steps: int, rule: Rule, baseline: Baseline
) -> Attribution:
    """Return what each token of `answer` adds to the answer's log-probability after `prompt`; only its own vectors differ from the baseline."""
    embedding, device = embedding_of(model, tokens), next(model.parameters()).device
    x = torch.tensor([[*prompt, *answer]], dtype=torch.int64, device=device)
    begin = len(prompt)
    with torch.no_grad():
        vectors = embedding(x)[0]
        nothing = embedding(torch.tensor([padding], device=device)) if baseline == "pad" else torch.zeros_like(vectors[:1])

    def score(given: Tensor) -> Tensor:
        count = len(given)
        whole = torch.cat([vectors[:begin].expand(count, -1, -1), given], dim=1)
        with vectors_given(embedding, whole):
            logs = model(x.expand(count, -1)).float().log_softmax(dim=-1)
        return logs[:, begin - 1 : -1].gather(-1, x[:, begin:, None].expand(count, -1, -1)).squeeze(-1).sum(dim=1)

    with evaluating(model):
        return integrated(score, vectors[begin:], nothing.expand(len(answer), -1), steps=steps, rule=rule)


def words_of_answer(answer: Sequence[int], values: Tensor, tokenizer: Tokenizer) -> dict[str, float]:
    """Return what each word of the answer adds, in lower case: the sum over its tokens and its places, its positive part, as a share of all."""
    ends = [len(tokenizer.decode(answer[: place + 1])) for place in range(len(answer))]
    text = tokenizer.decode(answer)
    found: dict[str, float] = {}
    for match in WORD.finditer(text):
        inside = [place for place, end in enumerate(ends) if end > match.start() and (ends[place - 1] if place else 0) < match.end()]
        word = match.group().lower()
        found[word] = found.get(word, 0.0) + float(sum(float(values[place]) for place in inside))
    positive = {word: max(0.0, value) for word, value in found.items()}
    total = sum(positive.values())
    return {word: value / total for word, value in positive.items()} if total > 0 else positive
