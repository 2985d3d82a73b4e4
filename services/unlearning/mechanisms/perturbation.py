"""Which weights of a network to zero so that a class is no longer recognised, what that does to held-out rows, and the zeroing.

Source: arXiv 2410.23693. Nothing here keeps a zeroed value.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from services.learning.data import Split
from services.unlearning.mechanisms.propagation import Layer, Propagation, class_means, propagation_of, strongest
from services.unlearning.mechanisms.relevance import Head, Scope, features_of, ranked, relevance

BATCH = 128


@dataclass(frozen=True, slots=True)
class Reading:
    """How relevance is read: list length per row (None: as many as are zeroed), where it starts, epsilon, signed or absolute."""

    n_top: int | None
    start: Literal["predicted", "target"]
    eps: float
    absolute: bool


@dataclass(frozen=True, slots=True)
class Cut:
    """What is zeroed for one class: `columns` of the head's weight, and output channels of other layers."""

    columns: Tensor
    channels: dict[Layer, Tensor] = field(default_factory=dict)

    def described(self) -> dict[str, object]:
        """Return the places, never the values, for the report."""
        return {"columns": sorted(self.columns.tolist()), "channels": {layer.name: sorted(rows.tolist()) for layer, rows in self.channels.items()}}


@dataclass(frozen=True, slots=True)
class Observed:
    """Rows as the head sees them: features (n, d), logits (n, C), labels (n,), and the relevance of other layers' channels where it is read."""

    features: Tensor
    logits: Tensor
    labels: Tensor
    layers: tuple[Tensor, ...] = ()

    @property
    def accuracy(self) -> float | None:
        """The share of rows whose largest logit is their label's, or None where there is no row."""
        return float((self.logits.argmax(dim=1) == self.labels).double().mean()) if len(self.labels) else None


def observe(
    model: nn.Module, head: nn.Linear, split: Split, reading: Reading, through: Propagation | None, tick: Callable[[Tensor], None]
) -> Observed:
    """Read `split` in batches; `tick` is given each batch's mean loss. The head must be one that `features_of` can read."""
    parts: list[tuple[Tensor, Tensor]] = []
    layers: list[list[Tensor]] = []
    for batch in split.batches(BATCH):
        seen = features_of(model, head, batch.x)
        if seen is None:
            raise ValueError("the network's logits are not those of its head")
        parts.append(seen)
        if through is not None:
            targets = batch.y if reading.start == "target" else seen[1].argmax(dim=1)
            layers.append(through.relevance(batch.x, targets, eps=reading.eps))
        tick(cross_entropy(seen[1], batch.y))
    if not parts:
        return Observed(split.x.new_zeros((0, head.in_features)).float(), split.x.new_zeros((0, head.out_features)).float(), split.y)
    features, logits = (torch.cat(each) for each in zip(*parts, strict=True))
    return Observed(features, logits, split.y, tuple(torch.cat(each) for each in zip(*layers, strict=True)))


class Perturbation:
    """The zeroing that makes `model` miss `label`, read on rows of it and watched on rows of the classes that stay (`splits`, in that order).

    `producer` is the layer that makes the head's inputs, for the path; `every_layer` carries relevance to all layers instead.

    Raises:
        Unpropagatable: of `every_layer`.
    """

    def __init__(
        self,
        model: nn.Module,
        head: nn.Linear,
        label: int,
        splits: tuple[Split, Split],
        scope: Scope,
        reading: Reading,
        tick: Callable[[Tensor], None],
        *,
        producer: nn.Linear | None = None,
        every_layer: bool = False,
    ) -> None:
        self.model, self.label, self.splits, self.reading = model, label, splits, reading
        self.scope: Scope = scope
        names = {module: name for name, module in model.named_modules()}
        self.head_name = names[head]
        self.producer = None if producer is None else Layer(names[producer], None)
        self.through = propagation_of(model) if every_layer else None
        self.own = observe(model, head, splits[0], reading, self.through, tick)
        self.kept = observe(model, head, splits[1], reading, self.through, tick)
        self.head = Head.of(head)

    @property
    def width(self) -> int:
        """The number of the head's inputs."""
        return self.head.weight.shape[1]

    def relevances(self, seen: Observed) -> Tensor:
        """Return the relevance of the head's inputs (n, d) on rows already observed."""
        targets = seen.labels if self.reading.start == "target" else seen.logits.argmax(dim=1)
        return relevance(seen.features, self.head, targets, eps=self.reading.eps, absolute=self.reading.absolute)

    def favourable(self, rows: slice = slice(None)) -> int:
        """Return how many features speak for the class on average over its `rows`; to zero others would raise its logit again."""
        return int((self.relevances(self.own)[rows].mean(dim=0) > 0).sum())

    def cut(self, k: int, rows: slice = slice(None)) -> Cut:
        """Return the cut of `k` features that the class's `rows` speak for; in other layers, as many of a hundred."""
        values = self.relevances(self.own)[rows]
        if self.through is None:
            columns = ranked(values, n_top=self.reading.n_top or k, k=k)
            return Cut(columns, {} if self.producer is None else {self.producer: columns})
        share = k / self.width
        columns = strongest(values, class_means(self.relevances(self.kept), self.kept.labels), share)
        pairs = zip(self.through.layers, self.own.layers, self.kept.layers or [None] * len(self.own.layers), strict=True)
        return Cut(
            columns,
            {layer: strongest(own[rows], None if other is None else class_means(other, self.kept.labels), share) for layer, own, other in pairs},
        )

    def tried(self, cut: Cut) -> tuple[Tensor, Tensor]:
        """Return the logits of the class's rows and of the kept rows as they would be after `cut`."""
        if self.through is None:
            head = self.head.without(self.label, cut.columns, self.scope)
            return head.logits(self.own.features), head.logits(self.kept.features)
        model = copy.deepcopy(self.model).eval()
        zero(model, self.head_name, self.label, cut, self.scope)
        with torch.no_grad():
            first, second = ([model(batch.x) for batch in split.batches(BATCH)] for split in self.splits)
        return torch.cat(first), torch.cat([self.kept.logits[:0], *second])

    def apply(self, cut: Cut) -> None:
        """Zero the weights of `cut` in the model."""
        zero(self.model, self.head_name, self.label, cut, self.scope)


def zero(model: nn.Module, head: str, label: int, cut: Cut, scope: Scope) -> None:
    """Write the zeros of `cut` into `model`: head weights of `label`, or of every class in scope `neuron`, and channels of other layers.

    A channel loses its weights, its bias, and scale and shift of the batch norm that reads it, so that it is 0 for every record.
    """
    columns = cut.columns.to(next(model.parameters()).device)
    with torch.no_grad():
        weight = model.get_parameter(f"{head}.weight")
        weight[slice(None) if scope == "neuron" else label, columns] = 0.0
        for layer, rows in cut.channels.items():
            for name in (layer.name, layer.norm):
                module = None if name is None else model.get_submodule(name)
                for parameter in () if module is None else module.parameters(recurse=False):
                    parameter[rows.to(parameter.device)] = 0.0


def silence(model: nn.Module, head: str, label: int, *, level: float) -> None:
    """Make the logit of `label` the constant `level` for every record; the head needs a bias."""
    with torch.no_grad():
        model.get_parameter(f"{head}.weight")[label] = 0.0
        model.get_parameter(f"{head}.bias")[label] = level
