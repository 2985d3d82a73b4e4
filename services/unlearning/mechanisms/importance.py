"""How much each weight matters for a set of records: mean squared, or mean absolute, gradients; and a cache of it for whole data sets.

Source: Foster et al., "Fast Machine Unlearning Without Retraining Through Selective Synaptic Dampening", AAAI 2024 (arXiv 2308.07707);
Foster et al., "Loss-Free Machine Unlearning" (arXiv 2402.19308).
Differs: gradients are by default taken row by row; the released code squares the mean gradient of each batch, which depends on its size.
"""

import hashlib
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from services.errors import InvalidInput
from services.learning.cache import records_digest
from services.learning.data import Batch, Split, Splits
from services.learning.modes import evaluating
from services.learning.run import Run
from services.learning.task import Task

Importance = dict[str, Tensor]
ImportanceCache = MutableMapping[str, Importance]
Granule = Literal["per_sample", "batch"]
Scalar = Literal["loss", "output_norm"]

GRADIENT_VALUES = 2**26  # values of row gradients held at a time: 256 MiB of float32


@dataclass(frozen=True, slots=True)
class Measure:
    """What importance is measured by.

    `scalar` is `loss` (squared gradients of the task's loss) or `output_norm` (absolute gradients of the mean squared norm of the outputs,
    which needs no labels). `granule` says whether a gradient is that of one row, or of the mean over `batch_size` rows.
    """

    scalar: Scalar
    granule: Granule
    batch_size: int

    def key(self, model: nn.Module) -> str:
        """Return the digest of the model's bytes and of what the measure depends on: the batch size matters to `batch` alone."""
        whole = hashlib.sha256(f"{self.scalar}/{self.granule}/{self.batch_size if self.granule == 'batch' else 0}".encode())
        for name, tensor in model.state_dict().items():
            whole.update(f"/{name}/{tensor.dtype}/{tuple(tensor.shape)}/".encode())
            whole.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return whole.hexdigest()

    def scalar_of(self, model: nn.Module, batch: Batch, task: Task) -> Tensor:
        """Return what is differentiated: the mean over the rows of `batch`."""
        if self.scalar == "loss":
            return task.losses(model, batch).mean()
        return model(batch.x).float().flatten(1).square().sum(dim=1).mean()

    def weight_of(self, gradient: Tensor) -> Tensor:
        """Return the gradient squared, or its absolute value for `output_norm`."""
        return gradient.square() if self.scalar == "loss" else gradient.abs()


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that training may change, batch norm's included; buffers are none."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def importance(model: nn.Module, split: Split, task: Task, run: Run, measure: Measure, *, stage: str) -> Importance:
    """Return the importance of each weight for the rows of `split`, taken in order, in eval mode; nothing of `model` changes.

    Returns:
        Parameter name -> float32, of the parameter's shape, non-negative; the mean over rows, or over batches for `batch`.
    Raises:
        InvalidInput: `split` has no row.
    """
    if len(split) == 0:
        raise InvalidInput(detail="there is no record to measure importance on")
    with evaluating(model):
        if measure.granule == "batch":
            return batch_importance(model, split, task, run, measure, stage)
        return row_importance(model, split, task, run, measure, stage)


