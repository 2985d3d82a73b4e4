"""The walker over JSON Schema, beside pydantic's own judgement and an independent validator."""

import json
import math
from typing import Literal

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.catalogue.schema import problems, with_defaults


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    rate: float = Field(default=0.1, gt=0, lt=1)
    mode: Literal["a", "b"] = "a"


class Parameters(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    epochs: int = Field(default=3, ge=1, le=100)
    learning_rate: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    layers: tuple[int, ...] = Field(default=(), max_length=3)
    name: str = Field(default="x", pattern="^[a-z]+$", max_length=5)
    on: bool = False
    inner: Inner = Inner()
    weights: dict[str, float] = Field(default_factory=dict)
    needed: int


SCHEMA = Parameters.model_json_schema()
ORACLE = jsonschema_rs.validator_for(SCHEMA)


def wrong(**parts):
    return list(problems(SCHEMA, {"needed": 1, **parts}))


def test_what_holds_has_no_problem():
    assert wrong() == []
    assert wrong(epochs=100, learning_rate=None, layers=[1, 2], name="abc", on=True, inner={"rate": 0.5, "mode": "b"}, weights={"a": 1}) == []


@pytest.mark.parametrize(
    ("parts", "pointer"),
    [
        ({"epochs": 0}, "/epochs"),
        ({"epochs": 10**9}, "/epochs"),
        ({"epochs": "3"}, "/epochs"),
        ({"epochs": True}, "/epochs"),
        ({"epochs": 1.5}, "/epochs"),
        ({"learning_rate": 0}, "/learning_rate"),
        ({"learning_rate": math.nan}, "/learning_rate"),
        ({"learning_rate": math.inf}, "/learning_rate"),
        ({"layers": [1, "2"]}, "/layers/1"),
        ({"layers": [1, 2, 3, 4]}, "/layers"),
        ({"name": "ABC"}, "/name"),
        ({"name": "abcdef"}, "/name"),
        ({"on": 1}, "/on"),
        ({"inner": {"rate": 1}}, "/inner/rate"),
        ({"inner": {"mode": "c"}}, "/inner/mode"),
        ({"inner": {"other/~": 1}}, "/inner/other~1~0"),
        ({"weights": {"a": "b"}}, "/weights/a"),
        ({"surprise": 1}, "/surprise"),
    ],
)
def test_what_does_not_hold_is_found_at_its_place_without_its_value(parts, pointer):
    found = wrong(**parts)
    assert [where for where, _ in found] == [pointer]
    assert all("ABC" not in detail for _, detail in found)


def test_of_several_forms_the_nearest_is_explained():
    assert wrong(learning_rate=0) == [("/learning_rate", "must be above 0")]


def test_a_missing_member_is_named():
    assert list(problems(SCHEMA, {})) == [("/needed", "is required")]


def test_defaults_fill_what_is_open_and_nothing_else():
    filled = with_defaults(SCHEMA, {"needed": 2, "epochs": 5})
    assert filled["epochs"] == 5
    assert filled["name"] == "x"
    assert Parameters.model_validate_json(json.dumps(filled)).needed == 2


SCALARS = st.none() | st.booleans() | st.integers(-5, 200) | st.floats(-2, 2, allow_nan=False) | st.sampled_from(["a", "c", "abc", "ABC", "toolong"])
MEMBERS = st.fixed_dictionaries(
    {},
    optional={
        "epochs": SCALARS,
        "learning_rate": SCALARS,
        "layers": st.lists(SCALARS, max_size=4) | SCALARS,
        "name": SCALARS,
        "on": SCALARS,
        "inner": st.fixed_dictionaries({}, optional={"rate": SCALARS, "mode": SCALARS, "other": SCALARS}) | SCALARS,
        "weights": st.dictionaries(st.sampled_from(["a", "b"]), SCALARS, max_size=2) | SCALARS,
        "needed": SCALARS,
        "surprise": SCALARS,
    },
)


@settings(max_examples=300, deadline=None)
@given(MEMBERS)
def test_the_walker_agrees_with_an_independent_validator(value):
    assert (list(problems(SCHEMA, value)) == []) == ORACLE.is_valid(value)


@settings(max_examples=100, deadline=None)
@given(MEMBERS)
def test_what_the_walker_lets_pass_the_parameters_of_the_plug_in_take(value):
    if list(problems(SCHEMA, value)):
        return
    text = json.dumps(with_defaults(SCHEMA, value))
    try:
        Parameters.model_validate_json(text)
    except ValidationError as error:
        # strict JSON: 1.0 is an integer to JSON Schema and none to pydantic
        assert {part["type"] for part in error.errors()} <= {"int_type", "int_from_float"}  # noqa: PT017
