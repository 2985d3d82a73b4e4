"""Identifiers: one person, one digest; other keys, types and persons, other digests."""

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.datasets.identifiers import Identifier, normalise, record_digest, subject_digest
from services.errors import InvalidInput

KEY = b"k" * 32


@pytest.mark.parametrize(
    ("kind", "value", "normal"),
    [
        ("email", "  Ann.Lee+News@EXAMPLE.org ", "Ann.Lee+News@example.org"),
        ("email", "ann@Bücher.example", "ann@xn--bcher-kva.example"),
        ("phone", "+49 (30) 901820", "+4930901820"),
        ("phone", "+1 650-253-0000", "+16502530000"),
        ("controller_customer_id", " c-991\u00a0", "c-991"),
        ("name", "Zoe\u0308", "Zoë"),
        ("name", "\ufb01n", "fin"),
    ],
)
def test_writings_of_one_identifier_have_one_normal_form(kind: str, value: str, normal: str) -> None:
    assert normalise(Identifier(kind, value)) == normal


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("email", "ann"),
        ("email", "@example.org"),
        ("email", "ann@"),
        ("email", "ann@-bad-.x y"),
        ("phone", "030 901820"),
        ("phone", "+1"),
        ("id", " "),
        ("id", "a\x00"),
    ],
)
def test_what_is_no_identifier_is_refused_without_being_quoted(kind: str, value: str) -> None:
    with pytest.raises(InvalidInput) as error:
        normalise(Identifier(kind, value))
    assert value.strip() == "" or len(value) < 4 or value not in str(error.value)


def test_the_value_never_shows_in_a_repr() -> None:
    assert "ann" not in repr(Identifier("email", "ann@example.org"))


@given(value=st.text(min_size=1).filter(lambda text: text.strip() and "\x00" not in text))
def test_the_normal_form_is_its_own_normal_form(value: str) -> None:
    try:
        once = normalise(Identifier("id", value))
    except InvalidInput:
        return
    assert normalise(Identifier("id", once)) == once


def test_digests_depend_on_key_type_and_value_and_records_on_their_dataset() -> None:
    one = Identifier("id", "c-1")
    digests = {
        subject_digest(KEY, one),
        subject_digest(b"o" * 32, one),
        subject_digest(KEY, Identifier("other", "c-1")),
        subject_digest(KEY, Identifier("id", "c-2")),
    }
    assert len(digests) == 4
    assert len({record_digest(KEY, UUID(int=1), "r"), record_digest(KEY, UUID(int=2), "r"), record_digest(KEY, UUID(int=1), "s")}) == 3
