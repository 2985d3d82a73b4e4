"""Bodies of the catalogue, the audit report list and the health checks."""

from typing import Any

from pydantic import Field

from api.schemas.base import Moment, Out
from api.schemas.ids import Digest


class ComponentOut(Out):
    """A method, metric, attack, task, architecture or dataset adapter; `parameters` is a JSON Schema."""

    kind: str
    name: str
    version: str
    guarantee: str | None
    parameters: dict[str, Any] = Field(validation_alias="schema")
    needs: list[str]
    facts: dict[str, Any]
    error: str | None
    available: bool


class ComponentList(Out):
    """The components of one kind."""

    items: list[ComponentOut]


class ReportRevisionOut(Out):
    """One stored revision of an audit report."""

    revision: int
    digest: Digest
    created_at: Moment


class ReportList(Out):
    """The revisions of a request's report, oldest first."""

    items: list[ReportRevisionOut]


class FigureOut(Out):
    """One figure of a report: the data it draws with their digest (SHA-256 of the canonical JSON, hex), or why it is left out."""

    name: str
    model: str | None
    job: str
    data_digest: str | None
    reason: str | None
    data: dict[str, Any] | None


class FigureList(Out):
    """The figures of one revision, in the order of its statement."""

    items: list[FigureOut]


class HealthOut(Out):
    """Alive."""

    status: str = "ok"


class ReadyOut(Out):
    """What the gateway needs, each `ok` or what is wrong; `degraded` names what it can do without."""

    status: str
    checks: dict[str, str]
    degraded: list[str]
