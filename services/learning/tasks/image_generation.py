"""Image generation by a GAN: two networks that train against each other."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from services.errors import InvalidInput
from services.learning.adversaries import Adversaries
from services.learning.class_labels import check_labels
from services.learning.data import Batch, Split
from services.learning.gan import as_gan
from services.learning.modes import evaluating, image_layout
from services.learning.recipe import Recipe
from services.learning.run import Run
from services.learning.task import TASKS, Stepper, Task

PROBE_SEED = 0
LOOKED_AT = 256
ROUNDING = 1e-3


@TASKS.register("image_generation")
class ImageGeneration(Task):
    """Images of `outputs` classes in [-1, 1], made by a generator that a discriminator judges; losses are in nats.

    The loss of a record is the discriminator's: its cross-entropy on the record as real, and on one generated image as made. Knowing nothing costs
    2 ln 2. Training descends no single loss: `stepper` moves discriminator and generator in turn.
    """

    modalities = frozenset({"image"})
    loss_unit = "nats"

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return -log D(x) - log(1 - D(G(z))) of each record, (B,) float32; the latents are the same at each call. Raises InvalidInput without D."""
        gan = as_gan(model)
        y = batch.y if gan.conditional else None
        z = torch.randn((len(batch.y), gan.latent), generator=torch.Generator().manual_seed(PROBE_SEED)).to(batch.x.device)
        real, made = gan(batch.x, y).float(), gan(gan.make(z, y), y).float()
        return (softplus(-real) + softplus(made)).flatten()

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean of `losses`, a scalar."""
        return self.losses(model, batch).mean()

    def scores(self, model: nn.Module) -> bool:
        """Say whether the checkpoint holds a discriminator."""
        return as_gan(model).discriminator is not None

    def predict(self, model: nn.Module, split: Split, *, batch_size: int = 1024) -> Tensor:
        """Return the discriminator's logit on every record in order, (n, 1) float32 on the CPU; high means called real."""
        gan = as_gan(model)
        with evaluating(gan), image_layout(gan), torch.inference_mode():
            logits = [gan(batch.x, batch.y).float() for batch in split.batches(batch_size)]
        return torch.cat(logits).cpu() if logits else torch.zeros(0, 1)

    def trivial_loss(self, split: Split) -> float:  # noqa: ARG002  a discriminator that tells nothing apart pays the same on every record
        """Return 2 ln 2, the loss of a discriminator that calls everything real and made with equal chance."""
        return 2 * math.log(2)

    def check(self, split: Split) -> None:
        """Raise InvalidInput unless records are images in [-1, 1] with labels in [0, C); at most 256 images are looked at."""
        check_labels(split, self.outputs)
        x = split.batch(torch.arange(min(len(split), LOOKED_AT))).x
        if x.ndim != 4 or not x.is_floating_point():
            raise InvalidInput(detail=f"image generation takes images as real numbers, not {x.dtype} of shape {tuple(x.shape[1:])}")
        if len(x) and not bool((x.abs() <= 1 + ROUNDING).all()):
            raise InvalidInput(detail="images must lie in [-1, 1], as the generator makes them: give the dataset mean 0.5 and std 0.5 per channel")

    def stepper(self, model: nn.Module, recipe: Recipe, run: Run, generator: torch.Generator) -> Stepper | None:
        """Return what moves the two sides in turn."""
        return Adversaries(as_gan(model), recipe, run, generator)
