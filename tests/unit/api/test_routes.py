"""Facts about all routes at once."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute, iter_route_contexts
from pydantic import BaseModel
from starlette.testclient import TestClient

from api import schemas
from api.app import described
from api.openapi import scope_of
from api.schemas.base import In
from services.tenants.caller import SCOPES
from tests.unit.api.stand_in import gateway

REFERENCE = Path(__file__).parents[3] / "docs" / "reference" / "openapi.json"
OPEN = {"/healthz", "/readyz", "/metrics", "/.well-known/jwks.json"}
NO_BODY_OUT = {"newest", "one", "newest_head", "metrics", "download", "delete_alias"}


@pytest.fixture(scope="module")
def app() -> FastAPI:
    return gateway()


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app, raise_server_exceptions=False) as made:
        yield made


def routes(app: Any) -> list[APIRoute]:
    return [context.original_route for context in iter_route_contexts(app.routes) if isinstance(context.original_route, APIRoute)]


def test_every_route_but_the_health_checks_asks_for_a_scope(app: Any) -> None:
    found = {route.path: scope_of(route) for route in routes(app)}
    assert {path for path, (asks, _) in found.items() if not asks} == OPEN
    assert {scope for _, scope in found.values() if scope} <= SCOPES
    assert {path for path, (asks, scope) in found.items() if asks and scope is None} == {path for path in found if path.split("/")[2:3] and path.split("/")[2] in {
        "methods", "metrics", "attacks", "tasks", "architectures", "dataset-adapters"}}  # fmt: skip


def test_what_changes_something_asks_for_more_than_reading(app: Any) -> None:
    for route in routes(app):
        if route.methods & {"POST", "PUT", "PATCH", "DELETE"}:
            assert scope_of(route)[1].split(":")[1] in {"write", "decide", "operate", "destroy"}, route.path


def test_every_route_declares_what_it_answers(app: Any) -> None:
    assert {route.endpoint.__name__ for route in routes(app) if route.response_model is None} == NO_BODY_OUT


def subclasses(base: type[BaseModel]) -> list[type[BaseModel]]:
    return [base, *(deeper for one in base.__subclasses__() for deeper in subclasses(one))]


@pytest.mark.parametrize("model", subclasses(In), ids=lambda model: model.__name__)
def test_every_body_that_comes_in_refuses_unknown_members_and_loose_types(model: type[BaseModel]) -> None:
    assert schemas
    assert (model.model_config["extra"], model.model_config["strict"]) == ("forbid", True)


def test_the_committed_description_is_the_one_the_code_gives() -> None:
    assert REFERENCE.read_text(encoding="utf-8") == described(), "run: .venv/bin/python -m api.app docs/reference/openapi.json"


def test_the_description_is_openapi_3_1_with_our_problems_and_scopes(client: Any) -> None:
    found = client.get("/v1/openapi.json").json()
    assert found == json.loads(REFERENCE.read_text(encoding="utf-8"))
    assert found["openapi"].startswith("3.1")
    create = found["paths"]["/v1/deletion-requests"]["post"]
    assert create["x-scope"] == "requests:write"
    assert "application/problem+json" in create["responses"]["4XX"]["content"]
    assert "Idempotency-Key" in [parameter["name"] for parameter in create["parameters"]]
    assert "HTTPValidationError" not in found["components"]["schemas"]


def test_no_page_of_the_framework_is_served(client: Any) -> None:
    assert [client.get(path).status_code for path in ("/docs", "/redoc", "/openapi.json")] == [404, 404, 404]


def test_the_gateway_loads_neither_torch_nor_the_queue() -> None:
    code = "import sys, api.app; print([name for name in ('torch', 'celery', 'services.jobs', 'services.queue', 'pyarrow') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
