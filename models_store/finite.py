"""Gate 8 without torch: every floating-point number of a file is looked at as bytes, for processes that must not load a tensor library.

A number is NaN or infinite if and only if every bit of its exponent is set. The two top bytes of each number hold the exponent; tables turn
those whose bits are set into 1, and one AND of two long integers compares a whole piece.
"""

from models_store.errors import Refused
from models_store.header import Span

PIECE_BYTES = 1024 * 1024


def _table(mask: int) -> bytes:
    """Return the translation that gives 1 for the bytes that have all bits of `mask` set, else 0."""
    return bytes(int(byte & mask == mask) for byte in range(256))


_FORMS = {
    "F64": (8, _table(0x7F), _table(0xF0)),
    "F32": (4, _table(0x7F), _table(0x80)),
    "BF16": (2, _table(0x7F), _table(0x80)),
    "F16": (2, _table(0x7C), _table(0x00)),
}
"""Bytes a number, and what the exponent's bits are in its last byte and in the one before (little-endian)."""


def refuse_non_finite(span: Span) -> None:
    """Raise Refused, gate `non-finite`, when a floating-point tensor holds NaN or an infinity."""
    form = _FORMS.get(span.spec.dtype)
    if form is None:
        return
    size, last, before = form
    left = span.size_bytes
    span.file.seek(span.start)
    while left:
        piece = span.file.read(min(PIECE_BYTES, left))
        if not piece:
            raise Refused("layout-refused", f"the file ends inside {span.spec.name}")
        left -= len(piece)
        high = int.from_bytes(piece[size - 1 :: size].translate(last), "little")
        low = int.from_bytes(piece[size - 2 :: size].translate(before), "little")
        if high & low:
            raise Refused("non-finite", f"{span.spec.name[:64]} holds NaN or infinity")
