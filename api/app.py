"""The gateway, wired in one place: `create_app(settings)`. `python -m api.app FILE` writes its OpenAPI document."""

import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI
from pydantic import SecretStr
from starlette.types import Scope

from api import openapi, problems
from api.events import Streams
from api.limits import BodyLimits, RequestContext
from api.pages import Cursors
from api.routers import audit, catalogue, clocks, compliance, datasets, health, holds, jobs, log, models, requests
from api.security import Door
from models_store.memory import MemoryStore
from models_store.objects import ObjectStore
from models_store.s3 import S3Store
from services.db.session import make_async_engine
from services.settings import DatabaseSettings, Settings
from services.telemetry import HTTP_REQUESTS, HTTP_SECONDS, configure_logging
from services.tenants.keys import KeyRing

VERSION = "0.1.0"
ROUTERS = (requests, clocks, compliance, holds, audit, log, jobs, models, datasets, catalogue, health)


def store_of(settings: Settings) -> ObjectStore:
    """Return the object store of the settings."""
    part = settings.store
    return S3Store.from_parts(
        endpoint=part.endpoint,
        public_endpoint=part.public_endpoint or part.endpoint,
        region=part.region,
        bucket=part.bucket,
        access_key=part.access_key.get_secret_value(),
        secret_key=part.secret_key.get_secret_value(),
        secure=part.secure,
    )


def observe(scope: Scope, status: int, seconds: float) -> None:
    """Count an answer under its route's template, never under its path: paths hold ids."""
    route = getattr(scope.get("route"), "path", "unmatched")
    HTTP_REQUESTS.labels(route=route, method=scope["method"], status=str(status)).inc()
    HTTP_SECONDS.labels(route=route, method=scope["method"]).observe(seconds)


def create_app(settings: Settings, *, store: ObjectStore | None = None) -> FastAPI:
    """Return the gateway of a deployment. `store` replaces the configured object store, for tests."""
    engine = make_async_engine(
        settings.database.url.get_secret_value(), pool_size=settings.database.pool_size, pool_wait_s=settings.database.pool_wait_s
    )
    keys = KeyRing(settings.keys.encryption.get_secret_value(), settings.keys.pepper.get_secret_value())

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncGenerator[None]:
        yield
        await app.state.streams.close()
        await engine.dispose()

    app = FastAPI(
        title="Lethe",
        version=VERSION,
        description="Deletion requests answered by machine unlearning, with audited evidence.",
        openapi_url="/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        lifespan=life,
        redirect_slashes=False,
    )
    app.state.settings = settings
    app.state.store = store or store_of(settings)
    app.state.cursors = Cursors(settings.keys.cursor.get_secret_value())
    app.state.door = Door(engine, keys)
    app.state.streams = Streams(per_principal=settings.limits.streams_per_principal)
    for module in ROUTERS:
        app.include_router(module.router)
    problems.install(app)
    openapi.install(app)
    app.add_middleware(BodyLimits, limits=settings.limits)
    app.add_middleware(RequestContext, observe=observe)
    return app


def from_environment() -> FastAPI:
    """Return the gateway of the environment's settings; `uvicorn --factory api.app:from_environment` runs it."""
    configure_logging("gateway")
    return create_app(Settings())


def described() -> str:
    """Return the OpenAPI document of the gateway; nothing is connected to."""
    nowhere = DatabaseSettings(url=SecretStr("postgresql://127.0.0.1/none"))
    return openapi.text(create_app(Settings(embedded=True, database=nowhere), store=MemoryStore()))


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(described(), encoding="utf-8")
