"""Methods at reduced strength, by what the catalogue says of them."""

import pytest
from pydantic import ValidationError

from services.catalogue.gentler import gentler
from services.jobs.compute.plugins import catalogue, load

SCHEMA = {
    "properties": {
        "lr": {"type": "number", "minimum": 1e-3, "maximum": 1, "default": 0.01},
        "copies": {"type": "integer", "minimum": 1, "maximum": 50, "default": 20},
        "rate": {"anyOf": [{"type": "number"}, {"type": "null"}], "default": None},
    }
}


@pytest.mark.parametrize(
    ("given", "factors", "expected"),
    [
        ({}, {"lr": 0.5}, {"lr": 0.005}),
        ({"lr": 0.4}, {"lr": 0.5}, {"lr": 0.2}),
        ({}, {"copies": 0.5}, {"copies": 10}),
        ({"copies": 5}, {"copies": 0.5}, {"copies": 2}),
        ({"copies": 40}, {"copies": 2.0}, {"copies": 50}),
        ({"lr": 0.0015}, {"lr": 0.5}, {"lr": 0.001}),
        ({"lr": 0.001}, {"lr": 0.5}, None),
        ({}, {"rate": 0.5}, None),
        ({}, {"unknown": 0.5}, None),
        ({}, {}, None),
    ],
)
def test_numbers_are_multiplied_within_their_bounds_and_whole_ones_stay_whole(given, factors, expected):
    whole = {"lr": 0.01, "copies": 20, "rate": None, **given}

    assert gentler(given, factors, SCHEMA) == (None if expected is None else {**whole, **expected})


def test_what_methods_publish_gives_parameters_that_they_take():
    load([])
    from services.unlearning.method import METHODS

    published = {item.name: item for item in catalogue() if item.kind == "method" and "gentler" in item.facts}

    assert {"unsir", "bad_teacher", "blindspot", "ssd", "npo"} <= set(published)
    for name, item in published.items():
        softer = gentler({}, item.facts["gentler"], item.parameters)
        assert softer is not None, name
        try:
            METHODS[name].Parameters(**softer)
        except ValidationError as error:
            raise AssertionError(name) from error
