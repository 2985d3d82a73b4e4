"""Architectures: a name, its parameters, and a network built from them."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from services.registry import Registry


class ArchitectureParameters(BaseModel):
    """Parameters of an architecture. `outputs` is the number of classes, or of predicted values."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    outputs: int = Field(ge=1, le=1_000_000, description="Number of classes, or of predicted values.")


class Architecture(ABC):
    """A family of networks. `build` uses torch's global generator for its initial weights; callers use `fresh`, which seeds it apart.

    The last linear layer's attribute path is `head`, so that code may speak of features (its input) and of logits (its output). `head` and
    `modality` are facts of the class, but for families whose members differ; read them from an instance. `record_parameters` are the parameters of a
    dataset adapter that must equal one of the architecture's own, each by its name: sizes that a network is built for. `lacks` are parts that a
    method may ask for and no network of the family has, whatever its parameters.
    """

    name: ClassVar[str]
    modality: str
    tasks: ClassVar[frozenset[str]]
    head: str
    record_parameters: ClassVar[Mapping[str, str]] = {}
    lacks: ClassVar[frozenset[str]] = frozenset()

    class Parameters(ArchitectureParameters):
        """Parameters of this architecture."""

    def __init__(self, parameters: Any) -> None:  # each subclass has its own Parameters class
        self.parameters = parameters

    @abstractmethod
    def build(self) -> nn.Module:
        """Return the network, weights freshly drawn, on the CPU, in float32."""

    def fresh(self, seed: int) -> nn.Module:
        """Return a network whose weights depend on `seed` alone; torch's global generator is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.build()


ARCHITECTURES: Registry[Architecture] = Registry("architecture")
