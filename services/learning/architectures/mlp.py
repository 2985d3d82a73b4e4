"""A multilayer perceptron for tabular records; it flattens whatever it is given."""

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from services.learning.architecture import ARCHITECTURES, Architecture


class MLPNet(nn.Module):
    """Linear layers with ReLU between them. x (B, *record) float32 -> logits (B, C)."""

    def __init__(self, inputs: int, outputs: int, hidden: tuple[int, ...], *, dropout: float, input_norm: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        if input_norm:
            layers.append(nn.BatchNorm1d(inputs, affine=False))
        for before, after in pairwise((inputs, *hidden)):
            layers += [nn.Linear(before, after), nn.ReLU()]
            if dropout > 0:
                layers.append(nn.Dropout(dropout))
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear((inputs, *hidden)[-1], outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, C)."""
        return self.head(self.features(x))


@ARCHITECTURES.register("mlp")
class MLP(Architecture):
    """A multilayer perceptron.

    With `input_norm` the scale of each input is learned as running statistics inside the network: they are part of the weights, so a model
    retrained or unlearned carries no statistic computed elsewhere from forgotten records.
    """

    modality = "tabular"
    tasks = frozenset({"classification", "regression"})
    lacks = frozenset({"convolutions"})
    head = "head"

    class Parameters(Architecture.Parameters):
        """Parameters of `mlp`."""

        inputs: int = Field(ge=1, le=1_000_000, description="Numbers per record after flattening.")
        hidden: tuple[Annotated[int, Field(ge=1, le=65536)], ...] = Field((256, 128), max_length=16, description="Widths of the hidden layers.")
        dropout: float = Field(0.0, ge=0, lt=1, description="Dropout after each hidden layer.")
        input_norm: Literal["batch", "none"] = Field("none", description="Scale inputs by running statistics learned with the weights, or not.")

    def build(self) -> nn.Module:
        """Return the network, freshly drawn."""
        p = self.parameters
        return MLPNet(p.inputs, p.outputs, p.hidden, dropout=p.dropout, input_norm=p.input_norm == "batch")
