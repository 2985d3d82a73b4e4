"""How many features to zero: the fewest that end a class on rows held back, with a margin, as far as the other classes bear it."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from services.errors import Diverged
from services.learning.run import Run
from services.unlearning.mechanisms.perturbation import Cut, Perturbation

MARGIN = 1.5  # what suffices for a handful of held-back rows falls short on others


class Stage:
    """A stage of `of` steps at most, counted over the whole run; `end` reports it full where fewer were needed."""

    def __init__(self, run: Run, name: str, of: int) -> None:
        self.run, self.name, self.of, self.step = run, name, of, 0
        self._loss = torch.zeros(())

    def tick(self, loss: Tensor) -> None:
        """Report one more step. Raises Cancelled, DeadlineExceeded."""
        self.step, self._loss = self.step + 1, loss
        self.run.report(self.step, self.of, stage=self.name, loss=loss)

    def end(self) -> None:
        """Report the last step, unless no step was taken or the last one was reported."""
        if 0 < self.step < self.of:
            self.run.report(self.of, self.of, stage=self.name, loss=self._loss)


def smallest(high: int, holds: Callable[[int], bool]) -> int:
    """Return the smallest k from 0 to `high` at which `holds`, by bisection, taking it to hold from there on; `high` where it holds nowhere."""
    low = 0
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low


def trials(width: int) -> int:
    """Return how many trials `fewest` makes at most for `width` features: two bisections, and one at either end."""
    return 2 * math.ceil(math.log2(width + 1)) + 2


def fewest(work: Perturbation, floor: float | None, stage: Stage, *, method: str) -> tuple[Cut, int, str]:
    """Return the cut, its k and what ended the search: `target`, `floor`, or `exhausted` where the class stays recognised.

    The first half of the class's rows ranks, the second half tells the smallest k at which none is recognised, among the features that
    speak for the class. Half as many again are zeroed, ranked by all rows, unless accuracy on the kept rows falls below `floor`: then as
    many as keep it.

    Raises:
        Diverged: not one feature can be zeroed above the floor, and the class is still recognised.
    """
    half = len(work.own.labels) // 2

    def met(k: int) -> bool:
        logits = work.tried(work.cut(k, slice(half)))[0][half:]
        stage.tick(cross_entropy(logits, work.own.labels[half:]))
        return not bool((logits.argmax(dim=1) == work.label).any())

    def borne(k: int) -> bool:
        own, kept = work.tried(work.cut(k))
        stage.tick(cross_entropy(own, work.own.labels))
        return floor is None or len(kept) == 0 or float((kept.argmax(dim=1) == work.kept.labels).double().mean()) >= floor

    most = work.favourable(slice(half))
    found = smallest(most, met)
    ended = "target" if found < most or met(found) else "exhausted"
    k = min(max(found, work.favourable()), math.ceil(MARGIN * found))
    if k > 0 and not borne(k):
        k, ended = smallest(k - 1, lambda fewer: not borne(fewer + 1)), "floor"
        if k == 0:
            detail = f"not one feature can be zeroed with accuracy on the other classes at {floor:.4g} or more"
            raise Diverged(method=method, stage="search", detail=detail)
    return work.cut(k), k, ended
