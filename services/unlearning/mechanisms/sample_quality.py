"""What a method sees of a generator while it edits it: how often it shows what is forgotten, and how far its samples lie from retained images.

The distances are between features of the method's own classifier, and comparable with nothing but each other. Held-out records are those of the
analysis split, never those of the judge of the run.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from services.learning.data import Split
from services.learning.gan import GAN, draw, images_of
from services.learning.judge import Judge
from services.learning.run import Run
from services.learning.task import Task
from services.unlearning.mechanisms.guard import snapshot


def frechet(first: Tensor, second: Tensor) -> float:
    """Return the Fréchet distance of two sets of features (n, d), (m, d), as of two normal distributions; computed in float64."""
    a, b = first.double(), second.double()
    one, two = torch.cov(a.T), torch.cov(b.T)
    root = torch.linalg.eigvals(one @ two).real.clamp(min=0).sqrt().sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + one.trace() + two.trace() - 2 * root)


def area_above(inside: Tensor, outside: Tensor) -> float:
    """Return the chance that a value of `inside` (n,) is above one of `outside` (m,), ties one half."""
    gaps = inside.double()[:, None] - outside.double()[None]
    return float((gaps > 0).double().mean() + 0.5 * (gaps == 0).double().mean())


@dataclass(frozen=True, slots=True)
class Look:
    """One look: share of samples of the forgotten classes, distance to retained images, area between forgotten and held-out records."""

    rate: float | None
    distance: float
    area: float | None

    def described(self) -> dict[str, float | None]:
        """Return the look for the report."""
        return {"class_rate": self.rate, "distance": self.distance, "discriminator_area": self.area}


@dataclass(frozen=True, slots=True)
class Watch:
    """Looks at a GAN with the same latents each time. `retain` (n, d) are the features of retained records; `unseen` are like `forget`, but held out."""

    judge: Judge
    retain: Tensor
    forget: Split
    unseen: Split
    classes: tuple[int, ...]
    count: int
    task: Task
    run: Run

    def look(self, gan: GAN) -> Look:
        """Measure `gan`."""
        kept = tuple(label for label in range(gan.classes) if label not in self.classes)
        everything = self.judge.look(images_of(gan, draw(gan, self.count, self.run.stream("look"), self.run.device)))
        shown = torch.isin(everything.classes, torch.tensor(self.classes, dtype=torch.int64))
        seen = everything
        if gan.conditional and self.classes:
            seen = self.judge.look(images_of(gan, draw(gan, self.count, self.run.stream("look/kept"), self.run.device, classes=kept)))
        others = seen.features[~torch.isin(seen.classes, torch.tensor(self.classes, dtype=torch.int64))]
        distance = frechet(others, self.retain) if len(others) > 1 else float("inf")
        return Look(float(shown.double().mean()) if self.classes else None, distance, self.area(gan))

    def area(self, gan: GAN) -> float | None:
        """Return the area between the discriminator's logits on forgotten and on held-out records, or None without held-out records."""
        if len(self.unseen) == 0:
            return None
        return area_above(self.task.predict(gan, self.forget).flatten(), self.task.predict(gan, self.unseen).flatten())


@dataclass(slots=True)
class Kept:
    """The best of the looks that met the targets, the least distance first, with the weights it was taken of; a run ends `further` looks after the first."""

    further: int
    look: Look | None = None
    turn: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    taken: int = 0

    def done(self, turn: int, look: Look, gan: GAN, *, met: bool) -> bool:
        """Take one look into account and say whether the run may end."""
        if met and (self.look is None or look.distance < self.look.distance):
            self.look, self.turn, self.weights = look, turn, snapshot(gan)
        self.taken += self.look is not None
        return self.taken > self.further
