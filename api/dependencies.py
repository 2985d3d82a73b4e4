"""Annotated aliases for what routes ask for."""

from typing import Annotated

from fastapi import Depends, Header, Path, Query, Request

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
ModelsDestroy = Annotated[Ledger, Depends(Needs("models:destroy"))]
CheckpointsRead = Annotated[Ledger, Depends(Needs("checkpoints:read"))]
DatasetsRead = Annotated[Ledger, Depends(Needs("datasets:read"))]
DatasetsWrite = Annotated[Ledger, Depends(Needs("datasets:write"))]
HoldsRead = Annotated[Ledger, Depends(Needs("holds:read"))]
HoldsWrite = Annotated[Ledger, Depends(Needs("holds:write"))]
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

# a path that cannot name anything is 404, before the ledger is asked
NAMED = r"^[A-Za-z0-9][A-Za-z0-9_.\-]{0,99}$"
RequestPath = Annotated[str, Path(pattern=r"^dr_[0-9a-f]{32}$")]
PausePath = Annotated[str, Path(pattern=r"^pause_[0-9a-f]{32}$")]
TargetPath = Annotated[str, Path(pattern=r"^tgt_[0-9a-f]{32}$")]
JobPath = Annotated[str, Path(pattern=r"^job_[0-9a-f]{32}$")]
ModelPath = Annotated[str, Path(pattern=NAMED, description="Name or id.")]
DatasetPath = Annotated[str, Path(pattern=NAMED, description="Name or id.")]
NamePath = Annotated[str, Path(pattern=NAMED)]
Number = Annotated[int, Path(ge=1, lt=2**31)]
