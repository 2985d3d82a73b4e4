"""Records as tensors that stay on the device, and the five parts that a job cuts them into.

No sample passes through Python one by one: a batch is an index into a tensor, prepared (cast, scaled) on the device.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

RequestKind = Literal["class", "records"]


class Batch(NamedTuple):
    """x (B, *record) as the model takes it; y (B,) int64 labels or (B, *target) float32."""

    x: Tensor
    y: Tensor


def identity(x: Tensor) -> Tensor:
    """Return `x` as it is."""
    return x


def by_255(x: Tensor) -> Tensor:
    """Return uint8 pixels (B, ch, H, W) as float32 in [0, 1]."""
    return x.float().div_(255)


@dataclass(frozen=True, slots=True)
class Split:
    """A set of records on the device.

    x (n, *record) in storage form (uint8 pixels, float32 features, int64 tokens), y (n,) or (n, *target); `prepare` turns a batch of x into
    what the model takes; `ids` are the record ids, row by row.
    """

    x: Tensor
    y: Tensor
    ids: tuple[str, ...]
    prepare: Callable[[Tensor], Tensor] = identity

    def __len__(self) -> int:
        return int(self.x.shape[0])

    def take(self, index: Tensor) -> "Split":
        """Return the rows of `index` (k,) int64, in that order."""
        rows = index.to(self.x.device)
        return replace(self, x=self.x[rows], y=self.y[rows], ids=tuple(self.ids[i] for i in index.tolist()))

    def with_labels(self, classes: tuple[int, ...], *, keep: bool) -> "Split":
        """Return the rows whose label is (`keep`) or is not in `classes`."""
        inside = torch.isin(self.y, torch.tensor(classes, dtype=self.y.dtype, device=self.y.device))
        return self.take(torch.nonzero(inside if keep else ~inside).flatten().cpu())

    def within(self, span: "Span | Spans", *, keep: bool) -> "Split":
        """Return the rows whose target lies (`keep`) or does not lie in `span`; of several steps, the mean of them."""
        inside = span.holds(self.y if self.y.ndim == 1 else self.y.flatten(1).mean(dim=1))
        return self.take(torch.nonzero(inside if keep else ~inside).flatten().cpu())

    def sample(self, count: int, generator: torch.Generator) -> "Split":
        """Return at most `count` rows, drawn without replacement."""
        return self.take(torch.randperm(len(self), generator=generator)[:count])

    def batch(self, index: Tensor) -> Batch:
        """Return the rows of `index` (B,) prepared for the model."""
        rows = index.to(self.x.device, non_blocking=True)
        return Batch(self.prepare(self.x[rows]), self.y[rows])

    def batches(self, size: int, *, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """Yield every record once, in batches of `size` (the last may be shorter); shuffled when a generator is given."""
        order = torch.arange(len(self)) if generator is None else torch.randperm(len(self), generator=generator)
        for start in range(0, len(self), size):
            yield self.batch(order[start : start + size])

    def forever(self, size: int, generator: torch.Generator) -> Iterator[Batch]:
        """Yield shuffled batches for training without end. None has one record, for batch norm: it joins the batch before it, or comes twice if alone."""
        while True:
            order = torch.randperm(len(self), generator=generator)
            for rows in order.split(batch_sizes(len(self), size)):
                yield self.batch(rows if len(rows) > 1 else rows.repeat(2))

    def to(self, device: torch.device) -> "Split":
        """Return the split on `device`."""
        return replace(self, x=self.x.to(device), y=self.y.to(device))


def batch_sizes(records: int, batch_size: int) -> list[int]:
    """Return the sizes of an epoch's batches. No batch has one record, which batch normalisation could not take, unless there is only one."""
    sizes = [batch_size] * (records // batch_size)
    rest = records % batch_size
    if rest == 1 and sizes:
        sizes[-1] += 1
    elif rest:
        sizes.append(rest)
    return sizes


class Span(NamedTuple):
    """A range of targets: above `above` and below `below`, each where it is given; the bounds themselves are outside."""

    above: float | None = None
    below: float | None = None

    def holds(self, y: Tensor) -> Tensor:
        """Return whether each target of y (n,) lies in the range, (n,) bool."""
        inside = torch.ones_like(y, dtype=torch.bool)
        if self.above is not None:
            inside &= y > self.above
        if self.below is not None:
            inside &= y < self.below
        return inside


class Spans(NamedTuple):
    """Several ranges of targets, as of requests that are served together: a target lies in them where it lies in one."""

    spans: tuple[Span, ...]

    def holds(self, y: Tensor) -> Tensor:
        """Return whether each target of y (n,) lies in one of the ranges, (n,) bool."""
        inside = torch.zeros_like(y, dtype=torch.bool)
        for span in self.spans:
            inside |= span.holds(y)
        return inside


class Withheld(Exception):
    """A part of the data was touched by code that may not see it."""


@dataclass(frozen=True, slots=True)
class Splits:
    """The parts of one job's data.

    forget: D_f, training records to be forgotten. retain: D_r, the other training records. Held-out records have one of three roles:
    analysis (for methods: concept vectors, early stop), verification (for metrics), attack (non-members). `classes` are the labels that a
    class request forgets; held-out rows of those classes stay in the held-out parts, so that forgetting can be measured on them. `span` is the
    range of targets that range requests forget; its held-out rows stay likewise. `mixed` says that records outside it are forgotten beside it, where
    requests for a range and for records are served together. `entities` are the names that a request for an entity is about.
    A part that a caller may not see is None, and asking for it by `part` raises Withheld.
    """

    forget: Split
    retain: Split
    analysis: Split
    verification: Split | None = None
    attack: Split | None = None
    kind: RequestKind = "records"
    classes: tuple[int, ...] = ()
    span: Span | Spans | None = None
    mixed: bool = False
    entities: tuple[str, ...] = field(default=(), repr=False)
    withheld: frozenset[str] = field(default_factory=frozenset)

    @property
    def ranged(self) -> bool:
        """Whether there is a range, and every record to be forgotten is of it."""
        return self.span is not None and not self.mixed

    def for_method(self) -> "Splits":
        """Return what an unlearning method may see: everything but the verification and the attack split."""
        return replace(self, verification=None, attack=None, withheld=frozenset({"verification", "attack"}))

    def named(self, name: str) -> Split:
        """Return the records a reading is taken on.

        `forget_train`, `retain_train`; `forget_test` and `retain_test` are the verification rows of the forgotten classes, or targets, and of the
        others (`forget_test` is empty for requests that name records), `test` all verification rows, `attack` the non-members.
        """
        if name in {"forget_test", "retain_test", "test"}:
            held_out = self._part("verification")
            if name == "test":
                return held_out
            if self.span is not None:
                return held_out.within(self.span, keep=name == "forget_test")
            if self.kind != "class":
                return held_out.take(torch.zeros(0, dtype=torch.int64)) if name == "forget_test" else held_out
            return held_out.with_labels(self.classes, keep=name == "forget_test")
        if name == "attack":
            return self._part("attack")
        parts = {"forget_train": self.forget, "retain_train": self.retain, "analysis": self.analysis}
        return parts[name]

    def kept_analysis(self) -> Split:
        """Return the analysis rows that are like none of those to be forgotten, where a class or a range says which these are."""
        if self.span is not None:
            return self.analysis.within(self.span, keep=False)
        return self.analysis.with_labels(self.classes, keep=False) if self.kind == "class" else self.analysis

    def _part(self, name: Literal["verification", "attack"]) -> Split:
        part = self.verification if name == "verification" else self.attack
        if part is None:
            raise Withheld(f"the {name} split is not for this code to see")
        return part
