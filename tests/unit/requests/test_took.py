"""What a job says it took: of what its steps noted, and nothing where they noted nothing."""

import pytest

from services.requests.jobs import took
from services.requests.views import TookView


def test_the_seconds_of_method_references_and_tests_stand_apart() -> None:
    judged = {"reference_seconds": 0.25, "evaluation_seconds": 2.0, "retrain_seconds": None, "reference_from": "cache"}

    found = took({"steps": {"unlearn": {"run": {"method_seconds": 1.5}}, "evaluate": {"run": judged}}})

    assert found == TookView("1.500", "0.250", "2.000", None, "cache")


def test_a_job_whose_method_has_run_and_whose_tests_have_not_says_so_much() -> None:
    assert took({"steps": {"unlearn": {"run": {"method_seconds": 1.5}}}}) == TookView("1.500", None, None, None, None)


@pytest.mark.parametrize("state", [{}, {"steps": {}}, {"steps": {"train": {"run": {"method_seconds": 3.0}}}}])
def test_a_job_that_forgets_nothing_yet_says_nothing(state: dict[str, object]) -> None:
    assert took(state) is None
