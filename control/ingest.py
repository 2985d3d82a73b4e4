"""Checking what was uploaded: bytes against their digest, then the header gate or the parquet check in a limited process, then the ledger."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy import Engine

from control.inspect import inspect_apart
from models_store import checkpoints, sandbox
from models_store.errors import DigestWrong, ObjectMissing, Refused
from models_store.header import TensorSpec
from models_store.manifest import Component, DatasetVersion, Manifest, ManifestFile, ParentVersion, digest, tagged
from models_store.objects import ObjectStore, blob_key, upload_key
from services.clock import Clock
from services.datasets import service as datasets
from services.db import objects
from services.db.session import unit_of_work
from services.errors import LetheError
from services.jobs.workshop import canonical_digest, store_errors
from services.model_versions import service as versions
from services.model_versions.forms import VersionView

log = structlog.get_logger()

WEIGHTS = ".safetensors"


class Ingest:
    """The upload checks. Each ends with the version `ready` or `failed`; StoreDown and DatabaseDown leave it under check, to be tried again."""

    def __init__(self, engine: Engine, store: ObjectStore, clock: Clock, scratch: Path) -> None:
        self.engine, self.store, self.clock = engine, store, clock
        self.scratch = scratch

    def dataset(self, tenant_id: UUID, version_id: UUID) -> None:
        """Check an uploaded dataset version and record its records."""
        with unit_of_work(self.engine, tenant=tenant_id) as session:
            version = datasets.read_version_by_id(session, version_id)
            expected = datasets.upload_checks(session, version.dataset_id)
        if version.status != "checking":
            return

        def check(folder: Path) -> None:
            rows: list[tuple[str, str | None]] = []
            for index, file in enumerate(version.files):
                path = self._bring(upload_key(version_id, file.path), file.sha256, folder / f"{index}.parquet", file.size_bytes)
                found = inspect_apart(path, expected)
                rows += zip(found["record_ids"], found["labels"], strict=True)
                with unit_of_work(self.engine, tenant=tenant_id) as session:
                    objects.announce(session, {file.sha256: path.stat().st_size})
                self._keep(path)
            document = {"dataset": version.dataset, "parent": None, "files": [[file.path, file.sha256] for file in version.files]}
            with unit_of_work(self.engine, tenant=tenant_id) as session:
                datasets.ingested(session, version_id, rows, manifest_digest=canonical_digest(document), files=version.files, clock=self.clock)

        self._settle(tenant_id, version_id, check, datasets.ingest_failed)
        self._clear(version_id)

    def model_version(self, tenant_id: UUID, version_id: UUID) -> None:
        """Check an uploaded checkpoint and make it a version; its tensors must be those of the model's current version, where there is one."""
        with unit_of_work(self.engine, tenant=tenant_id) as session:
            version = versions.read_version_by_id(session, version_id)
            model = versions.read_model(session, version.model_id)
            current = versions.read_version_by_id(session, model.current_version_id) if model.current_version_id else None
            parent = versions.read_version_by_id(session, version.parent_id) if version.parent_id else None
        if version.status != "checking":
            return

        def check(folder: Path) -> None:
            expected = self._tensors_of(current, folder)
            for index, file in enumerate(version.files):
                path = self._bring(upload_key(version_id, file.path), file.sha256, folder / str(index), file.size_bytes)
                if file.path.endswith(WEIGHTS):
                    sandbox.check_header_apart(path, expected, values=True)
                with unit_of_work(self.engine, tenant=tenant_id) as session:
                    objects.announce(session, {file.sha256: file.size_bytes})
                self._keep(path)
            manifest = _manifest(version, parent, architecture=Component(name=model.architecture, parameters=dict(model.architecture_params)))
            with unit_of_work(self.engine, tenant=tenant_id) as session:
                body = manifest.model_dump(mode="json")
                versions.ingested(session, version_id, manifest=body, manifest_digest=digest(manifest), clock=self.clock)

        self._settle(tenant_id, version_id, check, versions.ingest_failed)
        self._clear(version_id)

    def _bring(self, key: str, expected: str, path: Path, size_bytes: int) -> Path:
        checkpoints.open_object(self.store, key, expected, path, size_bytes=size_bytes).close()
        return path

    def _keep(self, path: Path) -> None:
        checkpoints.put_blob(self.store, path)

    def _tensors_of(self, current: VersionView | None, folder: Path) -> list[TensorSpec] | None:
        """Return names, types and shapes of the current version's tensors; None where the model has no version yet."""
        weights = [file for file in current.files if file.path.endswith(WEIGHTS)] if current is not None else []
        if len(weights) != 1:
            return None
        path = folder / "current"
        self._bring(blob_key(weights[0].sha256), weights[0].sha256, path, weights[0].size_bytes)
        return sandbox.check_header_apart(path, None)

    def _settle(self, tenant_id: UUID, version_id: UUID, check: Callable[[Path], None], failed: Callable[[Any, UUID, dict[str, Any]], None]) -> None:
        """Run the check in a scratch folder; a refusal is recorded as the version's error."""
        self.scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            try:
                with store_errors("upload"):
                    _refusing(check, Path(folder))
            except _Bad as bad:
                with unit_of_work(self.engine, tenant=tenant_id) as session:
                    failed(session, version_id, dict(bad.problem))
                log.warning("upload.refused", version_id=str(version_id), code=bad.problem["code"])

    def _clear(self, version_id: UUID) -> None:
        """Remove the uploaded objects of a version that is settled; what cannot be removed now is the collector's."""
        with store_errors("upload"):
            for key in {found.key for found in self.store.list_versions(f"uploads/{version_id}/")}:
                self.store.delete(key)


class _Bad(Exception):
    """An upload is refused, with the problem that its version shows."""

    def __init__(self, problem: Mapping[str, Any]) -> None:
        self.problem = problem
        super().__init__(problem.get("code"))


def _refusing(check: Callable[[Path], None], folder: Path) -> None:
    """Run `check`; errors that trying again cannot mend become _Bad."""
    try:
        check(folder)
    except Refused as error:
        raise _Bad({"code": "unsafe-checkpoint", "gate": error.gate, "detail": str(error)}) from error
    except DigestWrong as error:
        raise _Bad({"code": "digest-mismatch", "detail": "The uploaded bytes do not have the digest that was declared."}) from error
    except ObjectMissing as error:
        raise _Bad({"code": "validation-error", "detail": "A declared file was not uploaded."}) from error
    except LetheError as error:
        if error.retry_class == "transient":
            raise
        raise _Bad({"code": error.code, "detail": str(error)}) from error


def _manifest(version: VersionView, parent: VersionView | None, *, architecture: Component) -> Manifest:
    learned = version.trained_on[0] if version.trained_on else None
    return Manifest(
        files=tuple(
            ManifestFile(path=file.path, digest=tagged(file.sha256), size_bytes=file.size_bytes, media_type=file.media_type) for file in version.files
        ),
        architecture=architecture,
        parent=ParentVersion(
            model=parent.model, version=parent.number, manifest_digest=tagged(parent.manifest_digest) if parent.manifest_digest else None
        )
        if parent is not None
        else None,
        fresh_start=version.fresh_start,
        dataset_version=DatasetVersion(dataset=learned.dataset, version=learned.version) if learned is not None else None,
        parameters=dict(version.recipe or {}),
        seeds={name: int(seed) for name, seed in (version.seeds or {}).items()},
    )
