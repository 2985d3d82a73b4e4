"""The key of a tenant: wrapped at rest, and the keys derived from it."""

import os
from dataclasses import dataclass, field
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from sqlalchemy.orm import Session

from services.errors import IntegrityBroken, NotFound
from services.tenants import repository

_NONCE_BYTES = 12


@dataclass(frozen=True, slots=True)
class KeyRing:
    """The deployment's keys, each 64 hexadecimal digits: `kek` wraps the keys of tenants, `pepper` keys the digests of API keys."""

    kek: str = field(repr=False)
    pepper: str = field(repr=False)


def new_tenant_key() -> bytes:
    """Return a new random K_tenant of 32 bytes."""
    return os.urandom(32)


def wrap(key: bytes, tenant_id: UUID, kek_hex: str) -> bytes:
    """Return `key` under the key-encryption key: nonce (12 bytes) and AES-256-GCM text, bound to the tenant."""
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + AESGCM(bytes.fromhex(kek_hex)).encrypt(nonce, key, tenant_id.bytes)


def unwrap(wrapped: bytes, tenant_id: UUID, kek_hex: str) -> bytes:
    """Return what `wrap` was given. Raises IntegrityBroken for another key-encryption key, another tenant, or changed bytes."""
    try:
        return AESGCM(bytes.fromhex(kek_hex)).decrypt(wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:], tenant_id.bytes)
    except InvalidTag as error:
        raise IntegrityBroken(detail="the tenant's key does not open under LETHE_KEYS__ENCRYPTION") from error


def seal(key: bytes, plain: bytes, *, bound: bytes) -> bytes:
    """Return `plain` under a key of 32 bytes: nonce (12 bytes) and AES-256-GCM text, which opens with the same `bound` alone."""
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, plain, bound)


def unseal(key: bytes, sealed: bytes, *, bound: bytes) -> bytes:
    """Return what `seal` was given. Raises IntegrityBroken for another key, another `bound`, or changed bytes."""
    try:
        return AESGCM(key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], bound)
    except InvalidTag as error:
        raise IntegrityBroken(detail="what was sealed does not open under the tenant's key") from error


def tenant_key(session: Session, tenant_id: UUID, kek_hex: str) -> bytes:
    """Return K_tenant, 32 bytes. Raises NotFound for an unknown tenant, IntegrityBroken under another key-encryption key."""
    wrapped = repository.wrapped_key(session, tenant_id)
    if wrapped is None:
        raise NotFound
    return unwrap(wrapped, tenant_id, kek_hex)


def derive(key: bytes, purpose: str) -> bytes:
    """Return a key of 32 bytes for one purpose, such as `dataset:<id>`; other purposes give unrelated keys. Source: RFC 5869 with SHA-256."""
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=purpose.encode()).derive(key)
