"""Losses of whole sequences, of which only some tokens count."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from services.learning.data import Batch
from services.learning.tokens import IGNORED


def trimmed(batch: Batch) -> Batch:
    """Return the batch without the places after its longest answer, where it lies on the CPU: a GPU would have to be waited for."""
    if batch.y.device.type != "cpu" or len(batch.y) == 0:
        return batch
    used = torch.nonzero((batch.y != IGNORED).any(dim=0)).flatten()
    longest = int(used[-1]) + 1 if len(used) else 1
    return Batch(batch.x[:, :longest], batch.y[:, :longest])


def sequence_losses(logits: Tensor, y: Tensor, *, smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """Return the negative log-likelihood of each record's answer, summed over its tokens, (B,) float32, and how many those are, (B,)."""
    wanted = y[:, 1:]
    nll = cross_entropy(logits[:, :-1].float().flatten(0, 1), wanted.flatten(), ignore_index=IGNORED, reduction="none", label_smoothing=smoothing)
    return nll.view(wanted.shape).sum(dim=1), (wanted != IGNORED).sum(dim=1)


def sequence_nll(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return `sequence_losses` of the model on tokens x (B, T) with labels y (B, T)."""
    kept = trimmed(batch)
    return sequence_losses(model(kept.x), kept.y)


def answer_logits(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the logits at the answer's tokens, (K, V) float32, and those tokens, (K,), of all records of the batch."""
    kept = trimmed(batch)
    wanted = kept.y[:, 1:]
    answered = wanted != IGNORED
    return model(kept.x)[:, :-1][answered].float(), wanted[answered]
