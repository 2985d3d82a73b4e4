"""Latents that a generator makes forgotten images from, the images that it shall make of them instead, and latents whose images shall stay.

Source: Sun et al. (arXiv 2308.09881) names the substitution mechanism and the danger that the latent space is torn; which latents and which
substitutes is a reconstruction. A substitute lies near its latent and shows nothing of what is forgotten; it is another drawn latent's own image.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from services.learning.data import Split
from services.learning.gan import GAN, Draws, draw, images_of
from services.learning.inversion import Inverted, encoded, invert
from services.learning.judge import Judge
from services.learning.run import Run

UNREACHED = 0.05
NEAR = 0.05
LABEL_REDRAWS = 8
PAIRED = 512
CHUNK = 1024


@dataclass(frozen=True, slots=True)
class Substitution:
    """k latents and the k images, (k, ch, H, W), that shall be made of them."""

    draws: Draws
    images: Tensor

    def __len__(self) -> int:
        return len(self.draws)

    def take(self, rows: Tensor) -> "Substitution":
        """Return the rows named, on the device of the images."""
        return Substitution(self.draws.take(rows), self.images[rows])


@dataclass(frozen=True, slots=True)
class Lessons:
    """What the generator is asked for: substitutes for latents to be forgotten, and the images that other latents make now; None where there are none."""

    forgotten: Substitution | None
    kept: Substitution | None

    @classmethod
    def of(cls, forgotten: Substitution, kept: Substitution) -> "Lessons":
        """Return both, None in the place of an empty one; without anything to substitute by nothing is substituted."""
        return cls(forgotten if len(forgotten) else None, kept if len(kept) else None)


@dataclass(frozen=True, slots=True)
class Reached:
    """How near the generator comes to each item: its best latent, the mean squared error, and whether that is nearer than to unseen images."""

    found: Inverted
    reproducible: Tensor
    threshold: float | None

    def described(self, ids: tuple[str, ...]) -> dict[str, object]:
        """Return for the report which items are not reproducible by the generator."""
        flags = self.reproducible.tolist()
        return {
            "items": len(ids),
            "not_reproducible_by_generator": [name for name, flag in zip(ids, flags, strict=True) if not flag],
            "mse": [round(value, 5) for value in self.found.mse.tolist()],
            "threshold_mse": self.threshold,
        }


def nearest(wanted: Draws, offered: Draws) -> Tensor:
    """Return for each latent of `wanted` (n) the row of the nearest of `offered` under the same label, (n,), -1 where there is none."""
    rows: list[Tensor] = []
    for part in torch.arange(len(wanted), device=wanted.z.device).split(CHUNK):
        distances = torch.cdist(wanted.z[part], offered.z)
        if wanted.y is not None and offered.y is not None:
            distances.masked_fill_(wanted.y[part][:, None] != offered.y[None], float("inf"))
        least, index = distances.min(dim=1)
        rows.append(torch.where(least.isfinite(), index, -1))
    return torch.cat(rows) if rows else torch.zeros(0, dtype=torch.int64)


def of_class(gan: GAN, judge: Judge, classes: tuple[int, ...], count: int, run: Run) -> Lessons:
    """Return latents whose images show the forgotten classes, with substitutes that the judge calls none of them, and latents of other images.

    A conditional network: latents under the forgotten labels, and the images of the same latents under retained ones, which stay. Another: of `count`
    latents those whose images the judge calls forgotten, and the image of the nearest of the others. Nothing is substituted where there is nothing
    to substitute or nothing to substitute it by.
    """
    generator, labels = run.stream("latents"), torch.tensor(classes)
    if gan.conditional:
        return _of_labels(gan, judge, classes, count, run)
    draws = draw(gan, count, generator, run.device)
    images = images_of(gan, draws)
    forgotten = torch.isin(judge.look(images).classes, labels).to(run.device)
    outside = Substitution(draws, images).take((~forgotten).nonzero().flatten())
    if len(outside) == 0:
        return Lessons(None, None)
    inside = draws.take(forgotten.nonzero().flatten())
    return Lessons.of(Substitution(inside, outside.images[nearest(inside, outside.draws)]), outside)


def _of_labels(gan: GAN, judge: Judge, classes: tuple[int, ...], count: int, run: Run) -> Lessons:
    generator, labels = run.stream("latents"), torch.tensor(classes)
    kept = torch.tensor([label for label in range(gan.classes) if label not in classes])
    if len(kept) == 0:
        return Lessons(None, None)
    draws = draw(gan, count, generator, run.device, classes=classes)
    images, instead = torch.zeros(count, *gan.record, device=run.device), torch.zeros(count, dtype=torch.int64, device=run.device)
    waiting = torch.arange(count)
    for _ in range(LABEL_REDRAWS):  # an image made for a retained label may still show a forgotten class
        instead[waiting] = kept[torch.randint(len(kept), (len(waiting),), generator=generator)].to(run.device)
        made = images_of(gan, Draws(draws.z[waiting], instead[waiting]))
        images[waiting] = made
        waiting = waiting[torch.isin(judge.look(made).classes, labels)]
        if len(waiting) == 0:
            break
    done = torch.ones(count, dtype=torch.bool)
    done[waiting] = False
    rows = done.nonzero().flatten().to(run.device)
    return Lessons.of(Substitution(draws, images).take(rows), Substitution(Draws(draws.z, instead), images).take(rows))


@dataclass(frozen=True, slots=True)
class Search:
    """How latents of items are sought: descents of `steps` steps at `lr` from `restarts` starts; `copies` jittered by `spread` beside each found."""

    steps: int
    restarts: int
    lr: float
    copies: int
    spread: float


def reach(gan: GAN, items: Split, unseen: Split, search: Search, run: Run) -> Reached:
    """Return how near the generator comes to `items`; an item is reproducible where 95 % of `unseen` images are reached less well.

    Without unseen images every item counts as reproducible.
    """
    found = [_inverted(gan, rows, search, run, stage) for rows, stage in ((items, "invert"), (unseen, "invert_unseen")) if len(rows)]
    if len(found) < 2:
        return Reached(found[0], torch.ones(len(items), dtype=torch.bool, device=run.device), None)
    threshold = float(torch.quantile(found[1].mse.double(), UNREACHED))
    return Reached(found[0], found[0].mse.double() <= threshold, threshold)


def _inverted(gan: GAN, rows: Split, search: Search, run: Run, stage: str) -> Inverted:
    batch = rows.batch(torch.arange(len(rows)))
    y = batch.y if gan.conditional else None
    known = encoded(gan, batch.x, y)
    if known is not None:
        return known
    return invert(gan, batch.x, y, run, steps=search.steps, restarts=search.restarts, lr=search.lr, generator=run.stream(stage), stage=stage)


def of_items(gan: GAN, items: Split, retain: Split, reached: Reached, search: Search, count: int, run: Run) -> Lessons:
    """Return the latents of the reproducible items and jittered copies of them, with the images of the nearest drawn latents that show no item; and those.

    A drawn latent shows no item where its image is at least as far from each of them as all but 5 % of the retained images are from each other.
    Nothing is substituted where no item is reproducible, or every image drawn lies near one.
    """
    offered = draw(gan, count, run.stream("latents"), run.device)
    images = images_of(gan, offered)
    everyone = items.batch(torch.arange(len(items))).x
    far = torch.cdist(images.flatten(1), everyone.flatten(1)).min(dim=1).values >= apart(retain)
    free = Substitution(offered, images).take(far.nonzero().flatten())
    rows = reached.reproducible.nonzero().flatten().cpu()
    if len(free) == 0 or len(rows) == 0:
        return Lessons(None, free if len(free) else None)
    copies = 1 + search.copies
    z = reached.found.z[rows.to(run.device)].repeat(copies, 1)
    noise = torch.randn(z.shape, generator=run.stream("jitter")).to(run.device) * search.spread
    noise[: len(rows)] = 0.0
    wanted = Draws(z + noise, items.batch(rows).y.repeat(copies) if gan.conditional else None)
    index = nearest(wanted, free.draws)
    found = (index >= 0).nonzero().flatten()
    return Lessons.of(Substitution(wanted.take(found), free.images[index[found]]), free)


def apart(retain: Split) -> float:
    """Return the distance of pixels that all but 5 % of pairs of retained images exceed; at most 512 images are paired."""
    x = retain.batch(torch.arange(min(len(retain), PAIRED))).x.flatten(1)
    return float(torch.quantile(torch.pdist(x).double(), NEAR)) if len(x) > 1 else 0.0
