"""The manifest of a model version: what its files are and where they come from. Its canonical JSON (RFC 8785) has a digest of its own.

It holds no time and no address, so equal content has an equal digest. Digests are written `sha256:<hex>`.
"""

import hashlib
import re
from math import isfinite
from typing import Annotated, Any, Literal, cast

import rfc8785
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator

from models_store.errors import Refused
from models_store.objects import checked_key
from models_store.strict_json import NotStrictJson, parse_object

MANIFEST_BYTES = 1024 * 1024
FILE_BYTES = 20 * 1024**3
SAFE_INTEGER = 2**53 - 1  # RFC 8785 writes numbers as ECMAScript does; beyond this they lose digits

Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
FilePath = Annotated[str, Field(max_length=200), AfterValidator(checked_key)]
WholeNumber = Annotated[int, Field(ge=0, le=SAFE_INTEGER)]


def writable(value: Any) -> Any:
    """Return `value` if RFC 8785 writes it in a form that reads back as the same value.

    Raises:
        ValueError: it holds a number that is not finite or not exact, or something that is not JSON.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int | float):
        # ECMAScript writes whole floats under 1e21 without a point: past 2**53 they would read back as integers that lose digits
        if not isfinite(value) or (abs(value) > SAFE_INTEGER and (isinstance(value, int) or abs(value) < 1e21)):
            raise ValueError("a number is not finite or has more than 53 bits")
        return value
    if isinstance(value, list | tuple):
        return [writable(item) for item in cast("list[Any]", value)]
    if isinstance(value, dict) and all(isinstance(key, str) for key in cast("dict[Any, Any]", value)):
        return {key: writable(item) for key, item in cast("dict[str, Any]", value).items()}
    raise ValueError("a value is not JSON")


Parameters = Annotated[dict[str, Any], AfterValidator(writable)]


class _Part(BaseModel):
    """A closed, frozen piece of a manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ManifestFile(_Part):
    """One file: a plain relative path, the digest of its bytes, and their number."""

    path: FilePath
    digest: Digest
    size_bytes: Annotated[int, Field(ge=0, le=FILE_BYTES)]
    media_type: str = "application/octet-stream"


class Component(_Part):
    """A registered thing by name, with the parameters it was given."""

    name: Annotated[str, Field(min_length=1, max_length=128)]
    parameters: Parameters = Field(default_factory=dict)


class ParentVersion(_Part):
    """The version that this one was computed from. `fresh_start` on the child says that weights were drawn anew all the same."""

    model: str
    version: WholeNumber
    manifest_digest: Digest | None = None


class DatasetVersion(_Part):
    """The records that the version learned from."""

    dataset: str
    version: WholeNumber
    manifest_digest: Digest | None = None


class Manifest(_Part):
    """What a model version is made of. A version that was uploaded has neither method nor seeds.

    `ledger` is what the method leaves for the next removal from this version: the budget of a certificate, and what of it is spent. A manifest
    without one is written as it was before the field was known, so that its digest stays.
    """

    format: Literal["lethe-manifest/1"] = "lethe-manifest/1"
    files: Annotated[tuple[ManifestFile, ...], Field(min_length=1, max_length=100, strict=False)]
    architecture: Component
    task: str | None = None
    parent: ParentVersion | None = None
    fresh_start: bool = False
    dataset_version: DatasetVersion | None = None
    method: Component | None = None
    parameters: Parameters = Field(default_factory=dict)
    seeds: dict[str, WholeNumber] = Field(default_factory=dict)
    ledger: Parameters = Field(default_factory=dict)
    code_digest: Digest | None = None
    image_digest: Digest | None = None
    versions: dict[str, str] = Field(default_factory=dict)

    @field_validator("files")
    @classmethod
    def refuse_double_paths(cls, files: tuple[ManifestFile, ...]) -> tuple[ManifestFile, ...]:
        """Refuse two files of one path, also where only the case differs."""
        if len({file.path.casefold() for file in files}) != len(files):
            raise ValueError("two files have the same path")
        return files


def canonical(manifest: Manifest) -> bytes:
    """Return the manifest as canonical JSON.

    Raises:
        Refused: gate `manifest-malformed`; a text in it is not Unicode.
    """
    try:
        return rfc8785.dumps(manifest.model_dump(mode="json", exclude=None if manifest.ledger else {"ledger"}))
    except (rfc8785.CanonicalizationError, UnicodeError) as error:
        raise Refused("manifest-malformed", f"it has no canonical form ({error})") from error


def digest(manifest: Manifest) -> str:
    """Return the SHA-256 of the canonical JSON, 64 hexadecimal digits."""
    return hashlib.sha256(canonical(manifest)).hexdigest()


def parse(raw: bytes) -> Manifest:
    """Return the manifest that `raw` holds.

    Raises:
        Refused: gate `manifest-malformed`; over 1 MiB, not strict JSON, or not a manifest.
    """
    if len(raw) > MANIFEST_BYTES:
        raise Refused("manifest-malformed", f"it has {len(raw)} bytes, the limit is {MANIFEST_BYTES}")
    try:
        return Manifest.model_validate(parse_object(raw, fractions=True))
    except NotStrictJson as error:
        raise Refused("manifest-malformed", str(error)) from error
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = "/".join(re.sub(r"[^A-Za-z0-9_.\-]", "_", str(step))[:64] for step in first["loc"])
        raise Refused("manifest-malformed", f"{where}: {first['msg']}") from error


def tagged(hex_digest: str) -> str:
    """Return a hexadecimal digest in the form that manifests and the API use: `sha256:<hex>`."""
    return f"sha256:{hex_digest}"


def untagged(tagged_digest: str) -> str:
    """Return the 64 hexadecimal digits of `sha256:<hex>`."""
    return tagged_digest.removeprefix("sha256:")
