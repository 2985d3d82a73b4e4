"""Classification into one of C classes, by cross-entropy."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from services.learning.class_labels import check_labels
from services.learning.data import Batch, Split
from services.learning.modes import evaluating, image_layout
from services.learning.task import TASKS, Task


@TASKS.register("classification")
class Classification(Task):
    """One label of `outputs` classes per record; the model returns logits (B, C), the loss is the cross-entropy in nats."""

    modalities = frozenset({"image", "tabular", "text"})
    loss_unit = "nats"

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the cross-entropy of each record, (B,) float32, without label smoothing."""
        return cross_entropy(model(batch.x).float(), batch.y, reduction="none")

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean cross-entropy with the task's label smoothing, a scalar."""
        return cross_entropy(model(batch.x).float(), batch.y, label_smoothing=self.label_smoothing)

    def predict(self, model: nn.Module, split: Split, *, batch_size: int = 1024) -> Tensor:
        """Return the logits of every record in order, (n, C) float32 on the CPU; the model's modes are restored."""
        with evaluating(model), image_layout(model), torch.inference_mode():
            logits = [model(batch.x).float() for batch in split.batches(batch_size)]
        if not logits:
            return torch.zeros(0, self.outputs)
        return torch.cat(logits).cpu()

    def trivial_loss(self, split: Split) -> float:  # noqa: ARG002  the uniform predictor's loss does not depend on the records
        """Return ln C, the loss of the uniform prediction."""
        return math.log(self.outputs)

    def check(self, split: Split) -> None:
        """Raise InvalidInput unless the labels are int64 of shape (n,) in [0, C)."""
        check_labels(split, self.outputs)
