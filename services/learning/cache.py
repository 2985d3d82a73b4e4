"""What a run may keep from one job to the next: tensors under the digest of everything they depend on.

A result from the cache is the live result bit for bit: a key names the weights, the records with their order, the parameters, and, through the
facts of the cache, code, libraries and device. With no cache everything is computed each time.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from services.derived import Folder, key_of
from services.learning.data import Split

Tensors = dict[str, Tensor]
Key = Callable[[], Mapping[str, object]]

WORTH_KEEPING = 5e9
"""Numbers of the records times weights of the model, below which a pass costs about as little as looking up what came of it."""


class Cache(Protocol):
    """Keeps what was computed."""

    def remember(self, kind: str, key: Key, compute: Callable[[], Tensors], *, records: Sequence[str] | None, by_row: bool = False) -> Tensors:
        """Return the value kept under `kind` and `key`, else that of `compute`, which is then kept.

        `records` are the ids of the records it is computed from, None for all that the model has learned; `by_row` says that every tensor has one
        row for each of them, in their order. `key` is asked only where something is kept, because it may cost a pass over weights and records.
        """
        ...


class NoCache:
    """Keeps nothing."""

    def remember(self, kind: str, key: Key, compute: Callable[[], Tensors], *, records: Sequence[str] | None, by_row: bool = False) -> Tensors:  # noqa: ARG002  the protocol's
        """Compute."""
        return compute()


class Remembering:
    """Keeps values in memory as long as it lives, so that readings of one evaluation share them, and asks `outer` for what it does not hold."""

    def __init__(self, outer: Cache) -> None:
        self.outer = outer
        self._held: dict[str, Tensors] = {}

    def remember(self, kind: str, key: Key, compute: Callable[[], Tensors], *, records: Sequence[str] | None, by_row: bool = False) -> Tensors:
        """Return the value held, else that of `outer`, which is then held."""
        name = key_of(kind, key())
        if name not in self._held:
            self._held[name] = self.outer.remember(kind, key, compute, records=records, by_row=by_row)
        return self._held[name]


class FolderCache:
    """Keeps values in a folder of derived artifacts.

    Args:
        folder: where.
        facts: what every key depends on besides its own document: code, libraries, device, architecture, how records are decoded.
        digests: the keyed digest of each record id; what was computed from another record is not kept.
        device: where values are wanted.
        job: the job in whose name is written: once it is closed, nothing that holds its forgotten records is kept.
    """

    def __init__(self, folder: Folder, *, facts: Mapping[str, object], digests: Mapping[str, str], device: torch.device | str, job: str = "") -> None:
        self.folder, self.facts, self.digests, self.job = folder, dict(facts), digests, job
        self.device = torch.device(device)
        self.used: list[dict[str, Any]] = []

    def remember(self, kind: str, key: Key, compute: Callable[[], Tensors], *, records: Sequence[str] | None, by_row: bool = False) -> Tensors:
        """Return the value kept, on the device, else compute it and keep it where that is possible: a full disk keeps nothing and fails nothing."""
        name = key_of(kind, {**self.facts, **key()})
        known = None if records is None else [self.digests.get(record, "") for record in records]
        found = self._read(name, known if by_row else None)
        if found is not None:
            self.used.append({"kind": kind, "key": name, "hit": True})
            return found
        fresh = compute()
        if (known is None or all(known)) and self._write(name, kind, fresh, known, by_row=by_row):
            self.used.append({"kind": kind, "key": name, "hit": False})
        return fresh

    def _read(self, name: str, rows: list[str] | None) -> Tensors | None:
        try:
            found = self.folder.read(name)
        except OSError:
            return None
        if found is None or (rows is not None and found[0].records != tuple(rows)):
            return None
        return {key: torch.from_numpy(array.copy()).to(self.device) for key, array in found[1].items()}

    def _write(self, name: str, kind: str, fresh: Tensors, records: list[str] | None, *, by_row: bool) -> bool:
        if any(tensor.dtype == torch.bfloat16 for tensor in fresh.values()):
            return False  # numpy has no such type
        arrays = {key: tensor.detach().cpu().contiguous().numpy() for key, tensor in fresh.items()}
        try:
            return self.folder.write(name, kind, arrays, records, "rows" if by_row else "aggregate", job=self.job)
        except OSError:
            return False


def worth_keeping(model: nn.Module, split: Split) -> bool:
    """Say whether a pass of `model` over `split` costs enough that what comes of it should be kept."""
    return split.x.numel() * sum(weights.numel() for weights in model.parameters()) >= WORTH_KEEPING


def model_digest(model: nn.Module, *, without: str | None = None) -> str:
    """Return the SHA-256 over names, types, shapes and bytes of a model's parameters and buffers, 64 hexadecimal digits.

    Those of the module at the path `without` are left out.
    """
    whole = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if without is not None and name.startswith(f"{without}."):
            continue
        whole.update(f"{name}/{tensor.dtype}/{tuple(tensor.shape)}/".encode())
        whole.update(_bytes(tensor))
    return whole.hexdigest()


def records_digest(split: Split) -> str:
    """Return the SHA-256 over ids, contents and labels of the records of `split`, in their order, 64 hexadecimal digits."""
    whole = hashlib.sha256("\0".join(split.ids).encode())
    for tensor in (split.x, split.y):
        whole.update(f"/{tensor.dtype}/{tuple(tensor.shape)}/".encode())
        whole.update(_bytes(tensor))
    return whole.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
