"""Whether two sets of records share a record, by content: ids may differ where one image was registered twice."""

import hashlib

import torch
from torch import Tensor

from services.learning.data import Split

CHUNK_ROWS = 8192


def shared_rows(split: Split, other: Split) -> Tensor:
    """Return the numbers of the rows of `split` whose stored content some row of `other` has too, (k,) int64, ascending. Labels do not count.

    A sum of bytes finds the few candidates; only their SHA-256 is compared.
    """
    if len(split) == 0 or len(other) == 0 or split.x.shape[1:] != other.x.shape[1:] or split.x.dtype != other.x.dtype:
        return torch.zeros(0, dtype=torch.int64)
    own, others = _sums(split.x), _sums(other.x)
    rows = torch.nonzero(torch.isin(own, others)).flatten()
    known = {_digest(other.x[row]) for row in torch.nonzero(torch.isin(others, own)).flatten().tolist()}
    found = [row for row in rows.tolist() if _digest(split.x[row]) in known]
    return torch.tensor(found, dtype=torch.int64)


def _sums(x: Tensor) -> Tensor:
    """Return a weighted sum of the bytes of each row, (n,) int64 on the CPU, wrapping on overflow."""
    parts: list[Tensor] = []
    for start in range(0, len(x), CHUNK_ROWS):
        rows = x[start : start + CHUNK_ROWS].detach().contiguous().flatten(1).view(torch.uint8).to(torch.int32)
        weights = torch.arange(rows.shape[1], dtype=torch.int32, device=rows.device) % 8191 + 1
        parts.append((rows * weights).sum(dim=1, dtype=torch.int64).cpu())
    return torch.cat(parts)


def _digest(row: Tensor) -> bytes:
    return hashlib.sha256(row.detach().cpu().contiguous().numpy().tobytes()).digest()
