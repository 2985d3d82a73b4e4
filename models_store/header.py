"""The gate before the library: what a safetensors file claims about itself, checked without torch and without reading a tensor.

The library accepts double keys, shapes such as [0, 2**40] and headers of 100 MB, which take seconds and gigabytes to list. Every file passes
here first. Gates, in order: `file-refused`, `header-too-large`, `header-malformed`, `tensor-refused`, `layout-refused`,
`architecture-mismatch`. `file-too-large` and `digest-mismatch` come before, in checkpoints; `non-finite` after, in finite and in tensors.
"""

import os
import re
import stat
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, cast

from models_store.errors import Refused
from models_store.strict_json import NotStrictJson, parse_object

HEADER_BYTES = 4 * 1024 * 1024
TENSORS = 20_000
RANK = 8
DIMENSION = 2**31
ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}

_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,256}")
_MEMBERS = {"dtype", "shape", "data_offsets"}
_ARCHIVES = {b"PK": "a zip archive, as torch.save writes", b"\x80": "a pickle", b"\x1f\x8b": "a gzip file", b"\x89HDF": "an HDF5 file"}


@dataclass(frozen=True, slots=True, order=True)
class TensorSpec:
    """What a file says about one tensor. `dtype` in the words of safetensors: F32, BF16, I64, ..."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Entry:
    """A tensor and its span in the data part, in bytes."""

    spec: TensorSpec
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Span:
    """The bytes of one tensor in an open, checked file: `size_bytes` from the absolute position `start`."""

    file: BinaryIO
    spec: TensorSpec
    start: int
    size_bytes: int


def check_header(path: Path, expected: Iterable[TensorSpec] | None) -> list[TensorSpec]:
    """Return the tensors of a safetensors file, by name, if it passes gates 3 to 7.

    `expected` are the tensors of the registered architecture; None leaves gate 7 out.

    Raises:
        Refused: with the gate's code.
    """
    with regular_file(path) as file:
        return check_open_file(file, expected)


def check_open_file(file: BinaryIO, expected: Iterable[TensorSpec] | None) -> list[TensorSpec]:
    """As check_header, on an open file, from its beginning."""
    size_bytes = os.fstat(file.fileno()).st_size
    file.seek(0)
    raw = _header_bytes(file, size_bytes)
    entries = _entries(raw)
    _check_layout(entries, size_bytes - 8 - len(raw))
    specs = sorted(entry.spec for entry in entries)
    if expected is not None:
        _check_architecture(specs, expected)
    return specs


def spans(file: BinaryIO) -> list[Span]:
    """Return where each tensor lies, in file order, of an open file that passes gates 3 to 6. Raises Refused."""
    check_open_file(file, None)
    file.seek(0)
    raw = _header_bytes(file, os.fstat(file.fileno()).st_size)
    entries = sorted(_entries(raw), key=lambda entry: entry.start)
    return [Span(file, entry.spec, 8 + len(raw) + entry.start, entry.end - entry.start) for entry in entries]


@contextmanager
def regular_file(path: Path) -> Generator[BufferedReader]:
    """Open a file for reading if it is a regular one, not behind a symbolic link, and without holes.

    Raises:
        Refused: gate `file-refused`.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise Refused("file-refused", f"it cannot be opened as a plain file ({os.strerror(error.errno or 0)})") from error
    facts = os.fstat(descriptor)
    if not stat.S_ISREG(facts.st_mode):
        os.close(descriptor)
        raise Refused("file-refused", "it is not a regular file")
    with os.fdopen(descriptor, "rb") as file:
        if facts.st_size and os.lseek(descriptor, 0, os.SEEK_HOLE) < facts.st_size:
            raise Refused("file-refused", "it is sparse")
        file.seek(0)
        yield file


def _header_bytes(file: BinaryIO, size_bytes: int) -> bytes:
    """Gate 3."""
    prefix = file.read(8)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or length > min(HEADER_BYTES, size_bytes - 8):
        kind = next((kind for magic, kind in _ARCHIVES.items() if prefix.startswith(magic)), None)
        hint = f"; it looks like {kind}: export it as safetensors" if kind else ""
        raise Refused("header-too-large", f"the header would have {length} bytes, the file has {size_bytes}, the limit is {HEADER_BYTES}{hint}")
    raw = file.read(length)
    if len(raw) != length:
        raise Refused("header-too-large", "the file ends inside the header")
    return raw


