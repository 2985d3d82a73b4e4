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
from services.unlearning.mechanisms.substitution import Substitution

FINITE_EVERY = 25


@dataclass(frozen=True, slots=True)
class Weights:
    """Weight of the substitution, weight of looking real, and learning steps for each unlearning step."""

    substitution: float
    realism: float
    learning: int


@dataclass(frozen=True, slots=True)
class Cascade:
    """What the rounds work on: `forget` and `retain` for the discriminator, `substitution` for the generator where there is one."""

    forget: Split
    retain: Split
    substitution: Substitution | None
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
                if self.substitution is not None and self.weights.substitution + self.weights.realism > 0:
                    sides.move_generator(self._substituted(gan, sides, self.substitution, generator))
                for _ in range(self.weights.learning):
                    sides.step(next(kept), self.recipe.learning_rate)
                if turn % FINITE_EVERY == 0 or turn == cap:
                    guard.check_finite(loss.detach(), "cascade")
                run.report(turn, cap, stage="cascade", loss=loss.detach())
                if done(turn):
                    run.report(turn, turn, stage="cascade", loss=loss.detach())
                    return turn
        return cap

    def _substituted(self, gan: GAN, sides: Adversaries, substitution: Substitution, generator: torch.Generator) -> Tensor:
        """Return the generator's loss of the unlearning stage on a random batch of latents to forget."""
        rows = torch.randint(len(substitution), (self.recipe.batch_size,), generator=generator).to(substitution.images.device)
        draws = substitution.draws.take(rows)
        made = gan.make(draws.z, draws.y)
        loss = self.weights.substitution * mse_loss(made, substitution.images[rows])
        return loss if self.weights.realism == 0 else loss + self.weights.realism * towards(sides.judged(made, draws.y), 1.0)
