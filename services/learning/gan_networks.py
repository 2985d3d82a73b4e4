"""The parts that convolutional GANs are built of, and the parameters that all GANs have."""

from functools import partial

from pydantic import Field
from torch import Tensor, nn

from services.learning.architecture import Architecture
from services.learning.gan import GAN

SLOPE = 0.2
RECORD = {"height": "side", "width": "side", "channels": "channels"}
"""Parameters of a dataset of images that must equal those of a network that makes such images."""


def generator_of(inputs: int, channels: int, side: int, width: int) -> nn.Sequential:
    """Return inputs (B, inputs) -> images (B, channels, side, side) in [-1, 1]: a linear layer, two transposed convolutions, tanh."""
    quarter = side // 4
    return nn.Sequential(
        nn.Linear(inputs, 2 * width * quarter * quarter, bias=False),
        nn.Unflatten(1, (2 * width, quarter, quarter)),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.ConvTranspose2d(width, channels, 4, stride=2, padding=1),
        nn.Tanh(),
    )


class ImageTrunk(nn.Module):
    """Two halvings, dropout, and a linear `head`: images (B, channels, side, side) -> (B, outputs)."""

    def __init__(self, channels: int, side: int, width: int, outputs: int, *, dropout: float) -> None:
        super().__init__()
        quarter = side // 4
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 4, stride=2, padding=1),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
            nn.LeakyReLU(SLOPE),
            nn.Dropout(dropout),
            nn.Flatten(),
        )
        self.head = nn.Linear(2 * width * quarter * quarter, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, outputs)."""
        return self.head(self.body(x))


class GANParameters(Architecture.Parameters):
    """Parameters of a GAN."""

    outputs: int = Field(ge=1, le=10_000, description="Number of classes of the records.")
    channels: int = Field(1, ge=1, le=16, description="Channels of the image.")
    side: int = Field(28, ge=8, le=64, multiple_of=4, description="Rows and columns of the image.")
    latent: int = Field(64, ge=2, le=1024, description="Numbers that an image is made from.")
    width: int = Field(32, ge=4, le=512, description="Feature maps next to the image; those further in are twice as many.")
    dropout: float = Field(0.2, ge=0, lt=1, description="Dropout of the discriminator.")
    encoder: bool = Field(default=False, description="Whether an encoder, from image to latent, is trained and kept.")
    discriminator: bool = Field(
        default=True, description="Whether the checkpoint holds the discriminator; without it the network can be retrained only."
    )


def convolutional(p: GANParameters, classes: int) -> GAN:
    """Return the network, conditioned on `classes` labels, or on none where that is 0."""
    generator = generator_of(p.latent + classes, p.channels, p.side, p.width)
    opponent = partial(ImageTrunk, p.channels + classes, p.side, p.width, 1, dropout=p.dropout)
    discriminator = opponent() if p.discriminator else None
    encoder = ImageTrunk(p.channels, p.side, p.width, p.latent, dropout=0.0) if p.encoder else None
    record = (p.channels, p.side, p.side)
    return GAN(generator, discriminator, encoder, latent=p.latent, classes=classes, record=record, opponent=opponent)
