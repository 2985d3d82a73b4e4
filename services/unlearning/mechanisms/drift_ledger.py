"""The budget of a certified head: how much gradient norm removals may leave behind before the head is trained again.

Source: Guo et al., "Certified Data Removal from Machine Learning Models", ICML 2020 (arXiv 1911.03030), Theorem 3.
"""

import math
from collections.abc import Mapping
from typing import Any

from services.drift import DriftLedger, Spend, gradient_budget


class CertifiedLedger(DriftLedger):
    """The budget of gradient norm of a linear head trained with a random linear term of deviation `noise`."""

    def __init__(self, *, noise: float, epsilon: float, delta: float) -> None:
        self.noise, self.epsilon, self.delta = noise, epsilon, delta
        self.spent: dict[str, float] = {}
        self.keys: list[str] = []

    @property
    def budget(self) -> float:
        """The norm that may be spent in all."""
        return gradient_budget(noise=self.noise, epsilon=self.epsilon, delta=self.delta)

    def affords(self, spent: Spend) -> bool:
        """Return whether the budget still holds after `spent`."""
        return spent.key in self.keys or sum(self.spent.values()) + sum(spent.amounts.values()) <= self.budget

    def step(self, spent: Spend) -> None:
        """Count one removal. Raises ValueError for an amount that is negative or not finite."""
        if any(not (math.isfinite(amount) and amount >= 0) for amount in spent.amounts.values()):
            raise ValueError("a removal spends an amount of at least 0")
        if spent.key in self.keys:
            return
        self.keys.append(spent.key)
        for name, amount in spent.amounts.items():
            self.spent[name] = self.spent.get(name, 0.0) + amount

    def remaining(self) -> dict[str, float]:
        """Return what is left of the gradient norm."""
        return {"gradient_norm": self.budget - sum(self.spent.values())}

    def __len__(self) -> int:
        return len(self.keys)

    @classmethod
    def mechanism(cls) -> str:
        """Return `certified`."""
        return "certified"

    def state_dict(self) -> dict[str, Any]:
        """Return noise, epsilon, delta, what was spent by component, and the keys of the removals."""
        return {
            "mechanism": self.mechanism(),
            "noise": self.noise,
            "epsilon": self.epsilon,
            "delta": self.delta,
            "spent": dict(self.spent),
            "keys": list(self.keys),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state. Raises ValueError when it is another mechanism's."""
        if state.get("mechanism") != self.mechanism():
            raise ValueError(f"this is the ledger of mechanism {state.get('mechanism')!r}")
        self.noise, self.epsilon, self.delta = float(state["noise"]), float(state["epsilon"]), float(state["delta"])
        self.spent = {str(name): float(amount) for name, amount in state["spent"].items()}
        self.keys = [str(key) for key in state["keys"]]
