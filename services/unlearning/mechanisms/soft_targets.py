"""What a language model says of each token of its answers before it is changed: the distributions that a method lets it imitate or alter."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from services.learning.data import Split
from services.learning.modes import evaluating
from services.learning.run import Run
from services.learning.sequences import answer_logits
from services.learning.tokens import IGNORED
from services.unlearning.mechanisms.language_edit import frozen_copy

ROWS_AT_ONCE = 64
FLOAT_BYTES = 4
ROOM_BYTES = 2**28
"""Up to so much is kept: a quarter of a gigabyte is 60 tokens each of 250 records under a vocabulary of 4,000 words."""
Said = Callable[[Tensor], tuple[Tensor, Tensor]]


def remembered_logits(model: nn.Module, split: Split, run: Run, *, room_bytes: int = ROOM_BYTES) -> Said:
    """Return what gives, of row numbers (B,), the logits of `model` as it is now at the answers' tokens, (K, V) float32, and those tokens, (K,).

    Each record is asked once, now, and kept on the model's device; where all of them take more room, a frozen copy is asked at each call.
    Cancelled, DeadlineExceeded: after any batch.
    """
    counts = (split.y[:, 1:] != IGNORED).sum(dim=1).tolist()
    with evaluating(model), torch.no_grad():
        words = answer_logits(model, split.batch(torch.arange(1)))[0].shape[-1]
        if sum(counts) * words * FLOAT_BYTES > room_bytes:
            return _asked(frozen_copy(model), split)
        held: list[tuple[Tensor, Tensor]] = []
        parts = torch.arange(len(split)).split(ROWS_AT_ONCE)
        for step, rows in enumerate(parts, start=1):
            logits, tokens = answer_logits(model, split.batch(rows))
            lengths = [counts[row] for row in rows.tolist()]
            held += zip(logits.split(lengths), tokens.split(lengths), strict=True)
            run.report(step, len(parts), stage="reference", loss=0.0)

    def known(rows: Tensor) -> tuple[Tensor, Tensor]:
        chosen = [held[row] for row in rows.tolist()]
        return torch.cat([logits for logits, _ in chosen]), torch.cat([tokens for _, tokens in chosen])

    return known


def _asked(original: nn.Module, split: Split) -> Said:
    def live(rows: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return answer_logits(original, split.batch(rows))

    return live
