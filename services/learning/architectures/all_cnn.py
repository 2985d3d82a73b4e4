"""All-CNN: a network of convolutions only, halving by stride instead of pooling.

Source: Springenberg et al., "Striving for Simplicity: The All Convolutional Net", ICLR 2015 workshop (model All-CNN-C).
Differs: batch normalisation after each convolution, and the last 1 by 1 convolution is a linear layer after the average, which is the same
function without its ReLU; so that features and logits are apart.
"""

from pydantic import Field
from torch import Tensor, nn

from services.learning.architecture import ARCHITECTURES, Architecture


class AllCNNNet(nn.Module):
    """Eight convolutions, two of them with stride 2, averaged over space. x (B, ch, H, W) float32 -> logits (B, C)."""

    def __init__(self, channels: int, outputs: int, width: int, *, dropout: float) -> None:
        super().__init__()

        def block(inputs: int, maps: int, kernel: int, stride: int = 1) -> nn.Module:
            convolution = nn.Conv2d(inputs, maps, kernel, stride=stride, padding=kernel // 2, bias=False)
            return nn.Sequential(convolution, nn.BatchNorm2d(maps), nn.ReLU())

        self.features = nn.Sequential(
            block(channels, width, 3),
            block(width, width, 3),
            block(width, width, 3, stride=2),
            nn.Dropout(dropout),
            block(width, 2 * width, 3),
            block(2 * width, 2 * width, 3),
            block(2 * width, 2 * width, 3, stride=2),
            nn.Dropout(dropout),
            block(2 * width, 2 * width, 3),
            block(2 * width, 2 * width, 1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Linear(2 * width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, C)."""
        return self.head(self.features(x))


@ARCHITECTURES.register("all_cnn")
class AllCNN(Architecture):
    """All-CNN-C with batch normalisation, for images of about 32 pixels."""

    modality = "image"
    tasks = frozenset({"classification", "regression"})
    head = "head"

    class Parameters(Architecture.Parameters):
        """Parameters of `all_cnn`."""

        channels: int = Field(3, ge=1, le=16, description="Channels of the image.")
        width: int = Field(96, ge=4, le=512, description="Feature maps of the first three convolutions; the others have twice as many.")
        dropout: float = Field(0.5, ge=0, lt=1, description="Dropout after each halving.")

    def build(self) -> nn.Module:
        """Return the network, freshly drawn."""
        p = self.parameters
        return AllCNNNet(p.channels, p.outputs, p.width, dropout=p.dropout)
