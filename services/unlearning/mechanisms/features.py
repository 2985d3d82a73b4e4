"""The last linear layer of a network, what it takes, and which parts of the network before it may be trained."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from services.learning.data import Batch, Split, identity
from services.learning.modes import evaluating, inputs_of
from services.learning.run import Run
from services.learning.task import Task

FEATURE_BATCH = 512


def linear_head(model: nn.Module, path: str | None, outputs: int) -> nn.Linear | None:
    """Return the layer at `path`, or without one the last linear layer; None where it is not linear or has not `outputs` rows."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)] if path is None else [model.get_submodule(path)]
    head = layers[-1] if layers else None
    return head if isinstance(head, nn.Linear) and head.out_features == outputs else None


def head_of(model: nn.Module, run: Run, outputs: int) -> nn.Linear | None:
    """Return the head that the architecture names, without one the last linear layer; None where it is not linear or has not `outputs` rows."""
    return linear_head(model, None if run.architecture is None else run.architecture.head, outputs)


def penultimate(model: nn.Module, head: nn.Module, x: Tensor) -> Tensor:
    """Return the input of `head` for x (B, *record), (B, d) float32, in eval mode; the model's modes are restored."""
    with evaluating(model), torch.no_grad(), inputs_of(head) as seen:
        model(x)
    return seen[-1].float().flatten(1)


def feature_split(model: nn.Module, head: nn.Module, split: Split, task: Task, run: Run, *, stage: str) -> Split:
    """Return `split` with penultimate features (n, d) float32 in place of its records. Cancelled, DeadlineExceeded: after any batch."""
    width = int(getattr(head, "in_features", 0))
    parts = [torch.zeros(0, width, device=split.x.device)]
    of = -(-len(split) // FEATURE_BATCH)
    for step, batch in enumerate(split.batches(FEATURE_BATCH), start=1):
        parts.append(penultimate(model, head, batch.x))
        with torch.no_grad():
            loss = task.losses(head, Batch(parts[-1], batch.y)).mean()
        run.report(step, of, stage=stage, loss=loss)
    return Split(torch.cat(parts), split.y, split.ids, identity)


def last_block(model: nn.Module, head: nn.Module) -> list[nn.Module]:
    """Return the modules just before `head`: the last block of a network that has stages, else the last layer and its norm.

    Modules are walked back in the order they were registered until one has a weight matrix; a single container is opened first.
    """
    path = next(name for name, module in model.named_modules() if module is head)
    before: list[nn.Module] = []
    owner: nn.Module = model
    for name in path.split("."):
        for sibling, child in owner.named_children():
            if sibling == name:
                break
            before.append(child)
        owner = owner.get_submodule(name)
    before = with_weights(before)
    while len(before) == 1 and list(before[0].children()):
        before = with_weights(list(before[0].children()))
    block: list[nn.Module] = []
    for module in reversed(before):
        block.insert(0, module)
        if any(parameter.ndim > 1 for parameter in module.parameters()):
            break
    return block


def with_weights(modules: Sequence[nn.Module]) -> list[nn.Module]:
    """Return those of `modules` that have parameters."""
    return [module for module in modules if next(module.parameters(), None) is not None]


def outside(model: nn.Module, parts: Sequence[nn.Module]) -> list[nn.Module]:
    """Return the modules that stay in eval mode while `parts` are trained: every batch norm, and whatever is not part of `parts`."""
    inside = {id(module) for part in parts for module in part.modules()}
    return [module for module in model.modules() if id(module) not in inside or isinstance(getattr(module, "running_mean", None), Tensor)]


def sgd(weights: list[nn.Parameter], *, head: nn.Module, lr: float, backbone_lr: float, momentum: float) -> torch.optim.Optimizer:
    """Return SGD over `weights`: at `lr` those of `head`, at `backbone_lr` the others."""
    inside = {id(weight) for weight in head.parameters()}
    groups = [
        {"params": [weight for weight in weights if id(weight) in inside], "lr": lr},
        {"params": [weight for weight in weights if id(weight) not in inside], "lr": backbone_lr},
    ]
    return torch.optim.SGD([group for group in groups if group["params"]], momentum=momentum, fused=True)


@contextmanager
def only_trainable(model: nn.Module, parts: Sequence[nn.Module]) -> Generator[None]:
    """Hold every weight outside `parts` without gradient for a while."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    chosen = {id(parameter) for part in parts for parameter in part.parameters()}
    for parameter, wanted in flags:
        parameter.requires_grad_(wanted and id(parameter) in chosen)
    try:
        yield
    finally:
        for parameter, wanted in flags:
            parameter.requires_grad_(wanted)
