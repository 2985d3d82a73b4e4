"""Noise like the classes that stay and unlike those to be forgotten, divided into what is learned from and what only judges.

In the manner of Chundawat et al., "Zero-Shot Machine Unlearning", IEEE TIFS 2023 (arXiv 2201.05629).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from services.learning.data import Split
from services.unlearning.mechanisms.accuracy import predicted
from services.unlearning.mechanisms.noise import Noise


@dataclass(frozen=True, slots=True)
class Materials:
    """All that the method learns from: `shown` for training, `like_kept` for a repair; `proxy` and `leak` only to choose by.

    `proxy` is held-out noise like the classes that stay, labelled as the original sees it; `leak` is noise like the forgotten classes.
    """

    shown: Noise
    like_kept: Noise
    proxy: Split
    leak: Split


def split_of(noise: Noise, labels: Tensor | None = None) -> Split:
    """Return the rows of `noise` as records, under their own labels or `labels` (n,)."""
    return Split(noise.rows, noise.labels if labels is None else labels, tuple(f"noise-{row}" for row in range(len(noise.labels))))


def rows_of(noise: Noise, chosen: Tensor) -> Noise:
    """Return the rows of `chosen` (n,) bool; the history of losses stays whole."""
    return Noise(noise.rows[chosen], noise.labels[chosen], noise.losses)


def materials_of(noise: Noise, model: nn.Module, *, batch: int, kept: int, forgotten: int, holdout: float) -> Materials:
    """Divide `noise`, `batch` rows per block: `kept` blocks like the classes that stay, `forgotten` like, then as many unlike the others.

    The first `holdout` of each block of a class that stays is held out; the blocks like the forgotten classes are never shown.
    """
    numbers = torch.arange(len(noise.labels), device=noise.labels.device)
    block, place = numbers // batch, numbers % batch
    stays, leak = block < kept, (block >= kept) & (block < kept + forgotten)
    held_out = stays & (place < max(1, round(holdout * batch)))
    proxy = rows_of(noise, held_out)
    seen = predicted(model, split_of(proxy)).to(noise.labels.device)
    return Materials(rows_of(noise, ~held_out & ~leak), rows_of(noise, stays & ~held_out), split_of(proxy, seen), split_of(rows_of(noise, leak)))
