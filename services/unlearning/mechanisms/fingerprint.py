"""Digests of weights and of record ids, by which a later run knows whether it was told about this model and these records."""

import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


def weights_digest(state: Mapping[str, Tensor]) -> bytes:
    """Return the SHA-256 over names and bytes of tensors, sorted by name, 32 bytes; strides and devices do not matter."""
    whole = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        whole.update(name.encode() + b"\0" + raw_bytes(tensor))
    return whole.digest()


def raw_bytes(tensor: Tensor) -> bytes:
    """Return the bytes of a tensor of any dtype, row by row."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def fingerprint(state: Mapping[str, Tensor], ids: Iterable[str]) -> str:
    """Return the SHA-256 over the tensors and the sorted ids of the rows they were trained on, 64 hexadecimal digits."""
    whole = hashlib.sha256(weights_digest(state))
    for identity in sorted(ids):
        whole.update(identity.encode() + b"\0")
    return whole.hexdigest()
