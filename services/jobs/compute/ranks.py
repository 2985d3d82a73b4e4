"""A job on one device, or on several that share its weights: how a model is laid out, put together again, and how the processes agree.

Each rank runs the whole job on the whole records, so that every method, loss and metric is the code that runs on one device. Two things are shared.
Weights: FSDP holds on each rank a part of every weight, with its gradient and the states of its optimiser, and brings a block together while it
runs. Rows: in its forward pass each rank gives the network its own rows of the batch, and the outputs are put together, so that all ranks go on
with the same outputs, losses and decisions. Backwards each rank has the gradient of its rows, and the gradients are summed.

Source: Zhao et al., "PyTorch FSDP", VLDB 2023, in the form of torch's `fully_shard`. See docs/adr/0012.
"""

import copy
import os
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from services.errors import InvalidInput
from services.learning.modes import batch_norms

MEETING_FILE = "ranks"
PATIENCE = timedelta(minutes=30)


class Ranks:
    """Several processes that share the weights of a job. `join` makes one; each process has one at most, to its end."""

    def __init__(self, rank: int, size: int, device: torch.device) -> None:
        self.rank, self.size, self.device = rank, size, device
        self._mesh = init_device_mesh(device.type, (size,))

    @classmethod
    def join(cls, rank: int, size: int, *, folder: Path, device: torch.device) -> "Ranks":
        """Meet the other ranks through a file in `folder`, and return the team. Blocks until all are there."""
        if device.type == "cuda":
            torch.cuda.set_device(rank)
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # the ranks of a job are on one machine
        meeting = f"file://{folder / MEETING_FILE}"
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", init_method=meeting, rank=rank, world_size=size, timeout=PATIENCE)
        return cls(rank, size, device)

    def spread(self, model: nn.Module) -> nn.Module:
        """Deal each weight of the model to the ranks, block by block."""
        if batch_norms(model):
            raise InvalidInput(detail="a network with batch norm cannot be shared by devices: its statistics are those of whole batches")
        skeleton = _emptied(model, "meta")
        blocks = [
            block for held in model.modules() if isinstance(held, nn.ModuleList) for block in held if next(block.parameters(), None) is not None
        ]
        for module in (*reversed(blocks), model):
            fully_shard(module, mesh=self._mesh, reshard_after_forward=True)  # whoever asks for the parameters is given his part
            part: Any = module
            part.set_gradient_divide_factor(1.0)  # each rank has the gradient of its rows: their sum is the batch's
            part.set_force_sum_reduction_for_comms(enable=True)  # gloo sums, and does not average
        model.__class__ = _dealt_class(type(model))
        for name, value in (("team", self), ("skeleton", skeleton)):
            object.__setattr__(model, name, value)  # not as a layer of it
        return model

    def whole(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Put each tensor together; only the first rank keeps them."""
        found: dict[str, Tensor] = {}
        for name, value in state.items():
            full = value.full_tensor() if isinstance(value, DTensor) else value
            if self.rank == 0:
                found[name] = full.detach().cpu().contiguous()
        return found

    def agreed(self, asked: Callable[[], bool]) -> Callable[[], bool]:
        """Return the question, answered by the first rank."""

        def ask() -> bool:
            answer = torch.tensor([self.rank == 0 and asked()], dtype=torch.uint8, device=self.device)
            dist.broadcast(answer, src=0)
            return bool(answer.item())

        return ask

    def wait(self) -> None:
        """Return when every rank is here."""
        dist.barrier()

    def rows(self, x: Tensor) -> Tensor:
        """Return this rank's rows of a batch x (B, *record), as many on each rank: where they do not come out even, the first row fills up."""
        each = -(-len(x) // self.size)
        missing = each * self.size - len(x)
        padded = torch.cat([x, x[:1].expand(missing, *x.shape[1:])]) if missing else x
        return padded[self.rank * each : (self.rank + 1) * each]


class _Gathered(torch.autograd.Function):
    """The rows of all ranks in order; backwards each rank takes the gradient of its own, which is the same number on every rank."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, rank: int, size: int) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.place = (rank * len(own), (rank + 1) * len(own))
        own = own.contiguous()
        parts = [torch.empty_like(own) for _ in range(size)]
        dist.all_gather(parts, own)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        start, end = ctx.place
        return grads[0][start:end], None, None


class _Dealt:
    """What a shared network does besides: each rank runs its own rows, and a copy is built anew and filled."""

    team: Ranks
    skeleton: nn.Module
    _within = False

    def __call__(self, *args: Any, **named: Any) -> Any:
        if not torch.is_inference_mode_enabled():
            return super().__call__(*args, **named)  # pyright: ignore[reportAttributeAccessIssue]
        with torch.inference_mode(mode=False), torch.no_grad():  # weights brought together in inference mode could never be trained again
            return super().__call__(*args, **named)  # pyright: ignore[reportAttributeAccessIssue]

    def forward(self, x: Tensor, *args: Any, continued: bool = False) -> Any:
        """Return the outputs (B, ...) of all ranks' rows; with `continued` the whole batch is run here, and what goes on from it is kept."""
        self._within = True
        try:
            if continued:
                return super().continued(x, *args)  # pyright: ignore[reportAttributeAccessIssue]
            outputs = super().forward(self.team.rows(x), *args)  # pyright: ignore[reportAttributeAccessIssue]
        finally:
            self._within = False
        return _Gathered.apply(outputs, self.team.rank, self.team.size)[: len(x)]  # pyright: ignore[reportOptionalSubscript]

    def continued(self, x: Tensor, past: Any = None) -> Any:
        """Return what the network's own method does, called so that its weights are there."""
        if self._within:
            return super().continued(x, past)  # pyright: ignore[reportAttributeAccessIssue]
        return self(x, past, continued=True)

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        """Return a network dealt to the same ranks, with the same weights, modes and flags."""
        mine: Any = self
        made = self.team.spread(_emptied(self.skeleton, self.team.device))
        made.load_state_dict(mine.state_dict())
        for new, held in zip(made.parameters(), mine.parameters(), strict=True):
            new.requires_grad_(held.requires_grad)
        for new, held in zip(made.modules(), mine.modules(), strict=True):
            new.training = held.training
        memo[id(self)] = made
        return made


@cache
def _dealt_class(family: type[nn.Module]) -> type[nn.Module]:
    """Return the class of a shared network of `family`."""
    return type(f"Dealt{family.__name__}", (_Dealt, family), {})


def _emptied(model: nn.Module, device: torch.device | str) -> nn.Module:
    """Return a copy of the network with weights on `device` that hold nothing yet; what is no weight is copied."""
    memo: dict[int, Any] = {
        id(weight): nn.Parameter(torch.empty_like(weight, device=device), requires_grad=weight.requires_grad) for weight in model.parameters()
    }
    return copy.deepcopy(model, memo)
