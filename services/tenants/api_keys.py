"""API keys as text: `lk_live_<8>_<32>_<6>`: an id in the clear, 190 random bits, and a checksum that lets scanners know a leaked key."""

import hashlib
import hmac
import re
import secrets
import string
import zlib
from dataclasses import dataclass, field

ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
_FORM = re.compile(r"lk_live_([0-9A-Za-z]{8})_([0-9A-Za-z]{32})_([0-9A-Za-z]{6})")


@dataclass(frozen=True, slots=True)
class ApiKeyText:
    """A well-formed key. `prefix` finds its row."""

    prefix: str
    text: str = field(repr=False)


def _checksum(body: str) -> str:
    """Return CRC-32 of `body` as six digits of base 62."""
    rest = zlib.crc32(body.encode())
    digits = ""
    for _ in range(6):
        rest, digit = divmod(rest, 62)
        digits = ALPHABET[digit] + digits
    return digits


def new_key() -> ApiKeyText:
    """Return a new random key."""
    prefix = "".join(secrets.choice(ALPHABET) for _ in range(8))
    body = f"lk_live_{prefix}_" + "".join(secrets.choice(ALPHABET) for _ in range(32))
    return ApiKeyText(prefix, f"{body}_{_checksum(body)}")


def parse(text: str) -> ApiKeyText | None:
    """Return the key if `text` has its form and checksum."""
    found = _FORM.fullmatch(text)
    if found is None or not hmac.compare_digest(_checksum(text[:-7]), found[3]):
        return None
    return ApiKeyText(found[1], text)


def digest(key: ApiKeyText, pepper_hex: str) -> bytes:
    """Return HMAC-SHA256 of the key under the pepper: what is stored. The key holds 190 random bits, so a slow hash adds nothing."""
    return hmac.new(bytes.fromhex(pepper_hex), key.text.encode(), hashlib.sha256).digest()
