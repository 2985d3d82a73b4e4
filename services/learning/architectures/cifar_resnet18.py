"""ResNet-18 for images of 32 pixels: a 3 by 3 first convolution without stride, and no max-pooling.

Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016; the stem is the usual one for CIFAR.
"""

from pydantic import Field
from torch import nn
from torchvision.models import resnet18

from services.learning.architecture import ARCHITECTURES, Architecture


@ARCHITECTURES.register("cifar_resnet18")
class CifarResNet18(Architecture):
    """ResNet-18 with a stem for small images; its tensors are named as torchvision's."""

    modality = "image"
    tasks = frozenset({"classification"})
    head = "fc"

    class Parameters(Architecture.Parameters):
        """Parameters of `cifar_resnet18`."""

        channels: int = Field(3, ge=1, le=16, description="Channels of the image.")

    def build(self) -> nn.Module:
        """Return the network, freshly drawn."""
        network = resnet18(weights=None, num_classes=self.parameters.outputs)
        network.conv1 = nn.Conv2d(self.parameters.channels, 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
        network.add_module("maxpool", nn.Identity())
        return network
