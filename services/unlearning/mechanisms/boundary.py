"""The nearest class across a decision boundary, found by one step up the loss.

Source: Chen et al., "Boundary Unlearning: Rapid Forgetting of Deep Networks via Shifting the Decision Boundary", CVPR 2023.
"""

import torch
from torch import Tensor, nn

from services.learning.data import Batch, Split
from services.learning.modes import evaluating
from services.learning.task import Task
from services.unlearning.mechanisms.noise import frozen


def value_range(split: Split, *, batch_size: int = 1024) -> tuple[float, float]:
    """Return the least and the greatest value of prepared records, widened to [0, 1]: pixels scaled to [0, 1] keep that range exactly."""
    low, high = 0.0, 1.0
    for batch in split.batches(batch_size):
        bounds = torch.aminmax(batch.x)
        low, high = min(low, float(bounds.min)), max(high, float(bounds.max))
    return low, high


def stepped(model: nn.Module, batch: Batch, task: Task, *, bound: float, within: tuple[float, float]) -> Tensor:
    """Return x + bound * sign of the loss's gradient at x, clipped to `within`; (B, *record), without a graph."""
    x = batch.x.detach().clone().requires_grad_()
    with torch.enable_grad():
        loss = task.losses(model, Batch(x, batch.y)).sum()
    (gradient,) = torch.autograd.grad(loss, x)
    return (batch.x + bound * gradient.sign()).clamp(*within)


def nearest_labels(model: nn.Module, split: Split, task: Task, *, bound: float, excluded: tuple[int, ...], batch_size: int = 512) -> Tensor:
    """Return, for each row in order, the class the model gives to the row one step up its loss: (n,) int64 on the rows' device.

    A row's own class and every class in `excluded` is passed over for the next likeliest. In eval mode; weights, buffers and modes stay.
    """
    within = value_range(split)
    found: list[Tensor] = [torch.zeros(0, dtype=torch.int64, device=split.y.device)]
    with frozen(model), evaluating(model):
        for batch in split.batches(batch_size):
            shifted = stepped(model, batch, task, bound=bound, within=within)
            with torch.no_grad():
                logits: Tensor = model(shifted).float()
            logits[:, list(excluded)] = -torch.inf
            logits.scatter_(1, batch.y[:, None], -torch.inf)
            found.append(logits.argmax(dim=1))
    return torch.cat(found)
