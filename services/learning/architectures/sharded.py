"""Constituents of another architecture, each for a shard of the records, which vote: erasing a record then costs one constituent."""

from typing import Any

from pydantic import Field, ValidationError
from torch import nn

from services.errors import ParameterOutOfRange
from services.learning.architecture import ARCHITECTURES, Architecture
from services.learning.sharding import ShardedNet


@ARCHITECTURES.register("sharded")
class Sharded(Architecture):
    """S constituents of architecture `base`, each trained on a shard of the records in R slices; they vote by their mean probability."""

    modality = "any"
    tasks = frozenset({"classification"})
    head = "head"

    class Parameters(Architecture.Parameters):
        """Parameters of `sharded`."""

        base: str = Field(min_length=1, max_length=128, description="Architecture of the constituents.")
        base_parameters: dict[str, Any] = Field(default_factory=dict, description="Parameters of that architecture, without outputs.")
        shards: int = Field(5, ge=1, le=100, description="Constituents; a record is in one shard alone.")
        slices: int = Field(1, ge=1, le=50, description="Slices of a shard; the state after each is kept in the weights.")

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters)
        if parameters.base == self.name:
            raise ParameterOutOfRange(name="base", detail="a constituent cannot be sharded itself")
        family = ARCHITECTURES[parameters.base]
        try:
            self.base = family(family.Parameters.model_validate({**parameters.base_parameters, "outputs": parameters.outputs}))
        except ValidationError as error:
            raise ParameterOutOfRange(name="base_parameters", detail=str(error)) from error
        self.modality = self.base.modality

    def build(self) -> nn.Module:
        """Return the network, freshly drawn and not yet trained in shards."""
        p = self.parameters
        return ShardedNet(self.base, p.shards, p.slices)
