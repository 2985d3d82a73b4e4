"""Rounds of an unlearning stage and a learning stage over both sides of a GAN, until what is forgotten is gone and the rest is as it was.

Source: Sun et al. (arXiv 2308.09881) alternates the two stages; losses, weights and the stop rule are a reconstruction.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from services.learning.adversaries import Adversaries, towards
from services.learning.data import Split
from services.learning.gan import GAN
from services.learning.modes import global_draws, image_layout, mode_of
from services.learning.recipe import Recipe
from services.learning.run import Run
from services.unlearning.mechanisms.fake_label import FakeLabel
from services.unlearning.mechanisms.guard import Guard
from services.unlearning.mechanisms.substitution import Lessons, Substitution

FINITE_EVERY = 25


@dataclass(frozen=True, slots=True)
class Weights:
    """Weight of the substitution, of looking real meanwhile, of other images staying, and learning steps for each unlearning step."""

    substitution: float
    realism: float
    keeping: float
    learning: int


@dataclass(frozen=True, slots=True)
class Cascade:
    """What the rounds work on: `forget` and `retain` for the discriminator, `lessons` for the generator."""

    forget: Split
    retain: Split
    lessons: Lessons
    label: FakeLabel
    weights: Weights
    recipe: Recipe
    real_label: float

    def carry_out(self, gan: GAN, run: Run, guard: Guard, *, cap: int, done: Callable[[int], bool]) -> int:
        """Edit `gan` in place for at most `cap` rounds, or until `done(round)` says so; return the rounds taken. Modes are restored.

        Raises:
            Diverged: a loss is not finite. Cancelled, DeadlineExceeded: after any round.
        """
        generator = run.stream("cascade")
        size = self.recipe.batch_size
        with global_draws(run.stream("cascade/dropout"), run.device), mode_of(gan, training=True), image_layout(gan):
            sides = Adversaries(gan, self.recipe, run, generator, real_label=self.real_label)
            forgotten, kept = (rows.forever(min(size, len(rows)), generator) for rows in (self.forget, self.retain))
            for turn in range(1, cap + 1):
                batch = next(forgotten)
                loss = towards(sides.judged(batch.x, batch.y if gan.conditional else None), self.label.at(turn))
                sides.move_discriminator(loss)
                asked = self._asked(gan, sides, generator)
                if asked is not None:
                    sides.move_generator(asked)
                for _ in range(self.weights.learning):
                    sides.step(next(kept), self.recipe.learning_rate)
                if turn % FINITE_EVERY == 0 or turn == cap:
                    guard.check_finite(loss.detach(), "cascade")
                run.report(turn, cap, stage="cascade", loss=loss.detach())
                if done(turn):
                    run.report(turn, turn, stage="cascade", loss=loss.detach())
                    return turn
        return cap

    def _asked(self, gan: GAN, sides: Adversaries, generator: torch.Generator) -> Tensor | None:
        """Return the generator's loss of the unlearning stage on random batches of latents, or None where nothing is asked of it."""
        w, parts = self.weights, list[Tensor]()
        forgotten, kept = self.lessons.forgotten, self.lessons.kept
        if forgotten is not None and w.substitution + w.realism > 0:
            lesson, made = self._made(gan, forgotten, generator)
            parts.append(w.substitution * mse_loss(made, lesson.images))
            if w.realism > 0:
                parts.append(w.realism * towards(sides.judged(made, lesson.draws.y), 1.0))
        if kept is not None and w.keeping > 0:
            lesson, made = self._made(gan, kept, generator)
            parts.append(w.keeping * mse_loss(made, lesson.images))
        return torch.stack(parts).sum() if parts else None

    def _made(self, gan: GAN, lessons: Substitution, generator: torch.Generator) -> tuple[Substitution, Tensor]:
        rows = torch.randint(len(lessons), (self.recipe.batch_size,), generator=generator).to(lessons.images.device)
        lesson = lessons.take(rows)
        return lesson, gan.make(lesson.draws.z, lesson.draws.y)
