"""What two state dicts tell of a run without a single reading: whether weights are finite, whether they changed at all, and where."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class WeightFacts:
    """`finite`: every weight of the candidate is. `differs`: some tensor changed. `head_only`: others are there, and none but the head's changed.

    A candidate with tensors that the original does not have fits no architecture that could be published: it counts as not finite and as changed.
    One that lacks some (a generator published without its discriminator) is compared on those that are left.
    """

    finite: bool
    differs: bool
    head_only: bool

    @classmethod
    def of(cls, before: Mapping[str, Tensor], after: Mapping[str, Tensor], *, head: str) -> "WeightFacts":
        """Compare the candidate's tensors with the original's; `head` is the attribute path of the last layer."""
        if after.keys() - before.keys():
            return cls(finite=False, differs=True, head_only=False)
        changed = {name for name, value in after.items() if value.shape != before[name].shape or not torch.equal(value, before[name])}
        changed |= before.keys() - after.keys()
        of_head = {name for name in before if name.startswith(f"{head}.")}
        return cls(
            finite=all(bool(torch.isfinite(value).all()) for value in after.values() if value.is_floating_point()),
            differs=bool(changed),
            head_only=bool(changed) and changed <= of_head and of_head != set(before),
        )
