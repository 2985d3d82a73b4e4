"""Datasets: register, upload, complete, index subjects."""

from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request, Response
from sqlalchemy.orm import Session

from api import answers
from api.dependencies import (
    AuditRead,
    Configured,
    CursorText,
    DatasetPath,
    DatasetsRead,
    DatasetsWrite,
    IdempotencyKey,
    IfNoneMatch,
    Limit,
    Number,
    Pages,
    Store,
)
from api.schemas.base import Page
from api.schemas.datasets import (
    CompleteIn,
    DatasetIn,
    DatasetOut,
    DatasetVersionIn,
    DatasetVersionOut,
    SubjectsIn,
    SubjectsOut,
    TrainedModelList,
    TrainedModelOut,
)
from api.schemas.ids import reference
from api.schemas.models import CertificateOut
from services.catalogue import service as catalogue
from services.datasets import purge, service

router = APIRouter(prefix="/v1/datasets", tags=["datasets"])


@router.post("", status_code=201, response_model=DatasetOut)
async def create(request: Request, body: DatasetIn, ledger: DatasetsWrite, idempotency_key: IdempotencyKey = None) -> Response:
    """Register a dataset."""

    def work(session: Session) -> tuple[int, DatasetOut, dict[str, str]]:
        adapter = catalogue.require(session, "dataset_adapter", body.adapter)
        form = replace(body.form(), adapter_params=catalogue.validate_parameters(adapter, body.adapter_params))
        made = DatasetOut.of(service.create_dataset(session, form, caller=ledger.caller, clock=ledger.clock))
        return 201, made, {"Location": f"/v1/datasets/{made.id}"}

    return await answers.once(request, ledger, idempotency_key, work)


@router.get("", response_model=Page[DatasetOut])
async def listing(request: Request, ledger: DatasetsRead, pages: Pages, limit: Limit = 50, cursor: CursorText = None) -> Response:
    """List datasets, newest first."""
    place: dict[str, Any] = {"tenant": ledger.caller.tenant_id, "route": "datasets", "filters": {}}
    after = pages.key_of(cursor, **place)
    views, last = await ledger(lambda session: service.list_datasets(session, limit=limit, after=after))
    page = Page[DatasetOut](items=[DatasetOut.of(view) for view in views], next_cursor=pages.make(last=last, **place))
    return answers.paged(request, page)


@router.get("/{dataset}", response_model=DatasetOut)
async def read(dataset: DatasetPath, ledger: DatasetsRead, if_none_match: IfNoneMatch = None) -> Response:
    """Read one dataset."""
    body = DatasetOut.of(await ledger(lambda session: service.read_dataset(session, reference("ds", dataset))))
    return answers.tagged(body, answers.digest_tag(body), if_none_match)


@router.post("/{dataset}/versions", status_code=201, response_model=DatasetVersionOut)
async def create_version(
    request: Request,
    dataset: DatasetPath,
    body: DatasetVersionIn,
    ledger: DatasetsWrite,
    store: Store,
    settings: Configured,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Open a version and issue an upload URL for each of its files."""
    expires_s = settings.limits.presign_s

    def work(session: Session) -> tuple[int, DatasetVersionOut, dict[str, str]]:
        form = body.form()
        view = service.create_version(session, reference("ds", dataset), form, caller=ledger.caller, clock=ledger.clock, parent=body.parent)
        made = DatasetVersionOut.of(view, answers.issued(store, view.uploads, clock=ledger.clock, expires_s=expires_s))
        return 201, made, {"Location": f"/v1/datasets/{made.dataset_id}/versions/{made.version}"}

    return await answers.once(request, ledger, idempotency_key, work)


@router.get("/{dataset}/versions", response_model=Page[DatasetVersionOut])
async def versions(
    request: Request, dataset: DatasetPath, ledger: DatasetsRead, pages: Pages, limit: Limit = 50, cursor: CursorText = None
) -> Response:
    """List the versions of a dataset, newest first."""
    place: dict[str, Any] = {"tenant": ledger.caller.tenant_id, "route": "dataset-versions", "filters": {"dataset": dataset}}
    found = pages.read(cursor, **place)
    after = None if found is None else int(found[0])
    views, last = await ledger(lambda session: service.list_versions(session, reference("ds", dataset), limit=limit, after=after))
    following = None if last is None else (last,)
    page = Page[DatasetVersionOut](items=[DatasetVersionOut.of(view) for view in views], next_cursor=pages.make(last=following, **place))
    return answers.paged(request, page)


@router.get("/{dataset}/versions/{number}", response_model=DatasetVersionOut)
async def read_version(dataset: DatasetPath, number: Number, ledger: DatasetsRead, if_none_match: IfNoneMatch = None) -> Response:
    """Read one version."""
    body = DatasetVersionOut.of(await ledger(lambda session: service.read_version(session, reference("ds", dataset), number)))
    return answers.tagged(body, answers.digest_tag(body), if_none_match)


@router.get("/{dataset}/versions/{number}/destruction-certificate", response_model=CertificateOut)
async def certificate(dataset: DatasetPath, number: Number, ledger: AuditRead, if_none_match: IfNoneMatch = None) -> Response:
    """Read the certificate of a dataset version that was destroyed, with what opens its commitment in the log."""
    body = CertificateOut.of(await ledger(lambda session: purge.certificate(session, reference("ds", dataset), number)))
    return answers.tagged(body, answers.digest_tag(body), if_none_match)


@router.get("/{dataset}/versions/{number}/models", response_model=TrainedModelList)
async def models(dataset: DatasetPath, number: Number, ledger: DatasetsRead) -> TrainedModelList:
    """List the model versions that learned from a dataset version."""
    found = await ledger(lambda session: service.models_of_version(session, reference("ds", dataset), number))
    return TrainedModelList(items=[TrainedModelOut.model_validate(one) for one in found])


@router.post("/{dataset}/versions/{number}/complete", status_code=202, response_model=DatasetVersionOut)
async def complete(dataset: DatasetPath, number: Number, ledger: DatasetsWrite, body: CompleteIn | None = None) -> DatasetVersionOut:
    """Say that every file was uploaded; the version is checked, then ready."""
    del body  # it has no member

    def work(session: Session) -> Any:
        return service.complete_version(session, reference("ds", dataset), number, caller=ledger.caller, clock=ledger.clock)

    return DatasetVersionOut.of(await ledger(work))


@router.post("/{dataset}/versions/{number}/subjects", response_model=SubjectsOut)
async def subjects(dataset: DatasetPath, number: Number, body: SubjectsIn, ledger: DatasetsWrite) -> SubjectsOut:
    """Say which persons stand behind which records. Identifiers are hashed before anything is stored."""

    def work(session: Session) -> Any:
        return service.index_subjects(session, reference("ds", dataset), number, body.form(), caller=ledger.caller, keys=ledger.keys)

    return SubjectsOut.model_validate(await ledger(work))
