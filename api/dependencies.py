"""Annotated aliases for what routes ask for."""

from typing import Annotated

from fastapi import Depends, Header, Query, Request

from api.pages import Cursors
from api.security import Ledger, Needs
from models_store.objects import ObjectStore
from services.settings import Settings

RequestsRead = Annotated[Ledger, Depends(Needs("requests:read"))]
RequestsWrite = Annotated[Ledger, Depends(Needs("requests:write"))]
RequestsDecide = Annotated[Ledger, Depends(Needs("requests:decide"))]
JobsRead = Annotated[Ledger, Depends(Needs("jobs:read"))]
JobsOperate = Annotated[Ledger, Depends(Needs("jobs:operate"))]
ModelsRead = Annotated[Ledger, Depends(Needs("models:read"))]
ModelsWrite = Annotated[Ledger, Depends(Needs("models:write"))]
CheckpointsRead = Annotated[Ledger, Depends(Needs("checkpoints:read"))]
DatasetsRead = Annotated[Ledger, Depends(Needs("datasets:read"))]
DatasetsWrite = Annotated[Ledger, Depends(Needs("datasets:write"))]
AuditRead = Annotated[Ledger, Depends(Needs("audit:read"))]
Anyone = Annotated[Ledger, Depends(Needs(None))]


def _store(request: Request) -> ObjectStore:
    return request.app.state.store


def _settings(request: Request) -> Settings:
    return request.app.state.settings


def _cursors(request: Request) -> Cursors:
    return request.app.state.cursors


Store = Annotated[ObjectStore, Depends(_store)]
Configured = Annotated[Settings, Depends(_settings)]
Pages = Annotated[Cursors, Depends(_cursors)]
Limit = Annotated[int, Query(ge=1, le=200)]
CursorText = Annotated[str | None, Query(max_length=2048)]
IfMatch = Annotated[str | None, Header(max_length=200)]
IfNoneMatch = Annotated[str | None, Header(max_length=2000)]
IdempotencyKey = Annotated[str | None, Header(max_length=200)]
