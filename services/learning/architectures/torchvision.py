"""Classification networks of torchvision by name, without weights: tensors are named as in torchvision's own checkpoints."""

from typing import Any

from pydantic import Field, field_validator
from torch import nn
from torchvision import models
from torchvision.models import get_model, list_models

from services.errors import ParameterOutOfRange
from services.learning.architecture import ARCHITECTURES, Architecture

# squeezenet ends in a convolution; googlenet and inception return several outputs while they train
WITHOUT_LINEAR_HEAD = ("squeezenet", "googlenet", "inception")
NAMES = tuple(name for name in list_models(module=models) if not name.startswith(WITHOUT_LINEAR_HEAD))
HEADS = {
    "alexnet": "classifier.6",
    "vgg": "classifier.6",
    "densenet": "classifier",
    "mobilenet_v2": "classifier.1",
    "mobilenet_v3": "classifier.3",
    "efficientnet": "classifier.1",
    "mnasnet": "classifier.1",
    "convnext": "classifier.2",
    "vit": "heads.head",
    "swin": "head",
    "maxvit": "classifier.5",
}


@ARCHITECTURES.register("torchvision")
class Torchvision(Architecture):
    """A classification network of torchvision by name (`resnet18`, `vit_b_16`, ...), its weights freshly drawn."""

    modality = "image"
    tasks = frozenset({"classification"})

    class Parameters(Architecture.Parameters):
        """Parameters of `torchvision`."""

        model: str = Field(description="Name of the network in torchvision.", json_schema_extra={"enum": list(NAMES)})
        channels: int = Field(3, ge=1, le=16, description="Channels of the image; other than 3 replaces the first convolution.")

        @field_validator("model")
        @classmethod
        def _known(cls, name: str) -> str:
            if name not in NAMES:
                raise ValueError(f"torchvision has no classification network {name!r} with a linear head")
            return name

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters)
        self.head = head_of(parameters.model)

    def build(self) -> nn.Module:
        """Return the network, freshly drawn. Raises ParameterOutOfRange where torchvision refuses the number of outputs."""
        p = self.parameters
        try:
            network = get_model(p.model, weights=None, num_classes=p.outputs)
        except ValueError as error:
            raise ParameterOutOfRange(name="outputs", detail=str(error)) from error
        if p.channels != 3:
            take_channels(network, p.channels)
        return network


def head_of(model: str) -> str:
    """Return the path of the last linear layer of torchvision's `model`; `fc` for residual and shuffle networks."""
    return next((path for prefix, path in HEADS.items() if model.startswith(prefix)), "fc")


def take_channels(network: nn.Module, channels: int) -> None:
    """Replace the first convolution by a fresh one that takes `channels` channels."""
    path, old = next((name, module) for name, module in network.named_modules() if isinstance(module, nn.Conv2d))
    fresh = nn.Conv2d(
        channels,
        old.out_channels,
        (old.kernel_size[0], old.kernel_size[1]),
        stride=(old.stride[0], old.stride[1]),
        padding=old.padding if isinstance(old.padding, str) else (old.padding[0], old.padding[1]),
        bias=old.bias is not None,
    )
    owner, _, attribute = path.rpartition(".")
    setattr(network.get_submodule(owner), attribute, fresh)
