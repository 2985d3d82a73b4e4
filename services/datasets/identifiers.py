"""Identifiers of persons: one normal form, then a keyed digest. The rule has a version, kept as `key_id` beside every digest."""

import hashlib
import hmac
import unicodedata
from dataclasses import dataclass, field
from uuid import UUID

import idna
import phonenumbers

from services.errors import InvalidInput

RULE = 1
ENTITY = "entity"
"""The type of identifier that a record has for each thing it speaks of; `names` of a request for an entity are looked up under it."""


@dataclass(frozen=True, slots=True)
class Identifier:
    """One identifier of a person, as the controller knows it. The value never shows in a repr."""

    type: str
    value: str = field(repr=False)


def normalise(identifier: Identifier) -> str:
    """Return the normal form: NFKC and trimmed; an e-mail's domain in IDNA (its local part as written); a phone number in E.164; a name by `as_named`.

    Raises:
        InvalidInput: the value is empty, or no e-mail address or phone number where one is said to be.
    """
    value = unicodedata.normalize("NFKC", identifier.value).strip()
    if not value or "\x00" in value:
        raise InvalidInput(detail="an identifier is empty or holds a zero byte.")
    if identifier.type == "email":
        return _email(value)
    if identifier.type == "phone":
        return _phone(value)
    return as_named(value) if identifier.type == ENTITY else value


def as_named(value: str) -> str:
    """Return a name as it is compared: whatever the case, a hyphen being a space, and several spaces one."""
    found = " ".join(value.casefold().replace("-", " ").split())
    if not found:
        raise InvalidInput(detail="a name of an entity is empty.")
    return found


def _email(value: str) -> str:
    local, at, domain = value.rpartition("@")
    try:
        if not (at and local):
            raise InvalidInput(detail="an identifier of type email is no e-mail address.")
        return f"{local}@{idna.encode(domain.casefold().rstrip('.'), uts46=True).decode('ascii')}"
    except idna.IDNAError as error:
        raise InvalidInput(detail="an identifier of type email has no valid domain.") from error


def _phone(value: str) -> str:
    try:
        number = phonenumbers.parse(value, None)
    except phonenumbers.NumberParseException as error:
        raise InvalidInput(detail="an identifier of type phone is no number in international form (+ and country code).") from error
    if not phonenumbers.is_possible_number(number):
        raise InvalidInput(detail="an identifier of type phone is no possible number.")
    return phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)


def subject_digest(key: bytes, identifier: Identifier) -> bytes:
    """Return HMAC-SHA256(key, type || 0 || normal form), 32 bytes."""
    return hmac.digest(key, identifier.type.encode() + b"\x00" + normalise(identifier).encode(), hashlib.sha256)


def record_digest(key: bytes, dataset_id: UUID, record_id: str) -> bytes:
    """Return HMAC-SHA256(key, dataset id (16 bytes) || 0 || record id), 32 bytes."""
    return hmac.digest(key, dataset_id.bytes + b"\x00" + record_id.encode(), hashlib.sha256)
