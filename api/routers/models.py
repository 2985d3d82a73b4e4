"""Models, their versions, files, training runs and aliases."""

from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Path, Query, Request, Response
from fastapi.responses import JSONResponse
from sqlalchemy.orm import Session

from api import answers, files
from api.dependencies import (
    AuditRead,
    CheckpointsRead,
    Configured,
    CursorText,
    IdempotencyKey,
    IfMatch,
    IfNoneMatch,
    Limit,
    ModelPath,
    ModelsDestroy,
    ModelsRead,
    ModelsWrite,
    NamePath,
    Number,
    Pages,
    Store,
)
from api.schemas.base import MomentIn, Page
from api.schemas.ids import reference, wire
from api.schemas.jobs import JobOut
from api.schemas.models import (
    AliasIn,
    AliasList,
    AliasOut,
    AncestorOut,
    CertificateOut,
    Lineage,
    ModelIn,
    ModelOut,
    TrainingRunIn,
    VersionCompleteIn,
    VersionIn,
    VersionOut,
)
from services.catalogue import service as catalogue
from services.model_versions import purge, service
from services.requests import forms as request_forms
from services.requests import jobs

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.post("", status_code=201, response_model=ModelOut)
async def create(request: Request, body: ModelIn, ledger: ModelsWrite, idempotency_key: IdempotencyKey = None) -> Response:
    """Register a model."""

    def work(session: Session) -> tuple[int, ModelOut, dict[str, str]]:
        architecture = catalogue.require(session, "architecture", body.architecture)
        form = replace(body.form(), architecture_params=catalogue.validate_parameters(architecture, body.architecture_params))
        made = ModelOut.of(service.create_model(session, form, caller=ledger.caller, clock=ledger.clock))
        return 201, made, {"Location": f"/v1/models/{made.id}"}

    return await answers.once(request, ledger, idempotency_key, work)


@router.get("", response_model=Page[ModelOut])
async def listing(request: Request, ledger: ModelsRead, pages: Pages, limit: Limit = 50, cursor: CursorText = None) -> Response:
    """List models, newest first."""
    place: dict[str, Any] = {"tenant": ledger.caller.tenant_id, "route": "models", "filters": {}}
    after = pages.key_of(cursor, **place)
    views, last = await ledger(lambda session: service.list_models(session, limit=limit, after=after))
    page = Page[ModelOut](items=[ModelOut.of(view) for view in views], next_cursor=pages.make(last=last, **place))
    return answers.paged(request, page)


@router.get("/{model}", response_model=ModelOut)
async def read(model: ModelPath, ledger: ModelsRead, if_none_match: IfNoneMatch = None) -> Response:
    """Read one model."""
    view = await ledger(lambda session: service.read_model(session, reference("mdl", model)))
    return answers.tagged(ModelOut.of(view), str(view.etag), if_none_match)


