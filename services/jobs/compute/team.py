"""The processes of a job as one of them sees them, and a job that has but one: without what sharing weights needs, which takes long to import."""

from collections.abc import Callable, Mapping
from typing import Protocol

from torch import Tensor, nn


class Team(Protocol):
    """The ranks of a job as one of them sees them: its number `rank` of `size`."""

    rank: int
    size: int

    def spread(self, model: nn.Module) -> nn.Module:
        """Lay a model out over the devices, in place, and return it. Raises InvalidInput where its layers cannot be."""
        ...

    def whole(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the whole tensors of a state dict on the CPU; on another rank than the first, nothing. Every rank calls it."""
        ...

    def agreed(self, asked: Callable[[], bool]) -> Callable[[], bool]:
        """Return the question as the first rank answers it for all; every rank asks it as often."""
        ...

    def wait(self) -> None:
        """Return when every rank is here."""
        ...


class Alone:
    """One device, which holds the weights whole."""

    rank, size = 0, 1

    def spread(self, model: nn.Module) -> nn.Module:
        """Return the model as it is."""
        return model

    def whole(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors on the CPU."""
        return {name: value.detach().cpu().contiguous() for name, value in state.items()}

    def agreed(self, asked: Callable[[], bool]) -> Callable[[], bool]:
        """Return the question itself."""
        return asked

    def wait(self) -> None:
        """Return at once."""
