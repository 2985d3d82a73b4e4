"""Signed notes: verifier keys, checkpoints and cosignatures as texts, with Ed25519.

Source: C2SP signed-note v1.0.0, tlog-checkpoint v1.0.0, tlog-cosignature (cosignature/v1).
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from services.errors import InvalidInput

NOTE_KEY, WITNESS_KEY = 1, 4
LONGEST_NOTE = 64 * 1024
_NAME = re.compile(r"[^\s+]{1,200}")
_COUNT = re.compile(r"0|[1-9][0-9]{0,18}", re.ASCII)


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """A public key with its name: what a reader of the log must be given by another way than the log. `kind` is the signature type's byte."""

    name: str
    public: bytes
    kind: int = NOTE_KEY

    @property
    def hash(self) -> bytes:
        """Four bytes that stand for the key in a signature line."""
        return hashlib.sha256(self.name.encode() + b"\n" + bytes([self.kind]) + self.public).digest()[:4]

    @property
    def text(self) -> str:
        """The key as one line: name+hash+base64."""
        return f"{self.name}+{self.hash.hex()}+{base64.b64encode(bytes([self.kind]) + self.public).decode()}"

    @property
    def key_id(self) -> str:
        """What names the key in an envelope and in a JSON Web Key set."""
        return f"{self.name}+{self.hash.hex()}"

    @classmethod
    def parse(cls, line: str) -> "VerifierKey":
        """Return the key that `text` wrote. Raises InvalidInput."""
        parts = line.strip().split("+", 2)
        try:
            raw = base64.b64decode(parts[2], validate=True)
            made = cls(parts[0], raw[1:], raw[0])
        except (IndexError, binascii.Error, ValueError) as error:
            raise InvalidInput(detail="a verifier key is one line, name+hash+base64") from error
        if made.kind not in {NOTE_KEY, WITNESS_KEY} or len(made.public) != 32 or parts[1] != made.hash.hex() or not _NAME.fullmatch(made.name):
            raise InvalidInput(detail="the verifier key is not one of Ed25519, or its hash is another key's")
        return made

    def holds(self, signature: bytes, message: bytes) -> bool:
        """Say whether the signature (64 bytes) is this key's over `message`."""
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(signature, message)
        except (InvalidSignature, ValueError):
            return False
        return True


@dataclass(frozen=True, slots=True)
class SigningKeyPair:
    """The signer's key: `seed` is the private key of 32 bytes."""

    name: str
    seed: bytes = field(repr=False)
    kind: int = NOTE_KEY

    @classmethod
    def from_hex(cls, name: str, seed: str) -> "SigningKeyPair":
        """Return the key of 64 hexadecimal digits. Raises InvalidInput for another form."""
        try:
            raw = bytes.fromhex(seed)
        except ValueError as error:
            raise InvalidInput(detail="a signing key is 64 hexadecimal digits (openssl rand -hex 32)") from error
        if len(raw) != 32 or not _NAME.fullmatch(name):
            raise InvalidInput(detail="a signing key is 64 hexadecimal digits, and the log's name has no blank and no plus sign")
        return cls(name, raw)

    @property
    def public(self) -> VerifierKey:
        """The public half."""
        raw = Ed25519PrivateKey.from_private_bytes(self.seed).public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        return VerifierKey(self.name, raw, self.kind)

    def sign(self, message: bytes) -> bytes:
        """Return the signature, 64 bytes. Ed25519 draws nothing: the same message has the same signature."""
        return Ed25519PrivateKey.from_private_bytes(self.seed).sign(message)

    def line(self, text: str) -> str:
        """Return the signature line of a note."""
        return signature_line(self.public, self.sign(text.encode()))

    def cosign(self, text: str, at: int) -> str:
        """Return a witness's line under a checkpoint's text; `at` is the time in seconds since 1970."""
        signed = self.sign(f"cosignature/v1\ntime {at}\n{text}".encode())
        return signature_line(VerifierKey(self.name, self.public.public, WITNESS_KEY), at.to_bytes(8, "big") + signed)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A tree head as text. `lines` are the signature lines, without the newline."""

    origin: str
    size: int
    root: bytes
    lines: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """What is signed."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"

    @property
    def note(self) -> str:
        """The text with its signatures."""
        return f"{self.text}\n" + "".join(f"{line}\n" for line in self.lines)

    def signed_by(self, key: VerifierKey) -> bool:
        """Say whether one of the lines is a good signature of `key`."""
        for line in self.lines:
            name, raw = split_line(line)
            if name != key.name or raw[:4] != key.hash:
                continue
            message = self.text.encode()
            if key.kind == WITNESS_KEY:
                message = f"cosignature/v1\ntime {int.from_bytes(raw[4:12], 'big')}\n".encode() + message
            return key.holds(raw[4:] if key.kind == NOTE_KEY else raw[12:], message)
        return False


def signature_line(key: VerifierKey, signature: bytes) -> str:
    """Return a line that carries a signature."""
    return f"— {key.name} {base64.b64encode(key.hash + signature).decode()}"


def split_line(line: str) -> tuple[str, bytes]:
    """Return name and bytes of a signature line. Raises InvalidInput."""
    parts = line.split(" ")
    if len(parts) != 3 or parts[0] != "—" or not _NAME.fullmatch(parts[1]):
        raise InvalidInput(detail="a signature line is a dash, a name and base64")
    try:
        return parts[1], base64.b64decode(parts[2], validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidInput(detail="a signature line ends in base64") from error


def parse_checkpoint(note: str) -> Checkpoint:
    """Return the checkpoint that a signed note holds; no signature is checked. Raises InvalidInput."""
    text, gap, rest = note.partition("\n\n")
    body = text.split("\n")
    lines: Sequence[str] = rest.split("\n")
    if len(note) > LONGEST_NOTE or not gap or len(body) != 3 or lines[-1] != "" or len(lines) < 2 or not _COUNT.fullmatch(body[1]) or not body[0]:
        raise InvalidInput(detail="a checkpoint has three lines, an empty one, and signatures")
    for line in lines[:-1]:
        split_line(line)
    try:
        root = base64.b64decode(body[2], validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidInput(detail="the root is not base64") from error
    if len(root) != 32:
        raise InvalidInput(detail="the root has 32 bytes")
    return Checkpoint(body[0], int(body[1]), root, tuple(lines[:-1]))
