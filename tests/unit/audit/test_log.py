"""Commitments of the audit log."""

import hashlib

from services.audit.log import commitment

SALT = bytes(16)


def test_a_commitment_is_the_digest_of_the_canonical_text():
    expected = b'{"body":{"a":"x","b":1},"salt":"' + b"00" * 16 + b'","type":"request.received"}'
    assert commitment("request.received", {"b": 1, "a": "x"}, SALT) == hashlib.sha256(expected).digest()


def test_it_depends_on_type_body_and_salt():
    made = {
        commitment("a", {"x": 1}, SALT),
        commitment("b", {"x": 1}, SALT),
        commitment("a", {"x": 2}, SALT),
        commitment("a", {"x": 1}, bytes([1]) * 16),
    }
    assert len(made) == 4