def _entries(raw: bytes) -> list[_Entry]:
    """Gates 4 and 5."""
    try:
        header = parse_object(raw)
    except NotStrictJson as error:
        raise Refused("header-malformed", str(error)) from error
    _check_metadata(header.pop("__metadata__", {}))
    if len(header) > TENSORS:
        raise Refused("tensor-refused", f"{len(header)} tensors, the limit is {TENSORS}")
    for described in header.values():
        _check_form(described)
    return [_entry(name, described) for name, described in header.items()]


def _check_metadata(metadata: Any) -> None:
    texts: list[Any] = [*metadata, *metadata.values()] if isinstance(metadata, dict) else [None]
    for text in texts:
        if not isinstance(text, str) or any("\ud800" <= letter <= "\udfff" for letter in text):
            raise Refused("header-malformed", "__metadata__ maps text to text")


def _check_form(described: Any) -> None:
    """The three members with lists of whole numbers; this bounds the depth, too."""
    if not isinstance(described, dict) or set(cast("dict[str, Any]", described)) != _MEMBERS or not isinstance(described["dtype"], str):
        raise Refused("header-malformed", "a tensor has exactly dtype, shape and data_offsets")
    if not isinstance(described["shape"], list) or not isinstance(described["data_offsets"], list):
        raise Refused("header-malformed", "shape and data_offsets are lists")
    shape, span = cast("list[Any]", described["shape"]), cast("list[Any]", described["data_offsets"])
    if len(span) != 2 or any(type(number) is not int or number < 0 for number in (*shape, *span)):
        raise Refused("header-malformed", "shape and data_offsets (two) hold whole numbers, not negative")


def _entry(name: str, described: dict[str, Any]) -> _Entry:
    """Gate 5 for one tensor."""
    if not _NAME.fullmatch(name):
        raise Refused("tensor-refused", "a name is 1 to 256 of the letters [A-Za-z0-9_.-]")
    dtype, shape, (start, end) = described["dtype"], described["shape"], described["data_offsets"]
    if dtype not in ITEM_BYTES:
        raise Refused("tensor-refused", f"{name} has dtype {dtype[:16]!r}; allowed are {', '.join(ITEM_BYTES)}")
    if len(shape) > RANK or any(dimension > DIMENSION for dimension in shape):
        raise Refused("tensor-refused", f"{name} has more than {RANK} dimensions, or one over 2^31")
    if prod(shape) * ITEM_BYTES[dtype] != end - start:
        raise Refused("tensor-refused", f"{name} spans {end - start} bytes, its shape and dtype need {prod(shape) * ITEM_BYTES[dtype]}")
    return _Entry(TensorSpec(name, dtype, tuple(shape)), start, end)


def _check_layout(entries: list[_Entry], data_bytes: int) -> None:
    """Gate 6."""
    at = 0
    for entry in sorted(entries, key=lambda entry: (entry.start, entry.end)):
        if entry.start != at:
            raise Refused("layout-refused", f"{entry.spec.name} starts at byte {entry.start}, the one before it ends at {at}")
        at = entry.end
    if at != data_bytes:
        raise Refused("layout-refused", f"the tensors end at byte {at}, the data at {data_bytes}")


def _check_architecture(found: list[TensorSpec], expected: Iterable[TensorSpec]) -> None:
    """Gate 7."""
    have, want = {spec.name: spec for spec in found}, {spec.name: spec for spec in expected}
    if have == want:
        return
    missing, extra = sorted(want.keys() - have.keys()), sorted(have.keys() - want.keys())
    other = [f"{name} is {_shown(have[name])}, not {_shown(want[name])}" for name in sorted(have.keys() & want.keys()) if have[name] != want[name]]
    counts = f"{len(missing)} tensors missing, {len(extra)} unknown, {len(other)} of another shape or dtype"
    examples = [*(f"{name} is missing" for name in missing[:2]), *(f"{name} is unknown" for name in extra[:2]), *other[:2]]
    raise Refused("architecture-mismatch", f"{counts}: {'; '.join(examples)}")


def _shown(spec: TensorSpec) -> str:
    return f"{spec.dtype}{list(spec.shape)}"
