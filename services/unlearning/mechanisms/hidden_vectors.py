"""The hidden vectors of a transformer after one of its blocks, and what is asked of them."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from services.errors import ParameterOutOfRange
from services.learning.data import Batch
from services.learning.sequences import trimmed
from services.learning.tokens import IGNORED

DOWN = ("down_proj", "c_proj", "fc2", "dense_4h_to_h")


class _Reached(Exception):  # it ends a forward pass, nothing is wrong
    """The block was reached."""


def blocks_of(model: nn.Module) -> nn.ModuleList:
    """Return the longest list of modules of the model: its blocks. Raises ParameterOutOfRange: there is none."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise ParameterOutOfRange(name="method", detail="the model has no blocks to look between")
    return max(lists, key=len)


def states_after(model: nn.Module, block: int, batch: Batch) -> Tensor:
    """Return the output of a block on tokens x (B, T), (B, T', W); what comes after it is not run. T' is as `trimmed` leaves it."""
    held: list[Tensor] = []

    def take(_: nn.Module, __: Any, output: Any) -> None:
        held.append(output if isinstance(output, Tensor) else output[0])
        raise _Reached

    handle = blocks_of(model)[block].register_forward_hook(take)
    try:
        model(trimmed(batch).x)
    except _Reached:
        return held[0]
    finally:
        handle.remove()
    return held[0]


def answer_distance(states: Tensor, goal: Tensor, batch: Batch) -> Tensor:
    """Return the mean over records of the mean over each one's own answer tokens of mean over dimensions (states - goal)^2, a scalar."""
    answered = (trimmed(batch).y != IGNORED).float()
    distance = (states - goal).square().mean(dim=-1)
    return ((distance * answered).sum(dim=1) / answered.sum(dim=1).clamp(min=1)).mean()


def random_direction(width: int, generator: torch.Generator) -> Tensor:
    """Return uniform numbers in [0, 1), (width,), divided by their norm."""
    drawn = torch.rand(width, generator=generator)
    return drawn / drawn.norm()


@contextmanager
def hold_outside(model: nn.Module, blocks: tuple[int, ...]) -> Generator[None]:
    """Hold every weight without gradient for a while but the down projections of the named blocks. Raises ParameterOutOfRange: there is none."""
    held = blocks_of(model)
    if any(block >= len(held) or block < 0 for block in blocks):
        raise ParameterOutOfRange(name="rmu_trainable", detail=f"the model has {len(held)} blocks, 0 to {len(held) - 1}")
    chosen = {id(weight) for block in blocks for weight in _down_projection(held[block])}
    if not chosen:
        raise ParameterOutOfRange(name="rmu_trainable", detail=f"no layer of these blocks is named {' or '.join(DOWN)}")
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(id(parameter) in chosen)
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def _down_projection(block: nn.Module) -> list[nn.Parameter]:
    """Return the weights of the block's last layer of the wide network: attention has no layer of that name, but for one that is told apart."""
    return [
        weight
        for name, module in block.named_modules()
        if name.split(".")[-1] in DOWN and "attn" not in name
        for weight in [module.weight]  # pyright: ignore[reportReturnType]  a linear layer's
    ]
