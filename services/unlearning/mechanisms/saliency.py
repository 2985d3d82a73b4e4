"""Which weights the forget set's loss depends on most, and an optimiser that leaves all others as they were to the last bit.

Source: Fan et al., "SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency", ICLR 2024.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from services.learning.data import Split
from services.learning.modes import evaluating
from services.learning.run import Run
from services.learning.task import Task


def salient(model: nn.Module, forget: Split, task: Task, run: Run, *, keep: float, batch_size: int) -> list[Tensor]:
    """Return a mask per trainable parameter, in their order: true for the share `keep` of all values with the largest |sum of gradients|.

    The gradients are those of the mean loss of each batch of `forget`, in eval mode, summed over batches; of equal values the first are taken.
    """
    weights = [each for each in model.parameters() if each.requires_grad]
    total = [torch.zeros_like(each) for each in weights]
    steps = -(-len(forget) // batch_size)
    with evaluating(model):
        for step, batch in enumerate(forget.batches(batch_size), start=1):
            loss = -task.losses(model, batch).mean()
            for held, gradient in zip(total, torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True), strict=True):
                held.add_(gradient)
            run.report(step, steps, stage="saliency", loss=loss.detach())
    size = torch.cat([each.flatten() for each in total]).abs()
    mask = torch.zeros(len(size), dtype=torch.bool, device=size.device)
    mask[size.argsort(descending=True, stable=True)[: round(keep * len(size))]] = True
    parts = mask.split([each.numel() for each in weights])
    return [part.view_as(each) for part, each in zip(parts, weights, strict=True)]


class MaskedSGD(torch.optim.SGD):
    """SGD that, after every step, puts back each weight outside its mask and clears its momentum.

    Masking the gradients alone would let weight decay and momentum move them.
    """

    def __init__(self, weights: Iterable[nn.Parameter], masks: list[Tensor], *, lr: float, momentum: float, weight_decay: float) -> None:
        held = list(weights)
        super().__init__(held, lr=lr, momentum=momentum, weight_decay=weight_decay, fused=True)
        self._kept = [(weight, ~mask, weight.detach().clone()) for weight, mask in zip(held, masks, strict=True)]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]  no closure is ever given
        """Take one step inside the masks."""
        super().step(closure)
        for weight, outside, original in self._kept:
            weight.copy_(torch.where(outside, original, weight))
            momentum = self.state[weight].get("momentum_buffer")
            if momentum is not None:
                momentum.masked_fill_(outside, 0.0)
