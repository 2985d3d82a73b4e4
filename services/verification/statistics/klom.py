"""KLoM: the divergence of each record's margins over many unlearned models from those over many retrained models.

Source: Georgiev et al., "Attribute-to-Delete: Machine Unlearning via Datamodel Matching", arXiv 2410.23232.
Differs: both histograms are clipped and add to one again, so that equal ones give exactly 0; the largest margin counts to the last bin.
"""

import numpy as np
from numpy.typing import NDArray

from services.verification.statistics.many_models import Beside, Chosen, beside
from services.verification.statistics.scores import Floats

BINS = 20
LEAST_SHARE = 1e-5
LARGEST_MARGIN = 100.0
QUANTILE = 95.0
LEAST_MODELS = 20  # with fewer models than bins most bins are empty on one side, whatever was forgotten
PART = 64


def klom(unlearned: Floats, retrained: Floats) -> Floats:
    """Return KL(unlearned || retrained) of the histograms of margins (N, n) and (M, n) of each record, (n,), nats.

    Twenty equal bins over the margins of both sides, which are cut at 100; shares below 1e-5 count as 1e-5. 0 where the histograms are equal; at
    most about 11.5, where no unlearned model has a margin in a bin of a retrained one.
    """
    chosen = np.arange(len(unlearned) + len(retrained))[None, :] < len(unlearned)
    return _divergences(_bins(np.concatenate([unlearned, retrained])), chosen)[0]


def klom_beside(unlearned: Floats, retrained: Floats, *, rng: np.random.Generator) -> Beside:
    """Return the 95th percentile of `klom` over the records of margins (N, n) against retrained (2N, n), with its floor and p-value.

    The floor is the same number of N retrained models against N others: with few models it is large, and below it nothing was seen.

    Raises:
        ValueError: fewer than 20 unlearned models, or not twice as many retrained ones.
    """
    if len(unlearned) < LEAST_MODELS:
        raise ValueError(f"histograms of {BINS} bins take at least {LEAST_MODELS} models")
    return beside(_percentile, unlearned, retrained, larger_is_farther=True, rng=rng)


def _percentile(pooled: Floats, chosen: Chosen) -> Floats:
    """Return the 95th percentile over records for each labelling, (b,)."""
    bins = _bins(pooled)
    parts = [_divergences(bins, chosen[start : start + PART]) for start in range(0, len(chosen), PART)]
    return np.asarray(np.percentile(np.concatenate(parts), QUANTILE, axis=1), dtype=np.float64)


def _bins(pooled: Floats) -> NDArray[np.float32]:
    """Return 1 for the bin of its record that a margin (m, n) lies in, else 0, (m, n, 20)."""
    margins = np.clip(pooled, -LARGEST_MARGIN, LARGEST_MARGIN)
    low, high = margins.min(axis=0), margins.max(axis=0)
    edges = np.linspace(low, np.where(high > low, high, low + 1.0), BINS + 1)
    place = (margins[None] >= edges[1:-1, None]).sum(axis=0)
    return (place[:, :, None] == np.arange(BINS)).astype(np.float32)


def _divergences(bins: NDArray[np.float32], chosen: Chosen) -> Floats:
    """Return the divergence of the chosen rows' histogram from the other rows', for each labelling and record, (b, n)."""
    rows, records, _ = bins.shape
    flat = bins.reshape(rows, records * BINS)
    logs: list[Floats] = []
    for side in (chosen, ~chosen):
        counts = (side.astype(np.float32) @ flat).reshape(len(side), records, BINS).astype(np.float64)
        shares = np.maximum(counts / side.sum(axis=1)[:, None, None], LEAST_SHARE)
        logs.append(np.log(shares / shares.sum(axis=2, keepdims=True)))
    return (np.exp(logs[0]) * (logs[0] - logs[1])).sum(axis=2)
