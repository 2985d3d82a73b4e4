"""The OpenAPI 3.1 document: what FastAPI derives, with our errors, our key scheme and the scope of each operation."""

import json
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute, iter_route_contexts

from api.schemas.base import Problem
from api.security import Needs

PROBLEM = {
    "description": "A problem document (RFC 9457).",
    "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
}
KEYED = "Idempotency-Key"


def scope_of(route: APIRoute) -> tuple[bool, str | None]:
    """Return whether a route asks for a caller, and for which scope."""
    for dependency in route.dependant.dependencies:
        if isinstance(dependency.call, Needs):
            return True, dependency.call.scope
    return False, None


def document(app: FastAPI) -> dict[str, Any]:
    """Return the document."""
    found = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    schemas = found["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= problem.pop("$defs", {}) | {"Problem": problem}
    found["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer", "description": "An API key, lk_live_…"}}
    for context in iter_route_contexts(app.routes):
        route = context.original_route
        if not isinstance(route, APIRoute) or context.path_format is None:
            continue
        asks, scope = scope_of(route)
        for method in context.methods or ():
            _finish(found["paths"][context.path_format][method.lower()], asks=asks, scope=scope)
    return found


def _finish(operation: dict[str, Any], *, asks: bool, scope: str | None) -> None:
    """Give an operation its errors and its scope."""
    operation["responses"].pop("422", None)
    operation["responses"]["4XX"] = operation["responses"]["5XX"] = PROBLEM
    if not asks:
        return
    operation["security"] = [{"key": []}]
    operation["x-scope"] = scope or "any"
    for parameter in operation.get("parameters", []):
        if parameter["name"].lower() == KEYED.lower():
            parameter |= {"name": KEYED, "description": "1 to 128 visible ASCII characters, new for each new intent. Required (but for a dry run)."}


def install(app: FastAPI) -> None:
    """Let the app serve this document in place of FastAPI's own."""

    def cached() -> dict[str, Any]:
        if not app.openapi_schema:
            app.openapi_schema = document(app)
        return app.openapi_schema

    app.openapi = cached  # pyright: ignore[reportAttributeAccessIssue]  the way FastAPI documents for it


def text(app: FastAPI) -> str:
    """Return the document as it is kept in docs/reference."""
    return json.dumps(app.openapi(), indent=1, sort_keys=True, ensure_ascii=False) + "\n"
