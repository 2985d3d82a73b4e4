"""Every error of the service as a problem document."""

import inspect
import json
import re
from typing import Any

import pytest

from api import problems
from services import errors

CLASSES = [found for _, found in inspect.getmembers(errors, inspect.isclass) if issubclass(found, errors.LetheError)]
EXPECTED = {
    "UnknownModel": 422, "RecordsNotFound": 422, "KeyReused": 422, "KeyMissing": 400, "MalformedRequest": 400, "InvalidCursor": 422, "NotFound": 404,
    "ReportNotReady": 404, "DuplicateName": 409, "IllegalTransition": 409, "KeyInProgress": 409, "TooLateToCancel": 409, "Resurrection": 409,
    "CheckpointDestroyed": 410, "PreconditionFailed": 412, "PreconditionRequired": 428, "Unauthenticated": 401, "MissingScope": 403,
    "FourEyesRequired": 403, "DigestMismatch": 422, "DatabaseDown": 503, "StoreDown": 503, "IntegrityBroken": 500, "LeaseLost": 409,
}  # fmt: skip


class Echo(dict[str, Any]):
    """Facts that hold a canary for whatever a message asks."""

    def __missing__(self, name: str) -> str:
        return "canary@example.org"


@pytest.mark.parametrize("name", EXPECTED)
def test_each_error_has_its_status(name: str) -> None:
    fields = re.findall(r"{(\w+)", getattr(errors, name).__doc__)
    error = getattr(errors, name)(**dict.fromkeys(fields, "x"))
    answer = problems.of_error(error, request_id="r")
    assert (answer.status_code, json.loads(answer.body)["status"]) == (EXPECTED[name], EXPECTED[name])


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_no_message_quotes_a_name_that_the_caller_sent(kind: type[errors.LetheError]) -> None:
    fields = re.findall(r"{(\w+)", kind.__doc__ or "")
    facts = {field: "canary@example.org" if field in problems.INPUTS else "plain" for field in fields}
    assert b"canary" not in problems.of_error(kind(**facts), request_id="r").body


def test_a_refused_transition_says_from_where_and_what_would_do() -> None:
    error = errors.IllegalTransition(thing="request", state="completed", event="cancel", allowed="nothing")
    body = json.loads(problems.of_error(error, request_id="r").body)
    assert (body["code"], body["from"], body["allowed"]) == ("invalid-transition", "completed", [])


def test_pointers_of_an_error_are_listed() -> None:
    body = json.loads(problems.of_error(errors.InvalidInput(detail="x", pointer="/scope"), request_id="r").body)
    assert body["errors"] == [{"pointer": "/scope", "detail": "The request cannot be carried out as written: x"}]


def test_what_can_be_sent_again_says_so_and_when() -> None:
    for error, wait in ((errors.DatabaseDown(), "5"), (errors.KeyInProgress(), "1")):
        answer = problems.of_error(error, request_id="r")
        assert (json.loads(answer.body)["retryable"], answer.headers["retry-after"]) == (True, wait)
