"""A small convolutional network for small images: two halvings, about 60 thousand weights at its default width."""

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from services.learning.architecture import ARCHITECTURES, Architecture


class TinyCNNNet(nn.Module):
    """Three convolutions of 3 by 3, pooled to 2 by 2, then a linear head. x (B, ch, H, W) float32, H and W at least 4 -> logits (B, C)."""

    def __init__(self, channels: int, outputs: int, width: int, *, batch_norm: bool) -> None:
        super().__init__()

        def block(inputs: int, maps: int) -> list[nn.Module]:
            norm = nn.BatchNorm2d(maps) if batch_norm else nn.Identity()
            return [nn.Conv2d(inputs, maps, 3, padding=1, bias=not batch_norm), norm, nn.ReLU()]

        self.features = nn.Sequential(
            *block(channels, width),
            nn.MaxPool2d(2),
            *block(width, 2 * width),
            nn.MaxPool2d(2),
            *block(2 * width, 2 * width),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
        )
        self.head = nn.Linear(8 * width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, C)."""
        return self.head(self.features(x))


@ARCHITECTURES.register("tiny_cnn")
class TinyCNN(Architecture):
    """A small convolutional network for images from 8 to about 64 pixels."""

    modality = "image"
    tasks = frozenset({"classification", "regression"})
    head = "head"

    class Parameters(Architecture.Parameters):
        """Parameters of `tiny_cnn`."""

        channels: int = Field(1, ge=1, le=16, description="Channels of the image.")
        width: int = Field(32, ge=4, le=512, description="Feature maps of the first layer; the others have twice as many.")
        norm: Literal["batch", "none"] = Field("batch", description="Batch normalisation after each convolution, or none.")

    def build(self) -> nn.Module:
        """Return the network, freshly drawn."""
        p = self.parameters
        return TinyCNNNet(p.channels, p.outputs, p.width, batch_norm=p.norm == "batch")
