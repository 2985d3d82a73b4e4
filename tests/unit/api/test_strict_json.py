"""JSON with one meaning."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.strict_json import parse
from services.errors import MalformedRequest

REFUSED = {
    "two members of one name": b'{"a": 1, "a": 2}',
    "two members of one name, deep": b'[{"b": {"a": 1, "\\u0061": 2}}]',
    "NaN": b'{"a": NaN}',
    "infinity": b'{"a": -Infinity}',
    "1e400": b'{"a": 1e400}',
    "a hundred thousand digits": b'{"a": ' + b"9" * 100_000 + b"}",
    "65 bits": b'{"a": 9223372036854775808}',
    "half a surrogate pair": b'{"a": "\\ud800"}',
    "half a surrogate pair in a name": b'{"\\udfff": 1}',
    "NUL": b'{"a": "x\\u0000y"}',
    "NUL in a name": b'{"\\u0000": 1}',
    "a raw NUL": b'{"a": "\x00"}',
    "byte order mark": b'\xef\xbb\xbf{"a": 1}',
    "Latin-1": b'{"a": "\xe9"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "depth 10 000": b"[" * 10_000 + b"]" * 10_000,
    "depth 22": b"[" * 22 + b"]" * 22,
    "a string at depth 22": b'{"a":' * 22 + b'"\\u0000"' + b"}" * 22,
    "trailing comma": b'{"a": 1,}',
    "trailing data": b"{} {}",
    "single quotes": b"{'a': 1}",
    "cut short": b'{"a": ',
    "not JSON": b"hello",
}


@pytest.mark.parametrize("body", REFUSED.values(), ids=REFUSED.keys())
def test_a_body_with_more_than_one_meaning_is_refused(body: bytes) -> None:
    with pytest.raises(MalformedRequest):
        parse(body, depth=20)


def test_what_is_refused_is_not_quoted() -> None:
    for body in (b'{"anna@example.org": 1, "anna@example.org": 2}', b'{"a": "anna@example.org\\u0000"}', b"anna@example.org"):
        with pytest.raises(MalformedRequest) as refused:
            parse(body, depth=20)
        assert "anna" not in str(refused.value)


@pytest.mark.parametrize("depth", [1, 5, 20])
def test_a_body_as_deep_as_allowed_is_taken(depth: int) -> None:
    assert parse(b"[" * depth + b"1" + b"]" * depth, depth=depth) is not None


def test_pairs_of_surrogates_and_other_letters_are_taken() -> None:
    assert parse(b'["\\ud83d\\ude00", "\xc3\xa9", "\\u0001"]', depth=20) == ["😀", "é", "\x01"]


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"])), inner),
    max_leaves=20,
)


@given(JSON)
def test_every_plain_document_is_read_as_the_standard_parser_reads_it(document: object) -> None:
    assert parse(json.dumps(document).encode(), depth=60) == document


@given(st.binary(max_size=200))
def test_any_bytes_are_parsed_or_refused(body: bytes) -> None:
    try:
        parse(body, depth=20)
    except MalformedRequest:
        return
    json.loads(body)
