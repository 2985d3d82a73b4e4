"""The catalogue: what the workers can run."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Response

from api import answers
from api.dependencies import Anyone, IfNoneMatch, NamePath
from api.schemas.catalogue import ComponentList, ComponentOut
from services.catalogue import service
from services.catalogue.service import Kind
from services.errors import NotFound

router = APIRouter(prefix="/v1", tags=["catalogue"])
PATHS: dict[str, Kind] = {
    "methods": "method",
    "metrics": "metric",
    "attacks": "attack",
    "tasks": "task",
    "architectures": "architecture",
    "dataset-adapters": "dataset_adapter",
}


def _lister(kind: Kind) -> Callable[..., Coroutine[Any, Any, Response]]:
    async def listing(ledger: Anyone, if_none_match: IfNoneMatch = None) -> Response:
        found = await ledger(lambda session: service.listing(session, kind))
        body = ComponentList(items=[ComponentOut.model_validate(one) for one in found])
        return answers.tagged(body, answers.digest_tag(body), if_none_match)

    return listing


def _reader(kind: Kind) -> Callable[..., Coroutine[Any, Any, Response]]:
    async def one(name: NamePath, ledger: Anyone, if_none_match: IfNoneMatch = None) -> Response:
        found = await ledger(lambda session: service.entry(session, kind, name))
        if found is None:
            raise NotFound
        body = ComponentOut.model_validate(found)
        return answers.tagged(body, answers.digest_tag(body), if_none_match)

    return one


for path, kind in PATHS.items():
    word = kind.replace("_", " ")
    router.add_api_route(f"/{path}", _lister(kind), response_model=ComponentList, summary=f"List every {word}", name=f"list {path}")
    router.add_api_route(f"/{path}/{{name}}", _reader(kind), response_model=ComponentOut, summary=f"Read one {word}", name=f"read {path}")
