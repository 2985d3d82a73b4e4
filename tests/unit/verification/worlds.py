"""Models whose outputs are known, and splits whose records are numbered."""

import numpy as np
import torch
from torch import nn

from services.learning.architecture import Architecture
from services.learning.data import Split, Splits
from services.learning.tasks.classification import Classification

TASK = Classification(10)


class FixedLogits(nn.Module):
    """Returns row i of a table for the record whose only feature is i."""

    def __init__(self, table):
        super().__init__()
        self.table = torch.as_tensor(np.asarray(table), dtype=torch.float32)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.table[x[:, 0].long()]


class _Drawn(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4000, 10))

    def forward(self, x):
        return self.weight[x[:, 0].long()]


class Table(Architecture):
    """An architecture of random tables; only `fresh` is used."""

    name, modality, tasks, head = "table", "tabular", frozenset({"classification"}), "weight"

    def __init__(self):
        super().__init__(None)

    def build(self):
        return _Drawn()


def split_of(prefix, labels, first=0):
    """Return records numbered from `first`."""
    numbers = torch.arange(first, first + len(labels), dtype=torch.float32)[:, None]
    return Split(numbers, torch.as_tensor(np.asarray(labels), dtype=torch.int64), tuple(f"{prefix}{i:05d}" for i in range(len(labels))))


def splits_of(*, forget, retain=None, verification=None, attack=None, kind="records", classes=()):
    """Return splits, empty where nothing is given."""
    empty = split_of("e", [])
    return Splits(forget, retain or empty, empty, verification or empty, attack or empty, kind, classes)


def logits_for(labels, *, right, rng, classes=10, confidence=3.0):
    """Return logits whose largest value is the label's in a share `right` of the rows."""
    labels = np.asarray(labels)
    chosen = np.where(rng.random(len(labels)) < right, labels, (labels + 1 + rng.integers(0, classes - 1, len(labels))) % classes)
    z = rng.normal(size=(len(labels), classes)) * 0.5
    z[np.arange(len(labels)), chosen] += confidence
    return z
