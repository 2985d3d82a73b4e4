"""What tasks with real-valued targets share: predictions for one or many steps, each by one number or by several quantiles."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from services.errors import InvalidInput
from services.learning.data import Batch, Split
from services.learning.modes import evaluating, image_layout
from services.learning.targets import Loss, Targets, errors
from services.learning.task import Task


@dataclass(frozen=True, slots=True)
class Shape:
    """What the outputs of a model are: `steps` targets of each record, `levels` predictions of each."""

    steps: int
    levels: int


class RealValued(Task):
    """Targets y (B,) or, for several steps H, (B, H) float32; the model returns (B, H * Q) in scaled units, step by step.

    Q is the number of quantiles with the quantile loss, else 1. Losses are in scaled units; `predict` and `points` are in the targets' own.
    """

    own: ClassVar[Targets]
    loss_unit = "loss of the scaled targets"

    def __init__(self, outputs: int, *, label_smoothing: float = 0.0, targets: Targets | None = None) -> None:
        """Raises InvalidInput: the outputs are no whole number of steps of as many predictions as there are quantiles, or labels are smoothed."""
        if label_smoothing:
            raise InvalidInput(detail=f"label smoothing is for classes; task {self.name} has none")
        super().__init__(outputs, targets=targets or self.own)
        self.scale: Targets = targets or self.own
        levels = len(self.scale.levels)
        if outputs % levels:
            raise InvalidInput(detail=f"{outputs} outputs are no whole number of steps with {levels} quantiles each")
        self.shape = Shape(outputs // levels, levels)

    def with_loss(self, loss: Loss | None) -> "RealValued":
        """Return the same task scored by another loss; None is its own. Raises InvalidInput where the outputs do not fit it."""
        if loss is None or loss == self.scale.loss:
            return self
        other = type(self)(self.outputs, targets=self.scale.model_copy(update={"loss": loss}))
        if other.shape != self.shape:
            raise InvalidInput(detail=f"loss {loss} does not fit outputs that were trained with loss {self.scale.loss}")
        return other

    def outputs_of(self, model: nn.Module, x: Tensor) -> Tensor:
        """Return the model's outputs (B, H, Q) float32, in scaled units. Raises InvalidInput unless it returns (B, outputs)."""
        return self.shaped(model(x), len(x))

    def shaped(self, out: Tensor, rows: int) -> Tensor:
        """Return outputs (B, outputs) as (B, H, Q) float32. Raises InvalidInput for another shape: (B,) would be broadcast against the targets."""
        if out.shape != (rows, self.outputs):
            raise InvalidInput(detail=f"a model of {self.outputs} outputs must return ({rows}, {self.outputs}), not {tuple(out.shape)}")
        return out.float().view(rows, self.shape.steps, self.shape.levels)

    def wanted(self, y: Tensor) -> Tensor:
        """Return targets (B,) or (B, H) as (B, H, 1), in scaled units. Raises InvalidInput for another shape."""
        expected = (len(y),) if self.shape.steps == 1 else (len(y), self.shape.steps)
        if y.shape != expected:
            raise InvalidInput(detail=f"targets must have the shape {expected}, not {tuple(y.shape)}")
        return self.scale.scaled(y.float()).view(len(y), self.shape.steps, 1)

    def scored(self, predicted: Tensor, wanted: Tensor) -> Tensor:
        """Return the loss of each record, (B,), of predictions (B, H, Q) for what is wanted, (B, H, 1) or, of a teacher, (B, H, Q)."""
        return errors(self.scale.loss, self.scale.levels, predicted, wanted).mean(dim=(1, 2))

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the loss of each record, (B,) float32."""
        return self.scored(self.outputs_of(model, batch.x), self.wanted(batch.y))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean loss of the batch, a scalar."""
        return self.losses(model, batch).mean()

    def predict(self, model: nn.Module, split: Split, *, batch_size: int = 1024) -> Tensor:
        """Return the predictions of every record in order, (n, outputs) float32 on the CPU, in the units of the targets; modes are restored."""
        with evaluating(model), image_layout(model), torch.inference_mode():
            found = [self.outputs_of(model, batch.x).flatten(1) for batch in split.batches(batch_size)]
        return self.scale.unscaled(torch.cat(found).cpu()) if found else torch.zeros(0, self.outputs)

    def points(self, predicted: Tensor) -> Tensor:
        """Return one number for each step, (n, H), of predictions (n, outputs): the quantile nearest the middle where there are several."""
        return self.scale.points(predicted)

    def trivial_loss(self, split: Split) -> float:
        """Return the loss of predicting the mean target of `split` at every step, for each of the quantiles."""
        wanted = self.wanted(split.y).double()
        constant = wanted.mean(dim=0, keepdim=True).expand(len(wanted), -1, self.shape.levels)
        return float(self.scored(constant, wanted).mean())

    def check(self, split: Split) -> None:
        """Raise InvalidInput unless the targets are finite float32, (n,) for one step and else (n, H)."""
        steps = self.shape.steps
        expected = (len(split),) if steps == 1 else (len(split), steps)
        if split.y.dtype != torch.float32 or split.y.shape != expected:
            raise InvalidInput(detail=f"targets must be float32 of shape {expected}, not {split.y.dtype} of shape {tuple(split.y.shape)}")
        finite = torch.isfinite(split.y)
        if not bool(finite.all()):
            raise InvalidInput(detail=f"{int((~finite).sum())} targets are missing or not finite")
