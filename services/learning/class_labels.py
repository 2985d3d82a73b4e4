"""Labels of classes: what every task that has classes asks of them."""

import torch

from services.errors import InvalidInput
from services.learning.data import Split


def check_labels(split: Split, classes: int) -> None:
    """Raise InvalidInput unless the labels are int64 of shape (n,) in [0, classes)."""
    if split.y.dtype != torch.int64 or split.y.shape != (len(split),):
        raise InvalidInput(detail=f"labels must be one whole number per record, not {split.y.dtype} of shape {tuple(split.y.shape)}")
    if len(split) == 0:
        return
    low, high = (int(bound) for bound in torch.aminmax(split.y))
    if low < 0 or high >= classes:
        raise InvalidInput(detail=f"labels run from {low} to {high}, but the model has {classes} classes (0 to {classes - 1})")
