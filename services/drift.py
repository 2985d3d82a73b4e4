"""What removals have used up since a model was last trained exactly, and what is left; where nothing is left, the next removal is a retraining.

A version's manifest carries the ledger as `{"budget": state}`: `certified` as its method keeps it, `empirical` for every other edit of the weights. Only an
exact training ends a ledger. It loads no torch: control, workers and reports read it alike.

Source of the certified budget: Guo et al., "Certified Data Removal from Machine Learning Models", ICML 2020 (arXiv 1911.03030), Theorem 3: the gradient of
the objective may have a norm of s * epsilon / c in all, with c = sqrt(2 ln(1.5 / delta)), for indistinguishability within (epsilon, delta).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

COMPONENTS = ("removals", "js", "utility_drop", "share")


@dataclass(frozen=True, slots=True)
class Spend:
    """What one published removal uses up, by component. `key` names the removal: counted once, however often it is told."""

    key: str
    amounts: Mapping[str, float]


class DriftLedger(ABC):
    """Sums what removals spend; only an exact training starts a new one. `components` are those that may be spent, where they are bounded by name."""

    components: ClassVar[frozenset[str] | None] = None

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}
        self.keys: list[str] = []

    def step(self, spent: Spend) -> None:
        """Count one removal; a key that was counted before changes nothing.

        Raises:
            ValueError: an amount is negative or not finite, or has no name here.
        """
        if any(not (math.isfinite(amount) and amount >= 0) for amount in spent.amounts.values()):
            raise ValueError("a removal spends an amount of at least 0")
        if self.components is not None and not self.components.issuperset(spent.amounts):
            raise ValueError(f"a removal spends {', '.join(sorted(self.components))}")
        if spent.key in self.keys:
            return
        self.keys.append(spent.key)
        for name, amount in spent.amounts.items():
            self.spent[name] = self.spent.get(name, 0.0) + amount

    @abstractmethod
    def remaining(self) -> dict[str, float]:
        """Return what is left of each component; at 0 or below the model must be trained again."""

    def __len__(self) -> int:
        """Removals since the last exact training."""
        return len(self.keys)

    @classmethod
    @abstractmethod
    def mechanism(cls) -> str:
        """Return `certified` or `empirical`."""

    def state_dict(self) -> dict[str, Any]:
        """Return mechanism, what was spent by component, and the keys of the removals, JSON-able."""
        return {"mechanism": self.mechanism(), "spent": dict(self.spent), "keys": list(self.keys)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state. Raises ValueError when it is another mechanism's."""
        if state.get("mechanism") != self.mechanism():
            raise ValueError(f"this is the ledger of mechanism {state.get('mechanism')!r}")
        self.spent = {str(name): float(amount) for name, amount in state["spent"].items()}
        self.keys = [str(key) for key in state["keys"]]


def confidence_factor(delta: float) -> float:
    """Return c = sqrt(2 ln(1.5 / delta))."""
    return math.sqrt(2 * math.log(1.5 / delta))


def gradient_budget(*, noise: float, epsilon: float, delta: float) -> float:
    """Return noise * epsilon / c: the norm that the gradients of all heads may have in sum."""
    return noise * epsilon / confidence_factor(delta)


class EmpiricalLedger(DriftLedger):
    """How far edits have moved a model: how many removals, and sums over them of what was measured of each.

    `js` is the mean Jensen-Shannon divergence in bits of parent and child on held-out records, `utility_drop` what accuracy on retained classes fell by,
    `share` the removed records over those that the parent had learned from. A number that was not measured adds nothing.
    """

    components = frozenset(COMPONENTS[1:])

    def __init__(self, caps: Mapping[str, float | None]) -> None:
        super().__init__()
        self.caps = {name: float(cap) for name in COMPONENTS if (cap := caps.get(name)) is not None}

    def remaining(self) -> dict[str, float]:
        """Return what is left of each component that has a cap; the caps are the policy's, and no part of the state."""
        used = {**self.spent, "removals": float(len(self))}
        return {name: cap - used.get(name, 0.0) for name, cap in self.caps.items()}

    @classmethod
    def mechanism(cls) -> str:
        """Return `empirical`."""
        return "empirical"


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a version's ledger stands: its mechanism, how many removals it counts, and what is left by component."""

    mechanism: str
    removals: int
    remaining: Mapping[str, float]

    @property
    def spent_out(self) -> list[str]:
        """The components of which nothing is left."""
        return sorted(name for name, left in self.remaining.items() if left <= 0)


def standing(manifest: Mapping[str, Any] | None, caps: Mapping[str, float | None]) -> Standing:
    """Return where the ledger of a version's manifest stands under the caps of a policy; a version without one has had no removal."""
    budget: Mapping[str, Any] = ((manifest or {}).get("ledger") or {}).get("budget") or {}
    if budget.get("mechanism") == "certified":
        whole = gradient_budget(noise=float(budget["noise"]), epsilon=float(budget["epsilon"]), delta=float(budget["delta"]))
        return Standing("certified", len(budget["keys"]), {"gradient_norm": whole - sum(float(one) for one in budget["spent"].values())})
    ledger = EmpiricalLedger(caps)
    if budget:
        ledger.load_state_dict(budget)
    return Standing(ledger.mechanism(), len(ledger), ledger.remaining())


def handed_on(manifest: Mapping[str, Any] | None, spent: Spend) -> dict[str, Any]:
    """Return the ledger of a version that was edited from one with this manifest; what a certified ledger said before holds no longer."""
    ledger = EmpiricalLedger({})
    budget: Mapping[str, Any] = ((manifest or {}).get("ledger") or {}).get("budget") or {}
    if budget.get("mechanism") == ledger.mechanism():
        ledger.load_state_dict(budget)
    ledger.step(spent)
    return {"budget": ledger.state_dict()}
