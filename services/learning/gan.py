"""Generator, discriminator and encoder as one network, and what is drawn from it.

Source: Goodfellow et al., "Generative Adversarial Nets", NeurIPS 2014; Radford et al. (arXiv 1511.06434), the convolutional form.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from services.errors import InvalidInput
from services.learning.modes import evaluating, image_layout

NO_DISCRIMINATOR = (
    "this checkpoint holds no discriminator: it can be retrained, and generates images, but cannot be fine-tuned or edited in a cascade"
)
SAMPLE_BATCH = 500


class GAN(nn.Module):
    """Named parts of one checkpoint: `generator` (B, latent) -> images, `discriminator` images -> logits (B, 1), optional `encoder` images -> (B, latent).

    Images are (B, ch, H, W) in [-1, 1]. With `classes` above 0 generator and discriminator are conditioned on a label: the generator's input is
    the latent beside its one-hot code. `opponent` makes a fresh discriminator, where the checkpoint holds none and one is needed for training.
    """

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module | None,
        encoder: nn.Module | None,
        *,
        latent: int,
        classes: int,
        record: tuple[int, int, int],
        opponent: Callable[[], nn.Module],
    ) -> None:
        super().__init__()
        self.generator, self.discriminator, self.encoder = generator, discriminator, encoder
        self.latent, self.classes, self.record, self.opponent = latent, classes, record, opponent

    @property
    def conditional(self) -> bool:
        """Whether images are made for a label."""
        return self.classes > 0

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Return the discriminator's logits (B, 1), high for real images. Raises InvalidInput: no discriminator, no labels, images of another size."""
        if self.discriminator is None:
            raise InvalidInput(detail=NO_DISCRIMINATOR)
        return self.judged_by(self.discriminator, x, y)

    def judged_by(self, discriminator: nn.Module, x: Tensor, y: Tensor | None) -> Tensor:
        """Return the logits (B, 1) of `discriminator` for images `x`, under the labels `y` (B,) of a conditional network."""
        if x.shape[1:] != torch.Size(self.record):
            raise InvalidInput(detail=f"the images are {tuple(x.shape[1:])}, and the network takes {self.record} (channels, rows, columns)")
        if not self.conditional:
            return discriminator(x)
        if y is None:
            raise InvalidInput(detail="the images of a conditional network need labels")
        planes = one_hot(y, self.classes).to(x.dtype)[:, :, None, None].expand(-1, -1, *x.shape[2:])
        return discriminator(torch.cat([x, planes], dim=1))

    def make(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """Return the images (B, ch, H, W) of latents `z` (B, latent), for labels `y` (B,) where the network is conditional."""
        if not self.conditional:
            return self.generator(z)
        if y is None:
            raise InvalidInput(detail="a conditional network makes images of labels, and none were given")
        return self.generator(torch.cat([z, one_hot(y, self.classes).to(z.dtype)], dim=1))


def as_gan(model: nn.Module) -> GAN:
    """Return `model` as what it is. Raises InvalidInput where it is no such network."""
    if not isinstance(model, GAN):
        raise InvalidInput(detail=f"image generation takes a network of generator and discriminator, not {type(model).__name__}")
    return model


@dataclass(frozen=True, slots=True)
class Draws:
    """What images are made from: z (n, latent), and labels y (n,) of a conditional network, else None."""

    z: Tensor
    y: Tensor | None

    def __len__(self) -> int:
        return len(self.z)

    def take(self, rows: Tensor) -> "Draws":
        """Return the draws of `rows` (k,)."""
        return Draws(self.z[rows], None if self.y is None else self.y[rows])


def draw(gan: GAN, count: int, generator: torch.Generator, device: torch.device, *, classes: tuple[int, ...] = ()) -> Draws:
    """Return `count` standard normal latents on `device`, with labels evenly at random of `classes` (by default all) where the network takes them."""
    z = torch.randn((count, gan.latent), generator=generator).to(device)
    if not gan.conditional:
        return Draws(z, None)
    among = torch.tensor(classes or tuple(range(gan.classes)))
    return Draws(z, among[torch.randint(len(among), (count,), generator=generator)].to(device))


def images_of(gan: GAN, draws: Draws) -> Tensor:
    """Return the images (n, ch, H, W) of `draws`, in eval mode, without gradient; the network's modes are restored."""
    with evaluating(gan), image_layout(gan), torch.no_grad():
        rows = torch.arange(len(draws), device=draws.z.device).split(SAMPLE_BATCH)
        parts = [gan.make(part.z, part.y) for part in map(draws.take, rows)]
    return torch.cat(parts) if parts else torch.zeros(0, *gan.record, device=draws.z.device)
