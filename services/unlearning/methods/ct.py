"""CT: every convolution kernel is transposed, height for width, and the network is fine-tuned on the retain set.

Source: entry "CT" (convolution transpose) of the NeurIPS 2023 unlearning challenge, as compared in "Deep Unlearn: Benchmarking Machine
Unlearning" (arXiv 2410.01276).
Differs: kernels that are not square stay as they are, since their transpose has another shape; fewer than 20,000 records get smaller batches or
more epochs.
"""

import torch
from pydantic import Field
from torch import nn

from services.learning.data import Splits
from services.learning.run import Run
from services.learning.task import Task
from services.unlearning.mechanisms.applicability import admit, refuse
from services.unlearning.mechanisms.convolutions import planar
from services.unlearning.mechanisms.descent import LeastSteps, sgd_recipe
from services.unlearning.mechanisms.guard import GuardFactor
from services.unlearning.mechanisms.guarded_edit import GuardedEdit
from services.unlearning.method import METHODS, Cost, Gentler, Needs, UnlearningMethod

BATCH = 64


def swap_axes(model: nn.Module) -> int:
    """Transpose the last two axes of every square two-dimensional kernel in place; return how many kernels are other than before."""
    changed = 0
    with torch.no_grad():
        for weight in planar(model).values():
            if weight.shape[-1] == weight.shape[-2]:
                turned = weight.transpose(-1, -2).clone()
                changed += int(not torch.equal(turned, weight))
                weight.copy_(turned)
    return changed


@METHODS.register("ct")
class Ct(UnlearningMethod):
    """Transpose every convolution kernel, then fine-tune on the retain set. Not targeted: compare with a retrained model."""

    tasks = frozenset({"classification"})
    granularities = frozenset({"class", "records"})
    guarantee = "approximate"
    needs = Needs(forget_set=False, retain_set=True, parts=frozenset({"convolutions"}))
    cost = Cost(per_retain=3 * 3.0, least=3 * 150 * 64)
    gentler = Gentler("lr", 0.5)

    class Parameters(UnlearningMethod.Parameters):
        """Parameters of `ct`."""

        lr: float = Field(1e-3, ge=1e-6, le=0.1, description="Step size of SGD, falling as a cosine.")
        epochs: int = Field(3, ge=1, le=100, description="Passes over the retain set.")
        batch_size: int = Field(BATCH, ge=4, le=4096, description="Records per step.")
        min_steps: LeastSteps = 150
        guard_factor: GuardFactor = 10.0

    def unlearn(self, model: nn.Module, data: Splits, task: Task, run: Run) -> nn.Module:
        """Change `model` in place and return it in eval mode. x (B, *record), y (B,) int64."""
        admit(self, data, task, run)
        if not any(weight.shape[-1] == weight.shape[-2] > 1 for weight in planar(model).values()):
            raise refuse(self, data, "the network has no convolution kernel whose height and width could be swapped")
        p = self.parameters
        edit = GuardedEdit.of(self, model, data.retain, task, run, stage="fine_tune")
        plan = edit.plan(len(data.retain))

        def attempt(scale: float) -> None:
            run.note("kernels_transposed", swap_axes(model))
            edit.fit(data.retain, sgd_recipe(p.lr * scale, schedule="cosine", epochs=plan.epochs, batch_size=plan.batch_size))

        return edit.carry_out(attempt)
