"""A GAN of fully connected layers, for images of a few hundred pixels.

Source: Goodfellow et al., "Generative Adversarial Nets", NeurIPS 2014, whose networks for digits had no convolutions.
"""

from functools import partial

from pydantic import Field
from torch import Tensor, nn

from services.learning.architecture import ARCHITECTURES, Architecture
from services.learning.gan import GAN
from services.learning.gan_networks import RECORD, SLOPE, GANParameters


class FlatTrunk(nn.Module):
    """Two hidden layers and a linear `head`: images (B, ch, H, W) of `inputs` values -> (B, outputs)."""

    def __init__(self, inputs: int, width: int, outputs: int, *, dropout: float) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Flatten(), nn.Linear(inputs, width), nn.LeakyReLU(SLOPE), nn.Linear(width, width), nn.LeakyReLU(SLOPE), nn.Dropout(dropout)
        )
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, outputs)."""
        return self.head(self.body(x))


@ARCHITECTURES.register("mlp_gan")
class MLPGAN(Architecture):
    """A fully connected GAN, conditional or not."""

    modality = "image"
    tasks = frozenset({"image_generation"})
    lacks = frozenset({"convolutions"})
    head = "discriminator.head"
    record_parameters = RECORD

    class Parameters(GANParameters):
        """Parameters of `mlp_gan`."""

        side: int = Field(8, ge=4, le=64, description="Rows and columns of the image.")
        latent: int = Field(16, ge=2, le=1024, description="Numbers that an image is made from.")
        width: int = Field(128, ge=4, le=4096, description="Units of each hidden layer.")
        conditional: bool = Field(default=False, description="Whether images are made of a given class.")

    def build(self) -> nn.Module:
        """Return the network, freshly drawn."""
        p = self.parameters
        record, pixels, classes = (p.channels, p.side, p.side), p.channels * p.side * p.side, p.outputs if p.conditional else 0
        generator = nn.Sequential(
            nn.Linear(p.latent + classes, p.width, bias=False),
            nn.BatchNorm1d(p.width),
            nn.ReLU(),
            nn.Linear(p.width, p.width, bias=False),
            nn.BatchNorm1d(p.width),
            nn.ReLU(),
            nn.Linear(p.width, pixels),
            nn.Tanh(),
            nn.Unflatten(1, record),
        )
        opponent = partial(FlatTrunk, pixels + classes * p.side * p.side, p.width, 1, dropout=p.dropout)
        discriminator = opponent() if p.discriminator else None
        encoder = FlatTrunk(pixels, p.width, p.latent, dropout=0.0) if p.encoder else None
        return GAN(generator, discriminator, encoder, latent=p.latent, classes=classes, record=record, opponent=opponent)
