"""A small convolutional GAN that makes images of a given class.

Source: Mirza and Osindero, "Conditional Generative Adversarial Nets", 2014 (arXiv 1411.1784).
"""

from torch import nn

from services.learning.architecture import ARCHITECTURES, Architecture
from services.learning.gan_networks import RECORD, GANParameters, convolutional


@ARCHITECTURES.register("conditional_gan")
class ConditionalGAN(Architecture):
    """A convolutional GAN whose generator takes the one-hot label beside the latent, and whose discriminator takes it as planes beside the image."""

    modality = "image"
    tasks = frozenset({"image_generation"})
    head = "discriminator.head"
    record_parameters = RECORD

    class Parameters(GANParameters):
        """Parameters of `conditional_gan`."""

    def build(self) -> nn.Module:
        """Return the network, freshly drawn."""
        return convolutional(self.parameters, self.parameters.outputs)
