"""What log and witness say to each other: the body of add-checkpoint, and the lines that come back.

Source: C2SP tlog-witness (add-checkpoint), tlog-cosignature (cosignature/v1 with Ed25519). Differs: checkpoints with extension lines are refused.
"""

import base64
import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass

from services.audit import notes
from services.audit.notes import Checkpoint, VerifierKey
from services.errors import InvalidInput

LONGEST_PROOF = 63
LONGEST_BODY = notes.LONGEST_NOTE + 64 * 64
_OLD = re.compile(r"old (0|[1-9][0-9]{0,18})", re.ASCII)
_SIZE = re.compile(r"(0|[1-9][0-9]{0,18})\n", re.ASCII)


@dataclass(frozen=True, slots=True)
class Submission:
    """A checkpoint for a witness: `old` is the size it last cosigned, `proof` leads from there to the checkpoint."""

    old: int
    proof: tuple[bytes, ...]
    checkpoint: Checkpoint

    @property
    def body(self) -> bytes:
        """The body of the request."""
        lines = [f"old {self.old}", *(base64.b64encode(node).decode() for node in self.proof), "", self.checkpoint.note]
        return "\n".join(lines).encode()


def parse_submission(body: bytes) -> Submission:
    """Return what a request's body says; no signature and no proof is checked. Raises InvalidInput."""
    try:
        head, gap, note = body.decode("utf-8", "strict").partition("\n\n")
    except UnicodeDecodeError as error:
        raise InvalidInput(detail="the body is not UTF-8") from error
    first, *lines = head.split("\n")
    old = _OLD.fullmatch(first)
    if len(body) > LONGEST_BODY or old is None or not gap or len(lines) > LONGEST_PROOF:
        raise InvalidInput(detail="the body is `old` with a size, at most 63 lines of proof, an empty line, and a checkpoint")
    return Submission(int(old[1]), tuple(_node(line) for line in lines), notes.parse_checkpoint(note))


def _node(line: str) -> bytes:
    try:
        raw = base64.b64decode(line, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidInput(detail="a line of the proof is not base64") from error
    if len(raw) != 32 or base64.b64encode(raw).decode() != line:
        raise InvalidInput(detail="a line of the proof is not a hash of 32 bytes in base64")
    return raw


def known_size(body: bytes) -> int | None:
    """Return the size that a witness says it knows, in the body of its 409; None for another form."""
    found = _SIZE.fullmatch(body.decode("ascii", "replace"))
    return None if found is None else int(found[1])


def good_line(body: bytes, checkpoint: Checkpoint, key: VerifierKey, *, not_after: int) -> str | None:
    """Return the line of an answer that is a good cosignature of `key` on the checkpoint; None where none is. Lines of other keys are passed over.

    `not_after` is the latest time, in seconds since 1970, that the line may carry; zero is no time at all.
    """
    text = body.decode("utf-8", "replace")
    for line in text.removesuffix("\n").split("\n"):
        try:
            name, raw = notes.split_line(line)
        except InvalidInput:
            continue
        if name != key.name or raw[:4] != key.hash or len(raw) != 4 + 8 + 64:
            continue
        if 0 < int.from_bytes(raw[4:12], "big") <= not_after and Checkpoint(checkpoint.origin, checkpoint.size, checkpoint.root, (line,)).signed_by(
            key
        ):
            return line
    return None


def trusted(checkpoint: Checkpoint, keys: Sequence[VerifierKey]) -> bool:
    """Say whether one of the keys signed the checkpoint under its origin, and no line that names one of them is bad."""
    found = False
    for line in checkpoint.lines:
        name, raw = notes.split_line(line)
        for key in keys:
            if key.name == name == checkpoint.origin and raw[:4] == key.hash:
                if not key.holds(raw[4:], checkpoint.text.encode()):
                    return False
                found = True
    return found
