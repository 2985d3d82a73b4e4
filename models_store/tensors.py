"""State dicts as safetensors files, both ways, gates first. The one file of this package with torch; it can read no pickle."""

import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from models_store.errors import Refused
from models_store.header import TensorSpec, check_open_file, regular_file

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def specs(state_dict: Mapping[str, Tensor]) -> list[TensorSpec]:
    """Return what a file of this state dict would say about its tensors, by name. Tensors on the meta device will do.

    Raises:
        Refused: gate `tensor-refused`; a dtype that no file may hold.
    """
    unknown = {str(tensor.dtype) for tensor in state_dict.values()} - {str(dtype) for dtype in _DTYPES}
    if unknown:
        raise Refused("tensor-refused", f"dtype {', '.join(sorted(unknown))} is not kept in files")
    return sorted(TensorSpec(name, _DTYPES[tensor.dtype], tuple(tensor.shape)) for name, tensor in state_dict.items())


def save(state_dict: Mapping[str, Tensor], path: Path) -> None:
    """Write a state dict; equal tensors give equal bytes. `path` appears whole or not at all.

    Raises:
        Refused: gate `non-finite` or `tensor-refused`, or another gate that `load` would refuse the file by.
    """
    expected = specs(state_dict)
    _refuse_non_finite(state_dict)
    # a clone each: tied weights share memory, which the format cannot say
    plain = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in state_dict.items()}
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        save_file(plain, partial)
        with regular_file(partial) as file:
            check_open_file(file, expected)
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load(path: Path, expected: Iterable[TensorSpec] | None = None) -> dict[str, Tensor]:
    """Return the state dict of a safetensors file that passes every gate, on the CPU.

    `expected` are the tensors of the registered architecture (`specs(model.state_dict())`); None leaves gate 7 out.

    Raises:
        Refused: with the gate's code; `non-finite` for NaN and infinities.
    """
    with regular_file(path) as file:
        check_open_file(file, expected)
        try:
            state_dict = load_file(f"/dev/fd/{file.fileno()}")  # the descriptor that was checked, whatever the name points to by now
        except SafetensorError as error:
            raise Refused("header-malformed", "the safetensors library refuses it") from error
    _refuse_non_finite(state_dict)
    return state_dict


def _refuse_non_finite(state_dict: Mapping[str, Tensor]) -> None:
    """Gate 8."""
    with torch.inference_mode():
        bad = [name for name, tensor in state_dict.items() if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())]
    if bad:
        raise Refused("non-finite", f"{len(bad)} tensor(s) hold NaN or infinity, among them {bad[0][:64]}")
