"""Texts of a class without the tokens that carry it, or with those of a donor class in their place, for classifiers of texts.

Integrated gradients over the token vectors tell what each token of a record adds to the log-probability of its class. A token's positive shares are
added over the records of the class; of each record the highest ranked tokens that it holds are exchanged.

Source: Chang et al., arXiv 2405.15662: the part on language models, its masked answers carried over to labels; the exchanged tokens stand for the
swapped patch of the part on images.
Differs: a token taken out becomes padding, which the network does not read; poisoned copies stand beside the records (released: in their place),
because a classifier that never meets the words again keeps what it knows of them; there is no list of stop words, for a token is a number here;
64 Gauss-Legendre points (released: 32 of a grid), for on the way of a whole text 32 leave an error of some percent.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from services.errors import ParameterOutOfRange
from services.learning.data import Split, Splits
from services.learning.modes import evaluating
from services.learning.run import Run
from services.unlearning.mechanisms.attribution import embedding_of, vectors_given
from services.unlearning.mechanisms.concepts import Donor
from services.unlearning.method import UnlearningMethod

PADDING = 0
RECORDS_AT_ONCE = 16
READ_PER_CLASS = 200
TOLD = 10


class TokenParameters(UnlearningMethod.Parameters):
    """Parameters of a method that may poison the tokens of texts."""

    token_mode: Literal["none", "mask", "substitute"] = Field(
        "none", description="Texts only: copies of the class's records without the tokens that carry it, or with the donor's in their place."
    )
    top_tokens: int = Field(5, ge=1, le=50, description="Highest ranked tokens of a text that are exchanged.")
    ig_steps: int = Field(64, ge=4, le=512, description="Points of the integrated gradients on the way from empty token vectors.")


class Ranking(NamedTuple):
    """The tokens of a class by what they add, the most first, and how far the sums of attributions are from what they explain, as a share of it."""

    tokens: list[int]
    error: float


def label_attribution(model: nn.Module, x: Tensor, y: Tensor, *, steps: int) -> tuple[Tensor, Tensor]:
    """Return what each token of x (B, T) adds to log p(y | x) over empty vectors, (B, T), and each record's completeness error, (B,)."""
    from captum.attr import IntegratedGradients  # noqa: PLC0415  a second that every runner would wait

    embedding = embedding_of(model, 1)
    with torch.no_grad():
        vectors = embedding(x)

    def score(given: Tensor, tokens: Tensor, wanted: Tensor) -> Tensor:
        with vectors_given(embedding, given):
            return model(tokens).float().log_softmax(dim=-1).gather(1, wanted[:, None]).squeeze(1)

    with evaluating(model):
        inner = IntegratedGradients(score)
        found = inner.attribute(vectors, additional_forward_args=(x, y), n_steps=steps, method="gausslegendre", internal_batch_size=steps * len(x))
        with torch.no_grad():
            whole = score(vectors, x, y) - score(torch.zeros_like(vectors), x, y)
    tokens = found.detach().sum(dim=-1)
    return tokens, (tokens.sum(dim=1) - whole).abs() / whole.abs().clamp(min=1e-12)


def ranking_of(model: nn.Module, split: Split, run: Run, *, steps: int) -> Ranking:
    """Return the tokens that carry the class of the records of `split`, which have one label. Cancelled, DeadlineExceeded: after any batch."""
    shares, errors = dict[int, float](), list[Tensor]()
    of = -(-len(split) // RECORDS_AT_ONCE)
    for step, rows in enumerate(torch.arange(len(split)).split(RECORDS_AT_ONCE), start=1):
        batch = split.batch(rows)
        values, error = label_attribution(model, batch.x, batch.y, steps=steps)
        positive = values.clamp(min=0).double()
        positive /= positive.sum(dim=1, keepdim=True).clamp(min=1e-12)
        for token, share in zip(batch.x.flatten().tolist(), positive.flatten().tolist(), strict=True):
            shares[token] = shares.get(token, 0.0) + share
        errors.append(error)
        run.report(step, of, stage="attribution", loss=error.mean())
    shares.pop(PADDING, None)
    order = sorted((token for token, share in shares.items() if share > 0), key=lambda token: (-shares[token], token))
    return Ranking(order, float(torch.cat(errors).mean()))


def exchanged(x: Tensor, ranking: Sequence[int], put: Sequence[int], *, most: int) -> tuple[Tensor, int]:
    """Return texts x (B, T) with their `most` highest ranked tokens exchanged, wherever they stand, and how many places that were.

    The first of a text's tokens becomes the first of `put`, the second the second, around again where they are fewer; without any, padding.
    """
    place = {token: number for number, token in enumerate(ranking)}
    rows, changed = x.tolist(), 0
    for row in rows:
        carried = sorted({token for token in row if token in place}, key=place.__getitem__)[:most]
        into = {token: (put[number % len(put)] if put else PADDING) for number, token in enumerate(carried)}
        changed += sum(token in into for token in row)
        row[:] = [into.get(token, token) for token in row]
    return torch.tensor(rows, dtype=x.dtype, device=x.device), changed


def poison_tokens(model: nn.Module, forget: Split, data: Splits, donors: Mapping[int, Donor], p: TokenParameters, run: Run) -> Split:
    """Return `forget` and, with a `token_mode`, behind it a poisoned copy of each record under the same label. The note `tokens` tells what was found.

    Raises ParameterOutOfRange: the records are no texts, or the network has no token vectors. Cancelled, DeadlineExceeded.
    """
    if p.token_mode == "none":  # noqa: S105  no password
        return forget
    if forget.x.is_floating_point() or forget.x.dtype == torch.uint8 or forget.x.ndim != 2:
        raise ParameterOutOfRange(name="token_mode", detail=f"{p.token_mode!r} is for texts, and these records are not")
    copies, noted = forget.x.clone(), dict[str, object]()
    for label, donor in donors.items():
        rows = torch.nonzero(forget.y == label).flatten()
        found, put = ranking_of(model, forget.take(rows.cpu()), run, steps=p.ig_steps), list[int]()
        if p.token_mode == "substitute":  # noqa: S105  no password
            lender = data.retain.with_labels((donor.label,), keep=True).sample(READ_PER_CLASS, run.stream("tokens"))
            put = ranking_of(model, lender, run, steps=p.ig_steps).tokens
        copies[rows], changed = exchanged(forget.x[rows], found.tokens, put, most=p.top_tokens)
        noted[str(label)] = {"top": found.tokens[:TOLD], "put": put[:TOLD], "exchanged": changed, "completeness_error": found.error}
    run.note("tokens", noted)
    ids = (*forget.ids, *(f"{one}/poisoned" for one in forget.ids))
    return Split(torch.cat([forget.x, copies]), forget.y.repeat(2), ids, forget.prepare)
