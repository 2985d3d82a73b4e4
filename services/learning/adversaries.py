"""The two sides of a GAN at training: each step moves the discriminator, then the generator, and the encoder where there is one.

Source: Goodfellow et al., NeurIPS 2014 (the non-saturating loss); Salimans et al., NeurIPS 2016 (one-sided label smoothing); Donahue et al.,
ICLR 2017 (the latent regressor, which is our encoder).
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

from services.learning.data import Batch
from services.learning.gan import GAN
from services.learning.recipe import Recipe
from services.learning.run import Run
from services.learning.training import autocast_of, optimizer_for

REAL_LABEL = 0.9
BETAS = (0.5, 0.999)


def towards(logits: Tensor, target: float) -> Tensor:
    """Return the mean binary cross-entropy of `logits` (B, 1) to the one `target` in [0, 1], in nats."""
    return binary_cross_entropy_with_logits(logits.float(), torch.full_like(logits, target, dtype=torch.float32))


class Adversaries:
    """Optimisers of the parts of `gan`, and the steps they take. Adam has betas 0.5 and 0.999; `real_label` is what real images are called.

    Where the checkpoint holds no discriminator, one is drawn for the training and not kept.
    """

    def __init__(self, gan: GAN, recipe: Recipe, run: Run, generator: torch.Generator, *, real_label: float = REAL_LABEL) -> None:
        self.gan, self.recipe, self.run, self.draws, self.real_label = gan, recipe, run, generator, real_label
        self.discriminator = gan.opponent().to(run.device).train() if gan.discriminator is None else gan.discriminator
        self._of_discriminator = self._optimizer(self.discriminator.parameters())
        self._of_generator = self._optimizer(gan.generator.parameters())
        self._of_encoder = None if gan.encoder is None else self._optimizer(gan.encoder.parameters())

    def step(self, batch: Batch, rate: float) -> Tensor:
        """Take one step of each part on real images x (B, ch, H, W) at the learning rate `rate`; return the discriminator's loss."""
        for optimizer in (self._of_discriminator, self._of_generator, self._of_encoder):
            for group in [] if optimizer is None else optimizer.param_groups:
                group["lr"] = rate
        y = batch.y if self.gan.conditional else None
        z = torch.randn((len(batch.y), self.gan.latent), generator=self.draws).to(self.run.device)
        with autocast_of(self.recipe, self.run):
            made = self.gan.make(z, y)
            both = self.judged(torch.cat([batch.x, made.detach()]), None if y is None else torch.cat([y, y]))
            on_real, on_made = both.chunk(2)
            loss = towards(on_real, self.real_label) + towards(on_made, 0.0)
        self.move_discriminator(loss)
        with autocast_of(self.recipe, self.run):
            fooled = towards(self.judged(made, y), 1.0)
        self.move_generator(fooled)
        if self.gan.encoder is not None and self._of_encoder is not None:
            with autocast_of(self.recipe, self.run):
                missed = mse_loss(self.gan.encoder(made.detach()).float(), z)
            self._move(self._of_encoder, missed, self.gan.encoder)
        return loss.detach()

    def judged(self, x: Tensor, y: Tensor | None) -> Tensor:
        """Return the discriminator's logits (B, 1)."""
        return self.gan.judged_by(self.discriminator, x, y)

    def move_discriminator(self, loss: Tensor) -> None:
        """Take one step of the discriminator down `loss`."""
        self._move(self._of_discriminator, loss, self.discriminator)

    def move_generator(self, loss: Tensor) -> None:
        """Take one step of the generator down `loss`."""
        self._move(self._of_generator, loss, self.gan.generator)

    def _move(self, optimizer: torch.optim.Optimizer, loss: Tensor, part: nn.Module) -> None:
        weights = list(part.parameters())
        optimizer.zero_grad(set_to_none=True)
        loss.backward(inputs=weights)  # the other side's weights take no part
        if self.recipe.gradient_clip > 0:
            nn.utils.clip_grad_norm_(weights, self.recipe.gradient_clip)
        optimizer.step()

    def _optimizer(self, weights: Iterable[Tensor]) -> torch.optim.Optimizer:
        optimizer = optimizer_for(self.recipe, weights)
        for group in optimizer.param_groups:
            if "betas" in group:
                group["betas"] = BETAS
        return optimizer
