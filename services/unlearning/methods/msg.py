"""MSG: convolution weights that matter least to the difference between retain and forget loss are drawn anew, then the network is fine-tuned.

Source: entry "MSG" of the NeurIPS 2023 unlearning challenge, as compared in "Deep Unlearn: Benchmarking Machine Unlearning" (arXiv 2410.01276).
Differs: gradients are of means over the whole forget set and equally many retain records, in eval mode, so that they depend neither on the batch
size nor on batch statistics; ties and counts are exact; fewer than 20,000 records get smaller batches or more epochs.
"""

import math
from functools import partial

import torch
from pydantic import Field
from torch import Tensor, nn

from services.learning.data import Split, Splits
from services.learning.run import Run
from services.learning.task import Task
from services.learning.training import optimizer_for
from services.unlearning.mechanisms.applicability import admit, refuse
from services.unlearning.mechanisms.convolutions import contrast_gradients, kernels, redraw, smallest, transposed
from services.unlearning.mechanisms.descent import LeastSteps, Plan, loss_on, sgd_recipe
from services.unlearning.mechanisms.guard import GuardFactor
from services.unlearning.mechanisms.guarded_edit import GuardedEdit
from services.unlearning.method import METHODS, Cost, Gentler, Needs, UnlearningMethod

WARM_UP = 0.2
GRADIENT_BATCH = 256


def warm_up_and_anneal(step: int, of: int) -> float:
    """Return the factor on the learning rate at `step` (1 to `of`): linear up over the first fifth, then half a cosine down to almost nothing."""
    rising = max(1, round(WARM_UP * of))
    if step <= rising:
        return step / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / (of - rising + 1)))


@METHODS.register("msg")
class Msg(UnlearningMethod):
    """Redraw the convolution weights of least contrast between retain and forget records, then fine-tune them faster than the rest."""

    tasks = frozenset({"classification"})
    granularities = frozenset({"class", "records"})
    guarantee = "approximate"
    needs = Needs(forget_set=True, retain_set=True, parts=frozenset({"convolutions"}))
    cost = Cost(per_forget=3.0, per_retain=3.0 + 5 * 3.0, least=3 * 150 * 64)
    gentler = Gentler("lr", 0.5)

    class Parameters(UnlearningMethod.Parameters):
        """Parameters of `msg`."""

        reinit: float = Field(0.3, ge=0, le=1, description="Share of each convolution's weights that is drawn anew.")
        lr: float = Field(1e-3, ge=1e-6, le=0.1, description="Step size of SGD on the redrawn weights.")
        other_scale: float = Field(0.1, ge=0, le=1, description="Factor on the gradient of every other weight.")
        epochs: int = Field(5, ge=1, le=100, description="Passes over the retain set.")
        batch_size: int = Field(64, ge=4, le=4096, description="Records per step.")
        min_steps: LeastSteps = 150
        guard_factor: GuardFactor = 10.0

    def unlearn(self, model: nn.Module, data: Splits, task: Task, run: Run) -> nn.Module:
        """Change `model` in place and return it in eval mode. x (B, *record), y (B,) int64."""
        admit(self, data, task, run)
        if not kernels(model):
            raise refuse(self, data, "the network has no convolution whose weights could be drawn anew")
        edit = GuardedEdit.of(self, model, data.retain, task, run, stage="fine_tune")
        plan = edit.plan(len(data.retain))

        def attempt(scale: float) -> None:
            masks = self.reinitialise(model, data, task, run)
            self._fine_tune(edit, plan, data.retain, masks, self.parameters.lr * scale)

        return edit.carry_out(attempt)

    def reinitialise(self, model: nn.Module, data: Splits, task: Task, run: Run) -> dict[str, Tensor]:
        """Draw the weights of least contrast anew, in place, and return the mask of those weights by parameter; biases and other layers stay."""
        names, generator = list(kernels(model)), run.stream("reinitialise")
        retain = data.retain.sample(len(data.forget), run.stream("contrast"))
        gradients = contrast_gradients(model, names, retain, data.forget, task, batch_size=GRADIENT_BATCH)
        masks = {name: smallest(gradient, self.parameters.reinit) for name, gradient in gradients.items()}
        turned, weights = transposed(model), dict(model.named_parameters())
        for name, mask in masks.items():
            weight = weights[name].data
            redraw(weight.transpose(0, 1), mask.transpose(0, 1), generator) if name in turned else redraw(weight, mask, generator)
        run.note("reinitialised", {name: int(mask.sum()) for name, mask in masks.items()})
        return masks

    def _fine_tune(self, edit: GuardedEdit, plan: Plan, retain: Split, masks: dict[str, Tensor], lr: float) -> None:
        recipe = sgd_recipe(lr)
        hooks = [self._slow_down(parameter, masks.get(name)) for name, parameter in edit.model.named_parameters() if parameter.requires_grad]
        try:
            loss_of = loss_on(retain, edit.model, edit.task)
            edit.descend(plan, loss_of, lr=lr, optimizer_of=partial(optimizer_for, recipe), rate=warm_up_and_anneal)
        finally:
            for hook in hooks:
                hook.remove()

    def _slow_down(self, parameter: nn.Parameter, mask: Tensor | None) -> torch.utils.hooks.RemovableHandle:
        """Scale the parameter's gradient by `other_scale` but under `mask`."""
        slow = float(self.parameters.other_scale)
        factor = torch.tensor(slow, device=parameter.device) if mask is None else torch.where(mask, 1.0, slow)
        return parameter.register_hook(lambda gradient: gradient * factor.to(gradient.dtype))
