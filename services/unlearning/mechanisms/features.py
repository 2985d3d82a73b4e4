"""The last linear layer of a network, what it takes, and which parts of the network before it may be trained."""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from services.learning.cache import model_digest, records_digest, worth_keeping
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
    """Return `split` with penultimate features (n, d) float32 in place of its records. Cancelled, DeadlineExceeded: after any batch.

    The records of a label are read in batches of their own, and where they are many their features are kept in the cache of the run, under the
    weights below `head`: a later request that takes other labels away, or finds another head, meets the same batches again.
    """
    features = torch.zeros(len(split), int(getattr(head, "in_features", 0)), device=split.x.device)
    labels = split.y.cpu()
    blocks = [torch.nonzero(labels == label).flatten() for label in labels.unique()]
    of, step = sum(-(-len(rows) // FEATURE_BATCH) for rows in blocks), 0

    def tick(known: Tensor, y: Tensor) -> None:
        nonlocal step
        step += 1
        with torch.no_grad():
            run.report(step, of, stage=stage, loss=task.losses(head, Batch(known, y)).mean())

    for rows in blocks:
        features[rows.to(features.device)] = _kept(model, head, split.take(rows), run, tick)
    return Split(features, split.y, split.ids, identity)


def _kept(model: nn.Module, head: nn.Module, rows: Split, run: Run, tick: Callable[[Tensor, Tensor], None]) -> Tensor:
    """Return the features of `rows`, (n, d) float32; `tick` is called with those of each batch, and their labels, also where they were kept."""
    path = next(name for name, module in model.named_modules() if module is head)
    unlabelled = replace(rows, y=torch.zeros_like(rows.y))  # no feature depends on a label
    live: list[Tensor] = []

    def key() -> dict[str, object]:
        return {"below": [path, model_digest(model, without=path)], "records": records_digest(unlabelled), "batch": FEATURE_BATCH}

    def compute() -> dict[str, Tensor]:
        for batch in rows.batches(FEATURE_BATCH):
            live.append(penultimate(model, head, batch.x))
            tick(live[-1], batch.y)
        return {"features": torch.cat(live)}

    kept = run.cache.remember("features", key, compute, records=rows.ids, by_row=True) if worth_keeping(model, rows) else compute()
    found = kept["features"]
    if not live:
        for known, y in zip(found.split(FEATURE_BATCH), rows.y.split(FEATURE_BATCH), strict=True):
            tick(known, y)
    return found


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
