"""The divergence guard: what a method may do to the retain loss, and one retry at a tenth of the learning rate.

A repaired model fails when its retain loss exceeds the greater of `factor` times its value before the edit and the loss of a trivial
predictor, or is not finite. A stage that is meant to damage (impair, ascent) is held to finiteness and three times the trivial loss only:
correct runs pass through hundreds of times the loss of a well fitted model on their way.

A model that has collapsed to one answer for every record ends at the loss of the best such answer, which lies below that limit. It fails too: its
loss was below 0.9 of that answer's before the edit and is at least 0.99 of it now, and, where answers are right or wrong, it is right hardly more
often than the commonest label is.
"""

import math
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from services.errors import Diverged, NonFinite
from services.learning.data import Split
from services.learning.modes import evaluating
from services.learning.run import Run
from services.learning.task import Task
from services.unlearning.mechanisms.accuracy import accuracy

PROBE_ROWS = 2_000
DAMAGE_FACTOR = 3.0
LANGUAGE_NATS = 2.0
SOUND, COLLAPSED = 0.9, 0.99
LEAST_SKILL = 0.1

GuardFactor = Annotated[float, Field(ge=1.5, le=100, description="Stop when the retain loss exceeds this many times its first value.")]
"""A method's parameter `guard_factor`, 10 unless its paper needs another."""
T = TypeVar("T")


def mean_loss(model: nn.Module, split: Split, task: Task, *, batch_size: int = 1024) -> float:
    """Return the mean loss over the records of `split`, in eval mode; the model's mode is restored. Summed in float64."""
    total = torch.zeros((), dtype=torch.float64, device=split.y.device)
    with evaluating(model), torch.inference_mode():
        for batch in split.batches(batch_size):
            total += task.losses(model, batch).double().sum()
    return float(total) / len(split)


def commonest(split: Split) -> float:
    """Return the share of the records of `split` that have its commonest label, (0, 1]."""
    return float(torch.bincount(split.y).max()) / len(split)


def constant_loss(split: Split, task: Task) -> float:
    """Return the loss on `split` of the best answer that is the same for every record.

    For classification that is the entropy of its labels, in nats: ln 9, not ln 10, where one of ten even classes is gone. For a language model
    it is not known, and infinite.
    """
    if task.name == "language_model":
        return math.inf
    if task.name != "classification":
        return task.trivial_loss(split)
    shares = torch.bincount(split.y).double() / len(split)
    return float(-torch.special.xlogy(shares, shares).sum())


@dataclass(frozen=True, slots=True)
class Guard:
    """Watches the retain loss of one run of `method`. `before` is its value on `probe` before the edit, `trivial` that of knowing nothing."""

    method: str
    probe: Split
    task: Task
    before: float
    trivial: float
    factor: float

    @classmethod
    def around(cls, method: str, model: nn.Module, retain: Split, task: Task, run: Run, *, factor: float) -> "Guard":
        """Measure `model` before the edit, on at most 2,000 records of `retain`. Raises Diverged when its loss is not finite: no edit could help."""
        probe = retain.sample(PROBE_ROWS, run.stream("guard"))
        before = mean_loss(model, probe, task)
        if not math.isfinite(before):
            raise Diverged(method=method, stage="before", detail="the original's retain loss is not finite")
        trivial = before + LANGUAGE_NATS if task.name == "language_model" else task.trivial_loss(probe)
        return cls(method, probe, task, before, trivial, factor)

    @property
    def limit(self) -> float:
        """The retain loss above which a repaired model is refused."""
        return max(self.factor * self.before, self.trivial)

    @property
    def damage_limit(self) -> float:
        """The retain loss above which even a damaging stage is stopped."""
        return DAMAGE_FACTOR * self.trivial

    def check(self, model: nn.Module, stage: str) -> float:
        """Return the retain loss after a repairing stage, or after the run. Raises Diverged above `limit`, and for a model that has collapsed."""
        after = self._hold(model, stage, self.limit)
        if self._collapsed(model, after):
            detail = f"retain loss {after:.4g} after {self.before:.4g} before: the model knows no more than one answer for every record"
            raise Diverged(method=self.method, stage=stage, detail=detail)
        return after

    def check_damage(self, model: nn.Module, stage: str) -> float:
        """Return the retain loss after a stage that is meant to damage. Raises Diverged above `damage_limit`."""
        return self._hold(model, stage, self.damage_limit)

    def check_finite(self, loss: Tensor, stage: str) -> None:
        """Raise Diverged when a training loss is not finite."""
        if not bool(torch.isfinite(loss).all()):
            raise Diverged(method=self.method, stage=stage, detail="the training loss is not finite")

    def _collapsed(self, model: nn.Module, after: float) -> bool:
        """Say whether the model knew the retained records and knows now no more than one answer for them all; ill calibrated alone is not collapsed."""
        constant = constant_loss(self.probe, self.task)
        if self.before >= SOUND * constant or after < COLLAPSED * constant:
            return False
        right = accuracy(model, self.probe) if self.task.name == "classification" else None
        chance = commonest(self.probe) if right is not None else 0.0
        return right is None or right <= chance + LEAST_SKILL * (1 - chance)

    def _hold(self, model: nn.Module, stage: str, limit: float) -> float:
        after = mean_loss(model, self.probe, self.task)
        if not math.isfinite(after) or after > limit:
            detail = f"retain loss {after:.4g} after {self.before:.4g} before, limit {limit:.4g}"
            raise Diverged(method=self.method, stage=stage, detail=detail)
        return after


@contextmanager
def diverging(method: str, stage: str) -> Generator[None]:
    """Turn a training loss that is not finite into the divergence of `method` at `stage`."""
    try:
        yield
    except NonFinite as error:
        raise Diverged(method=method, stage=stage, detail=str(error)) from error


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the model's parameters and buffers."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def with_retry(method: str, model: nn.Module, run: Run, attempt: Callable[[float], T], *, retries: int = 1) -> T:
    """Run `attempt`, which edits `model` in place at `scale` times its learning rates: 1 first, then a tenth; return what it returns, `model` in eval mode.

    Every attempt starts from the original weights, and after the last failure they are what `model` holds. The note `attempts` lists each.

    Raises:
        Diverged: of the last attempt, with all attempts in its detail.
    """
    original = snapshot(model)
    attempts: list[dict[str, object]] = []
    last: Diverged | None = None
    for number in range(retries + 1):
        scale = 10.0**-number
        try:
            found = attempt(scale)
        except Diverged as diverged:
            model.load_state_dict(original)
            attempts.append({"lr_scale": scale, "ended_by": "guard", "stage": diverged.facts["stage"], "detail": diverged.facts["detail"]})
            last = diverged
            run.note("attempts", list(attempts))
        else:
            attempts.append({"lr_scale": scale, "ended_by": "completed"})
            run.note("attempts", list(attempts))
            model.eval()
            return found
    told = "; ".join(f"attempt at {entry['lr_scale']:g} x lr: {entry['detail']}" for entry in attempts) if retries else attempts[0]["detail"]
    raise Diverged(method=method, stage=attempts[-1]["stage"], detail=told) from last
