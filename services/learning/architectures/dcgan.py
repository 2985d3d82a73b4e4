"""A small convolutional GAN for images of 8 to 64 pixels.

Source: Radford et al., "Unsupervised Representation Learning with Deep Convolutional Generative Adversarial Networks", ICLR 2016 (arXiv 1511.06434).
Differs: two doublings from a quarter of the side, so that 28 pixels are served; no batch norm in the discriminator, which then judges each image by
itself; dropout there instead.
"""

from torch import nn

from services.learning.architecture import ARCHITECTURES, Architecture
from services.learning.gan_networks import RECORD, GANParameters, convolutional


@ARCHITECTURES.register("dcgan")
class DCGAN(Architecture):
    """A convolutional GAN that makes images of no class in particular."""

    modality = "image"
    tasks = frozenset({"image_generation"})
    head = "discriminator.head"
    record_parameters = RECORD

    class Parameters(GANParameters):
        """Parameters of `dcgan`."""

    def build(self) -> nn.Module:
        """Return the network, freshly drawn."""
        return convolutional(self.parameters, 0)
