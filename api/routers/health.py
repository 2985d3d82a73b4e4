"""Liveness, readiness and metrics; no authentication, nothing about anybody."""

from anyio import to_thread
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from api.schemas.catalogue import HealthOut, ReadyOut
from models_store.objects import ObjectStore
from services.db.health import findings
from services.db.session import async_unit_of_work
from services.errors import Unavailable

router = APIRouter(tags=["health"])


@router.get("/healthz", response_model=HealthOut)
async def alive() -> HealthOut:
    """Say that the process lives."""
    return HealthOut()


@router.get("/readyz", response_model=ReadyOut, responses={503: {"model": ReadyOut}})
async def ready(request: Request) -> Response:
    """Check database, migration, signer and object store. A missing worker is reported as degraded: requests are accepted all the same."""
    checks: dict[str, str] = {}
    degraded: list[str] = []
    try:
        async with async_unit_of_work(request.app.state.door.engine, tenant=None) as session:
            found = await session.run_sync(findings)
        checks |= {"database": "ok" if found.durable else "fsync, synchronous_commit or full_page_writes is off"}
        checks |= {"migration": "ok" if found.migrated else "the schema is not at the newest revision"}
        checks["signer"] = found.signer
        if not found.workers:
            degraded.append("no live worker")
    except Unavailable:
        checks["database"] = "does not answer"
    checks["store"] = await to_thread.run_sync(_store, request.app.state.store)
    well = all(state == "ok" for state in checks.values())
    body = ReadyOut(status="ok" if well and not degraded else "degraded" if well else "unavailable", checks=checks, degraded=degraded)
    return JSONResponse(body.model_dump(), status_code=200 if well else 503)


@router.get("/metrics", response_model=None)
async def metrics() -> Response:
    """Return the process's metrics in Prometheus' text form. Keep this port internal."""
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


def _store(store: ObjectStore) -> str:
    try:
        store.head("readiness/probe")
    except Exception as error:  # noqa: BLE001  whatever it is, the store is not ready; its class says enough
        return type(error).__name__
    return "ok"
