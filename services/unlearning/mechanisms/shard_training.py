"""Training in shards and slices, and taking it up again at the slice before the first one whose records have changed.

Source: Bourtoule et al., "Machine Unlearning", IEEE S&P 2021 (arXiv 1912.03817).
Where a record belongs depends on its id and the seed of the training alone, so the removal of one moves no other.
"""

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from services.learning.data import Split
from services.learning.recipe import Recipe
from services.learning.run import Run, derived_seed
from services.learning.sharding import FEWEST_ROWS, ShardedNet
from services.learning.task import Task
from services.learning.training import FitResult, fit
from services.unlearning.mechanisms.fingerprint import raw_bytes, weights_digest


def places(ids: tuple[str, ...], *, seed: int, shards: int, slices: int) -> list[list[Tensor]]:
    """Return the row numbers of every slice of every shard, in an order that depends on ids and seed, not on the order of the rows."""
    marks = [hashlib.sha256(f"{seed}/{identity}".encode()).digest() for identity in ids]
    cells: list[list[int]] = [[] for _ in range(shards * slices)]
    for row in sorted(range(len(ids)), key=marks.__getitem__):
        cells[int.from_bytes(marks[row][-8:], "big") % len(cells)].append(row)
    tensors = [torch.tensor(cell, dtype=torch.int64) for cell in cells]
    return [tensors[shard * slices : (shard + 1) * slices] for shard in range(shards)]


def slice_epochs(epochs: int, slices: int) -> int:
    """Return the passes after each slice, 2 e / (R + 1) to the nearest and at least 1: in all as many record passes as `epochs` over the shard."""
    return max(1, math.floor(2 * epochs / (slices + 1) + 0.5))


def expected_shards(shards: int, removed: int) -> float:
    """Return S (1 - (1 - 1/S)^K): how many shards `removed` records at random are expected to touch."""
    return shards * (1 - (1 - 1 / shards) ** removed)


def expected_share(shards: int, slices: int) -> float:
    """Return (2/3 + 1/(3R)) / S: the share of a whole training that the removal of one record is expected to cost."""
    return (2 / 3 + 1 / (3 * slices)) / shards


def contents(pieces: list[Tensor], split: Split, recipe: Recipe, *, seed: int, shard: int) -> list[bytes]:
    """Return for each slice the digest of recipe, seed and every record of the shard up to it: ids, inputs and targets in storage form."""
    last = hashlib.sha256(f"{seed}/{shard}/{len(pieces)}/{recipe.model_dump_json()}".encode()).digest()
    found: list[bytes] = []
    for piece in pieces:
        part = split.take(piece)
        last = hashlib.sha256(last + "\0".join(part.ids).encode() + b"\0\0" + raw_bytes(part.x) + raw_bytes(part.y)).digest()
        found.append(last)
    return found


def as_tensor(digest: bytes) -> Tensor:
    """Return a digest as 32 bytes of a tensor."""
    return torch.frombuffer(bytearray(digest), dtype=torch.uint8)


def first_stale(net: ShardedNet, shard: int, expected: list[bytes]) -> int:
    """Return the first slice whose records, recipe or kept weights are not as recorded; the number of slices where all are."""
    for piece, content in enumerate(expected):
        weights = weights_digest(net.state_after(shard, piece))
        if not torch.equal(net.content[shard, piece].cpu(), as_tensor(content)):
            return piece
        if not torch.equal(net.weights[shard, piece].cpu(), as_tensor(weights)):
            return piece
    return len(expected)


@dataclass(frozen=True, slots=True)
class ShardCost:
    """What a training in shards took: steps by stage, from which slice each shard was trained, and passes over records, done and of a whole one."""

    steps: dict[str, int]
    resumed: dict[int, int]
    record_passes: int
    whole_record_passes: int
    seconds: float
    final_loss: float

    @property
    def fit(self) -> FitResult:
        """The same as one training."""
        return FitResult(sum(self.steps.values()), self.seconds, self.final_loss)

    def described(self) -> dict[str, object]:
        """Return the cost for the report."""
        share = self.record_passes / self.whole_record_passes if self.whole_record_passes else 0.0
        return {
            "shards_trained": len(self.resumed),
            "from_slice": {str(shard): piece for shard, piece in self.resumed.items()},
            "record_passes": self.record_passes,
            "whole_record_passes": self.whole_record_passes,
            "share_of_whole_training": share,
        }


def train_shards(net: ShardedNet, split: Split, task: Task, recipe: Recipe, run: Run, *, seed: int, resume: bool, stage: str = "train") -> ShardCost:
    """Train the constituents of `net` in place on their slices; with `resume`, only from the first slice that is not as recorded.

    Raises:
        NonFinite: through `fit`. Cancelled, DeadlineExceeded: at any step. InvalidInput: the labels do not fit the task.
    """
    layout = places(split.ids, seed=seed, shards=net.shards, slices=net.slices)
    part_recipe = recipe.model_copy(update={"epochs": slice_epochs(recipe.epochs, net.slices)})
    steps: dict[str, int] = {}
    resumed: dict[int, int] = {}
    done, whole, seconds, loss = 0, 0, 0.0, 0.0
    net.seed.fill_(seed)
    net.reset_head()
    for shard, pieces in enumerate(layout):
        expected = contents(pieces, split, part_recipe, seed=seed, shard=shard)
        start = first_stale(net, shard, expected) if resume else 0
        if start < net.slices:
            resumed[shard] = start
            enter(net, shard, start, seed=seed)
        for piece in range(net.slices):
            rows = torch.cat(pieces[: piece + 1])
            passes = len(rows) * part_recipe.epochs if len(rows) >= FEWEST_ROWS else 0
            whole += passes
            if piece < start:
                continue
            if passes:
                name = f"{stage}/shard {shard + 1}/slice {piece + 1}"
                generator = torch.Generator().manual_seed(derived_seed(seed, f"shard/{shard}/slice/{piece}"))
                result = fit(net.parts[shard], split.take(rows), task, part_recipe, run, stage=name, generator=generator)
                steps[name], seconds, loss, done = result.steps, seconds + result.seconds, result.final_loss, done + passes
            record(net, shard, piece, expected[piece], len(pieces[piece]))
    return ShardCost(steps, resumed, done, whole, seconds, loss)


def enter(net: ShardedNet, shard: int, start: int, *, seed: int) -> None:
    """Put a constituent back to its state before slice `start`; before the first it is freshly drawn from the seed of the training."""
    if start > 0:
        net.parts[shard].load_state_dict({name: tensor.clone() for name, tensor in net.state_after(shard, start - 1).items()})
    else:
        net.parts[shard].load_state_dict(net.base.fresh(derived_seed(seed, f"shard/{shard}")).state_dict())


def record(net: ShardedNet, shard: int, piece: int, content: bytes, rows: int) -> None:
    """Keep the constituent after a slice, with the digests of its records and of its weights."""
    net.keep(shard, piece)
    net.rows[shard, piece] = rows
    net.content[shard, piece].copy_(as_tensor(content))
    net.weights[shard, piece].copy_(as_tensor(weights_digest(net.state_after(shard, piece))))


def train_whole(
    model: nn.Module, split: Split, task: Task, recipe: Recipe, run: Run, *, stage: str = "train", generator: torch.Generator | None = None
) -> FitResult:
    """Train a freshly drawn model by its recipe: in shards where it has them, else as `fit` does."""
    if isinstance(model, ShardedNet):
        return train_shards(model, split, task, recipe, run, seed=derived_seed(run.seed, "shards"), resume=False, stage=stage).fit
    return fit(model, split, task, recipe, run, stage=stage, generator=generator)
