"""The budget of a certified head: how much gradient norm removals may leave behind before the head is trained again.

Source: Guo et al., "Certified Data Removal from Machine Learning Models", ICML 2020 (arXiv 1911.03030), Theorem 3.
"""

from collections.abc import Mapping
from typing import Any

from services.drift import DriftLedger, Spend, gradient_budget


class CertifiedLedger(DriftLedger):
    """The budget of gradient norm of a linear head trained with a random linear term of deviation `noise`."""

    def __init__(self, *, noise: float, epsilon: float, delta: float) -> None:
        super().__init__()
        self.noise, self.epsilon, self.delta = noise, epsilon, delta

    @property
    def budget(self) -> float:
        """The norm that may be spent in all."""
        return gradient_budget(noise=self.noise, epsilon=self.epsilon, delta=self.delta)

    def affords(self, spent: Spend) -> bool:
        """Return whether the budget still holds after `spent`."""
        return spent.key in self.keys or sum(self.spent.values()) + sum(spent.amounts.values()) <= self.budget

    def remaining(self) -> dict[str, float]:
        """Return what is left of the gradient norm."""
        return {"gradient_norm": self.budget - sum(self.spent.values())}

    @classmethod
    def mechanism(cls) -> str:
        """Return `certified`."""
        return "certified"

    def state_dict(self) -> dict[str, Any]:
        """Return what every ledger keeps, and noise, epsilon and delta."""
        return {**super().state_dict(), "noise": self.noise, "epsilon": self.epsilon, "delta": self.delta}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state. Raises ValueError when it is another mechanism's."""
        super().load_state_dict(state)
        self.noise, self.epsilon, self.delta = float(state["noise"]), float(state["epsilon"]), float(state["delta"])
