"""What one run is given beside model and data: device, seeds, the way to report, and the way to be stopped."""

import copy
import hashlib
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from services.errors import Cancelled, DeadlineExceeded
from services.learning.architecture import Architecture
from services.learning.cache import Cache, NoCache
from services.learning.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Progress:
    """One report of a running stage: `step` of `of` steps done, with the guard values of that moment."""

    stage: str
    step: int
    of: int
    values: Mapping[str, float]


def derived_seed(seed: int, purpose: str) -> int:
    """Return 63 bits that depend on `seed` and `purpose` alone, so that streams of one job never overlap."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _whole(model: nn.Module) -> nn.Module:
    return model


class Run:
    """One run of a training, a method, a metric or an attack.

    Args:
        seed: every generator of the run derives from it.
        device: where model and data live.
        architecture: what the model was built from; `fresh_model` needs it.
        recipe: how the original was trained; `retrain` needs it.
        on_progress: takes at most one report every `report_every_s` seconds, and the last of each stage.
        cancelled: asked at every report; true raises Cancelled.
        deadline_s: seconds from now after which a report raises DeadlineExceeded.
        precision: dtype of autocast, or None for float32 throughout.
        inherited: notes of the run that made the parent version (its ledger), as its manifest keeps them.
        cache: keeps what later runs would compute again; by default nothing is kept.
        spread: lays a model that was just built out over the devices of the run, in place; by default it stays whole.
    """

    def __init__(
        self,
        *,
        seed: int,
        device: torch.device | str = "cpu",
        architecture: Architecture | None = None,
        recipe: Recipe | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
        deadline_s: float | None = None,
        report_every_s: float = 0.5,
        precision: torch.dtype | None = None,
        inherited: Mapping[str, Any] | None = None,
        cache: Cache | None = None,
        spread: Callable[[nn.Module], nn.Module] | None = None,
    ) -> None:
        self.seed = seed
        self.device = torch.device(device)
        self.architecture = architecture
        self.recipe = recipe
        self.precision = precision
        self.inherited: dict[str, Any] = dict(inherited or {})
        self.cache: Cache = cache or NoCache()
        self.spread = spread or _whole
        self.shadow_seed: int | None = None
        self.notes: dict[str, object] = {}
        self.generator = self.stream("main")
        self._on_progress = on_progress
        self._cancelled = cancelled
        self._deadline_s = deadline_s
        self._started = time.monotonic()
        self._report_every_s = report_every_s
        self._reported_at = float("-inf")

    def stream(self, purpose: str) -> torch.Generator:
        """Return a generator on the CPU for one purpose (`teacher`, `noise`, ...); equal seed and purpose give equal numbers."""
        return torch.Generator().manual_seed(derived_seed(self.seed, purpose))

    def for_shadows(self) -> Self:
        """Return this run under the seed of models on random halves of the records, where it was given one: the same for every request on them."""
        if self.shadow_seed is None:
            return self
        other = copy.copy(self)
        other.seed = self.shadow_seed
        return other

    def fresh_model(self, purpose: str) -> nn.Module:
        """Return a newly initialised model of the run's architecture, on the run's device, seeded by `purpose`."""
        if self.architecture is None:
            raise ValueError("this run was given no architecture")
        return self.spread(self.architecture.fresh(derived_seed(self.seed, purpose)).to(self.device))

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context in which forward passes run: autocast in `precision`, or nothing."""
        if self.precision is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.precision)

    def report(self, step: int, of: int, *, stage: str = "", **values: float | Tensor) -> None:
        """Tell that `step` of `of` is done. A tensor is read back from the device only when a report is due.

        Raises:
            Cancelled: the owner asked to stop. DeadlineExceeded: the time is used up.
        """
        if self._cancelled is not None and self._cancelled():
            raise Cancelled
        now = time.monotonic()
        if self._deadline_s is not None and now - self._started > self._deadline_s:
            raise DeadlineExceeded(deadline_s=self._deadline_s)
        if self._on_progress is None or (now - self._reported_at < self._report_every_s and step < of):
            return
        self._reported_at = now
        self._on_progress(Progress(stage, step, of, {name: float(value) for name, value in values.items()}))

    def note(self, name: str, value: object) -> None:
        """Record an effective parameter or an event of the run (JSON-able) for the report."""
        self.notes[name] = value
