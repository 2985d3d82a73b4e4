"""The fake label: what the discriminator is taught to say of images that are to be forgotten.

Source: Sun et al., "Cascaded unlearning" (arXiv 2308.09881) names the idea; how it is chosen here is a reconstruction.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch

from services.learning.data import Split
from services.learning.gan import GAN, draw, images_of
from services.learning.run import Run
from services.learning.task import Task

Kind = Literal["anneal", "calibrated", "zero"]
FRESH = 512
LABEL_BATCH = 1024
GAIN = 4.0
SMALLEST = 1e-6


def calibrated(gan: GAN, held_out: Split, task: Task, run: Run) -> float:
    """Return the mean of the discriminator's sigmoid over records it never saw; without any, over fresh images of its own generator."""
    if len(held_out) > 0:
        return float(task.predict(gan, held_out, batch_size=LABEL_BATCH).double().sigmoid().mean())
    draws = draw(gan, FRESH, run.stream("fake_label"), run.device)
    made = images_of(gan, draws)
    labels = torch.zeros(FRESH, dtype=torch.int64, device=run.device) if draws.y is None else draws.y
    return float(task.predict(gan, Split(made, labels, ("made",) * FRESH), batch_size=LABEL_BATCH).double().sigmoid().mean())


@dataclass(slots=True)
class FakeLabel:
    """The label of each round of `planned`: `calibrated` throughout, 0 throughout, or annealed from 0 to `value` in the last third.

    `value` starts as calibrated on the original. The mean of a skewed set of outputs is not their middle, and the discriminator goes on learning:
    `correct` moves it, in log-odds, against what is seen to remain.
    """

    kind: Kind
    value: float
    planned: int

    def correct(self, area: float) -> None:
        """Lower the label where forgotten records are still called more real than held-out ones (`area` above a half), raise it where less."""
        odds = math.log(max(self.value, SMALLEST)) - math.log(max(1 - self.value, SMALLEST)) - GAIN * (area - 0.5)
        self.value = 1 / (1 + math.exp(-odds))

    def at(self, done: int) -> float:
        """Return the label in [0, 1] of round `done`, counted from 1."""
        if self.kind == "zero":
            return 0.0
        if self.kind == "calibrated" or done >= self.planned:
            return self.value
        start = 2 * self.planned / 3
        return self.value * max(0.0, (done - start) / (self.planned - start))

    def final(self, done: int) -> bool:
        """Say whether the label of round `done` is the one it stays at."""
        return self.kind != "anneal" or done >= self.planned