@router.post("/{model}/versions", status_code=201, response_model=VersionOut)
async def create_version(
    request: Request,
    model: ModelPath,
    body: VersionIn,
    ledger: ModelsWrite,
    store: Store,
    settings: Configured,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Open a version to be uploaded and issue an upload URL for each of its files."""
    expires_s = settings.limits.presign_s

    def work(session: Session) -> tuple[int, VersionOut, dict[str, str]]:
        view = service.create_version(session, reference("mdl", model), body.form(), caller=ledger.caller, clock=ledger.clock)
        made = VersionOut.of(view, answers.issued(store, view.uploads, clock=ledger.clock, expires_s=expires_s))
        return 201, made, {"Location": f"/v1/models/{made.model_id}/versions/{made.number}"}

    return await answers.once(request, ledger, idempotency_key, work)


@router.get("/{model}/versions", response_model=Page[VersionOut])
async def versions(request: Request, model: ModelPath, ledger: ModelsRead, pages: Pages, limit: Limit = 50, cursor: CursorText = None) -> Response:
    """List the versions of a model, newest first."""
    place: dict[str, Any] = {"tenant": ledger.caller.tenant_id, "route": "model-versions", "filters": {"model": model}}
    found = pages.read(cursor, **place)
    after = None if found is None else int(found[0])
    views, last = await ledger(lambda session: service.list_versions(session, reference("mdl", model), limit=limit, after=after))
    following = None if last is None else (last,)
    page = Page[VersionOut](items=[VersionOut.of(view) for view in views], next_cursor=pages.make(last=following, **place))
    return answers.paged(request, page)


@router.get("/{model}/versions/{number}", response_model=VersionOut)
async def read_version(model: ModelPath, number: Number, ledger: ModelsRead, if_none_match: IfNoneMatch = None) -> Response:
    """Read one version with its manifest."""
    body = VersionOut.of(await ledger(lambda session: service.read_version(session, reference("mdl", model), number)))
    return answers.tagged(body, answers.digest_tag(body), if_none_match)


@router.post("/{model}/versions/{number}/complete", status_code=202, response_model=VersionOut)
async def complete(model: ModelPath, number: Number, ledger: ModelsWrite, body: VersionCompleteIn | None = None) -> VersionOut:
    """Say that every file was uploaded; the version is checked, then ready."""

    def work(session: Session) -> Any:
        return service.complete_version(
            session, reference("mdl", model), number, body.manifest if body else None, caller=ledger.caller, clock=ledger.clock
        )

    return VersionOut.of(await ledger(work))


@router.delete("/{model}/versions/{number}", status_code=202, response_model=JobOut)
async def destroy(model: ModelPath, number: Number, ledger: ModelsDestroy) -> Response:
    """Have a version destroyed that nothing uses: it is quarantined at once, and a purge job deletes its files and certifies that."""

    def work(session: Session) -> JobOut:
        job = purge.request_destruction(session, reference("mdl", model), number, caller=ledger.caller, clock=ledger.clock)
        return JobOut.of(jobs.read(session, job))

    made = await ledger(work)
    return JSONResponse(made.model_dump(mode="json"), status_code=202, headers={"Location": f"/v1/jobs/{made.id}", "Retry-After": "5"})


@router.get("/{model}/versions/{number}/destruction-certificate", response_model=CertificateOut)
async def certificate(model: ModelPath, number: Number, ledger: AuditRead, if_none_match: IfNoneMatch = None) -> Response:
    """Read the certificate of a destroyed version, with what opens its commitment in the log."""
    body = CertificateOut.of(await ledger(lambda session: purge.certificate(session, reference("mdl", model), number)))
    return answers.tagged(body, answers.digest_tag(body), if_none_match)


@router.get("/{model}/versions/{number}/lineage", response_model=Lineage)
async def lineage(model: ModelPath, number: Number, ledger: ModelsRead) -> Lineage:
    """List what the version came from, and what came from it."""
    found = await ledger(lambda session: service.lineage(session, reference("mdl", model), number))
    return Lineage(items=[AncestorOut.model_validate(one) for one in found])


@router.head("/{model}/versions/{number}/files/{path:path}", response_model=None, name="describe file")
@router.get("/{model}/versions/{number}/files/{path:path}", response_model=None)
async def download(
    request: Request,
    model: ModelPath,
    number: Number,
    path: Annotated[str, Path(max_length=512)],
    ledger: CheckpointsRead,
    store: Store,
    settings: Configured,
    *,
    delivery: Annotated[
        Literal["redirect", "stream"], Query(description="Redirect to the object store, or stream through the gateway.")
    ] = "redirect",
    if_none_match: IfNoneMatch = None,
    if_range: Annotated[str | None, Header(max_length=200)] = None,
    byte_range: Annotated[str | None, Header(alias="range", max_length=2000)] = None,
) -> Response:
    """Download one file: a redirect to a presigned URL, or a stream with Range, ETag and digest."""
    file = await files.located(ledger, reference("mdl", model), number, path, delivery=delivery, head=request.method == "HEAD")
    wanted = files.Wanted(
        head=request.method == "HEAD", stream=delivery == "stream", byte_range=byte_range, if_range=if_range, if_none_match=if_none_match
    )
    return await files.answer(store, file, wanted, expires_s=settings.limits.presign_s)


@router.post("/{model}/training-runs", status_code=202, response_model=JobOut)
async def train(request: Request, model: ModelPath, body: TrainingRunIn, ledger: ModelsWrite, idempotency_key: IdempotencyKey = None) -> Response:
    """Train the next version from a recipe."""

    def work(session: Session) -> tuple[int, JobOut, dict[str, str]]:
        job = service.training_run(session, reference("mdl", model), body.form(), caller=ledger.caller, clock=ledger.clock)
        return 202, JobOut.of(jobs.read(session, job)), {"Location": f"/v1/jobs/{wire('job', job)}", "Retry-After": "5"}

    return await answers.once(request, ledger, idempotency_key, work)


@router.get("/{model}/training-runs", response_model=Page[JobOut])
async def training_runs(
    request: Request, model: ModelPath, ledger: ModelsRead, pages: Pages, limit: Limit = 50, cursor: CursorText = None
) -> Response:
    """List the training runs of a model, newest first."""
    place: dict[str, Any] = {"tenant": ledger.caller.tenant_id, "route": "training-runs", "filters": {"model": model}}
    after = pages.key_of(cursor, **place)
    filters = request_forms.JobFilters(model=reference("mdl", model), kind="train")

    def work(session: Session) -> Any:
        service.read_model(session, reference("mdl", model))
        return jobs.listing(session, filters, limit=limit, after=after)

    views, last = await ledger(work)
    page = Page[JobOut](items=[JobOut.of(view) for view in views], next_cursor=pages.make(last=last, **place))
    return answers.paged(request, page)


@router.get("/{model}/aliases", response_model=AliasList)
async def aliases(model: ModelPath, ledger: ModelsRead) -> AliasList:
    """List the aliases of a model."""
    found = await ledger(lambda session: service.list_aliases(session, reference("mdl", model)))
    return AliasList(items=[AliasOut.model_validate(one) for one in found])


@router.get("/{model}/aliases/{alias}", response_model=AliasOut)
async def alias(model: ModelPath, alias: NamePath, ledger: ModelsRead, if_none_match: IfNoneMatch = None) -> Response:
    """Read one alias."""
    view = await ledger(lambda session: service.read_alias(session, reference("mdl", model), alias))
    return answers.tagged(AliasOut.model_validate(view), str(view.etag), if_none_match)


@router.put("/{model}/aliases/{alias}", response_model=AliasOut)
async def set_alias(
    model: ModelPath, alias: NamePath, body: AliasIn, ledger: ModelsWrite, if_match: IfMatch = None, if_none_match: IfNoneMatch = None
) -> Response:
    """Move an alias (If-Match) or create it (If-None-Match: *)."""
    creating = if_none_match is not None and if_none_match.strip() == "*"
    etag = None if creating else answers.expected(if_match)

    def work(session: Session) -> Any:
        return service.set_alias(
            session,
            reference("mdl", model),
            alias,
            body.version,
            expected_etag=etag,
            create=creating,
            caller=ledger.caller,
            clock=ledger.clock,
        )

    view = await ledger(work)
    return answers.tagged(AliasOut.model_validate(view), str(view.etag), None)


@router.delete("/{model}/aliases/{alias}", status_code=204, response_model=None)
async def delete_alias(model: ModelPath, alias: NamePath, ledger: ModelsWrite, if_match: IfMatch = None) -> Response:
    """Remove an alias; its history stays."""
    etag = answers.expected(if_match)
    await ledger(lambda session: service.delete_alias(session, reference("mdl", model), alias, expected_etag=etag, caller=ledger.caller))
    return Response(status_code=204)


@router.get("/{model}/at", response_model=VersionOut)
async def at(model: ModelPath, ledger: ModelsRead, time: MomentIn, alias: Annotated[str, Query(max_length=64)]) -> VersionOut:
    """Read the version that an alias named at a moment."""
    return VersionOut.of(await ledger(lambda session: service.at(session, reference("mdl", model), time, alias)))