def batch_importance(model: nn.Module, split: Split, task: Task, run: Run, measure: Measure, stage: str) -> Importance:
    """Return the mean over batches of what the gradient of the batch's mean weighs."""
    weights = trainable(model)
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    steps = -(-len(split) // measure.batch_size)
    for step, batch in enumerate(split.batches(measure.batch_size), start=1):
        value = measure.scalar_of(model, batch, task)
        gradients = torch.autograd.grad(value, list(weights.values()), allow_unused=True, materialize_grads=True)
        for name, gradient in zip(weights, gradients, strict=True):
            total[name] += measure.weight_of(gradient)
        run.report(step, steps, stage=stage, loss=value.detach())
    return {name: weight / steps for name, weight in total.items()}


def row_importance(model: nn.Module, split: Split, task: Task, run: Run, measure: Measure, stage: str) -> Importance:
    """Return the mean over rows of what the gradient of one row weighs; rows share a pass, as many as memory allows."""
    weights = {name: weight.detach() for name, weight in trainable(model).items()}
    frozen = {name: tensor.detach() for name, tensor in [*model.named_parameters(), *model.named_buffers()] if name not in weights}
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}

    def of_row(chosen: dict[str, Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        stand_in = cast("nn.Module", lambda rows: functional_call(model, {**chosen, **frozen}, (rows,)))
        value = measure.scalar_of(stand_in, Batch(x[None], y[None]), task)
        return value, value.detach()

    gradients_of: Callable[..., tuple[dict[str, Tensor], Tensor]] = vmap(grad(of_row, has_aux=True), in_dims=(None, 0, 0))
    together = max(1, min(measure.batch_size, GRADIENT_VALUES // max(1, sum(weight.numel() for weight in weights.values()))))
    steps = -(-len(split) // together)
    for step, batch in enumerate(split.batches(together), start=1):
        gradients, values = gradients_of(weights, batch.x, batch.y)
        for name, gradient in gradients.items():
            total[name] += measure.weight_of(gradient).sum(dim=0)
        run.report(step, steps, stage=stage, loss=values.mean())
    return {name: weight / len(split) for name, weight in total.items()}


@dataclass(frozen=True, slots=True)
class Whole:
    """The whole training set, D_r and D_f together, in the order of the record ids: how a request cuts it makes no difference."""

    split: Split

    @classmethod
    def of(cls, forget: Split, retain: Split) -> "Whole":
        """Join the parts of a request."""
        ids = forget.ids + retain.ids
        joined = Split(torch.cat([forget.x, retain.x]), torch.cat([forget.y, retain.y]), ids, retain.prepare)
        return cls(joined.take(torch.tensor(sorted(range(len(ids)), key=ids.__getitem__))))

    def importance(self, model: nn.Module, task: Task, run: Run, measure: Measure, cache: ImportanceCache | None) -> tuple[Importance, bool]:
        """Return the importance for the whole set, and whether it was kept from an earlier run: in `cache`, else in the cache of the run.

        It depends on no request. It derives from personal data: who keeps the cache destroys its entries with the model version.
        """
        if cache is None:
            return self._remembered(model, task, run, measure)
        key = measure.key(model)
        if key in cache:
            return cache[key], True
        cache[key] = importance(model, self.split, task, run, measure, stage="importance_all")
        return cache[key], False

    def _remembered(self, model: nn.Module, task: Task, run: Run, measure: Measure) -> tuple[Importance, bool]:
        computed = False

        def compute() -> Importance:
            nonlocal computed
            computed = True
            return importance(model, self.split, task, run, measure, stage="importance_all")

        def key() -> dict[str, object]:
            told = {"task": task.name, "label_smoothing": task.label_smoothing, "batch_size": measure.batch_size}
            return {**told, "measure": measure.key(model), "records": records_digest(self.split)}

        found = run.cache.remember("importance", key, compute, records=self.split.ids)
        return found, not computed


@dataclass(frozen=True, slots=True)
class Pair:
    """The importances for a forget set and for the whole set, and whether the latter was kept from an earlier run."""

    forget: Importance
    whole: Importance
    cached: bool


@dataclass(slots=True)
class Importances:
    """The importances of one run by `scalar`, each kind measured when it is first asked for; the note `rows` counts what that took.

    That of the forget set is a mean over its records; of more than `forget_rows` of them as many are drawn, the same for each kind.
    """

    model: nn.Module
    data: Splits
    task: Task
    run: Run
    scalar: Scalar
    batch_size: int
    forget_rows: int
    cache: ImportanceCache | None
    measured: dict[Granule, Pair] = field(default_factory=dict)
    drawn: Split = field(init=False)

    def __post_init__(self) -> None:
        forget = self.data.forget
        self.drawn = forget if len(forget) <= self.forget_rows else forget.sample(self.forget_rows, self.run.stream("importance_forget"))

    def of(self, granule: Granule) -> Pair:
        """Return the importances of `granule`; the model must hold its original weights when it is first asked for."""
        if granule not in self.measured:
            measure, data = Measure(self.scalar, granule, self.batch_size), self.data
            forget = importance(self.model, self.drawn, self.task, self.run, measure, stage="importance_forget")
            self.measured[granule] = Pair(
                forget, *Whole.of(data.forget, data.retain).importance(self.model, self.task, self.run, measure, self.cache)
            )
            self.run.note("rows", {"importance_forget": len(self.measured) * len(self.drawn), "importance_all": self._rows_of_all()})
        return self.measured[granule]

    def _rows_of_all(self) -> int:
        return sum(not pair.cached for pair in self.measured.values()) * (len(self.data.forget) + len(self.data.retain))
