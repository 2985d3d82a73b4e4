"""A network of constituents that vote, each trained on a shard of its own, with what is needed to take one of them up again from any slice.

Source: Bourtoule et al., "Machine Unlearning", IEEE S&P 2021 (arXiv 1912.03817): sharded, isolated, sliced, aggregated.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from services.learning.architecture import Architecture

DIGEST = 32
FEWEST_ROWS = 2  # a shard of one record would have no batch statistics


class ShardedNet(nn.Module):
    """S constituents of one architecture and their soft vote. x (B, *record) -> log of the mean probability (B, C), through a linear head.

    The head is the identity; the vote leaves it as it is. Buffers say how each slice was trained, so that the weights file is all that a
    later erasure needs: `seed`; `rows` (S, R) records of each slice; `content` and `weights` (S, R, 32) digests of the records and recipe up to a
    slice, and of the constituent after it; in `kept` (S, R - 1, values) the constituent after every slice but the last.
    """

    rows: Tensor
    seed: Tensor
    content: Tensor
    weights: Tensor

    def __init__(self, base: Architecture, shards: int, slices: int) -> None:
        super().__init__()
        self.base, self.shards, self.slices = base, shards, slices
        self.parts = nn.ModuleList(base.build() for _ in range(shards))
        self.kept = nn.Module()
        for name, tensor in self.parts[0].state_dict().items():
            if slices > 1:
                self.kept.register_buffer(kept_name(name), torch.zeros((shards, slices - 1, tensor.numel()), dtype=tensor.dtype))
        self.register_buffer("seed", torch.zeros((), dtype=torch.int64))
        self.register_buffer("rows", torch.zeros((shards, slices), dtype=torch.int64))
        self.register_buffer("content", torch.zeros((shards, slices, DIGEST), dtype=torch.uint8))
        self.register_buffer("weights", torch.zeros((shards, slices, DIGEST), dtype=torch.uint8))
        outputs = int(base.parameters.outputs)
        self.head = nn.Linear(outputs, outputs)
        self.reset_head()

    def reset_head(self) -> None:
        """Make the head the identity, so that the vote is what comes out."""
        nn.init.eye_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the log of the constituents' mean probability, (B, C). One that holds too few records to train on does not vote, unless all do."""
        votes = log_softmax(torch.stack([part(x) for part in self.parts]).float(), dim=-1)
        filled = self.rows.sum(dim=1) >= FEWEST_ROWS
        silent = ~filled & filled.any()
        heard = votes.masked_fill(silent[:, None, None], -torch.inf)
        return self.head(heard.logsumexp(dim=0) - (~silent).sum().log())

    def state_after(self, shard: int, piece: int) -> dict[str, Tensor]:
        """Return the kept state of a constituent after slice `piece`; after the last it is the constituent itself."""
        current = self.parts[shard].state_dict()
        if piece == self.slices - 1:
            return current
        return {name: self.kept.get_buffer(kept_name(name))[shard, piece].view(tensor.shape) for name, tensor in current.items()}

    def keep(self, shard: int, piece: int) -> None:
        """Keep the constituent as it is now as its state after slice `piece`."""
        if piece == self.slices - 1:
            return
        for name, tensor in self.parts[shard].state_dict().items():
            self.kept.get_buffer(kept_name(name))[shard, piece].copy_(tensor.detach().flatten())


def kept_name(name: str) -> str:
    """Return the name of the buffer that keeps the tensor `name` of every constituent."""
    return name.replace(".", "__")
