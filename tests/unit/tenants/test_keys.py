"""API keys as text, wrapped keys and derived keys."""

from uuid import UUID

import pytest

from services.errors import IntegrityBroken, MissingScope
from services.tenants import api_keys
from services.tenants.caller import Caller
from services.tenants.keys import KeyRing, derive, new_tenant_key, unwrap, wrap

TENANT, OTHER = UUID(int=1), UUID(int=2)
KEK = "11" * 32


def test_a_new_key_has_the_published_form_and_parses_back():
    made = [api_keys.new_key() for _ in range(200)]
    assert len({key.prefix for key in made}) == len({key.text for key in made}) == 200
    for key in made:
        name, live, prefix, secret, check = key.text.split("_")
        assert (name, live, len(prefix), len(secret), len(check)) == ("lk", "live", 8, 32, 6)
        assert api_keys.parse(key.text) == key


def test_a_mistyped_key_is_known_without_the_database():
    text = api_keys.new_key().text
    for place in range(len(text)):
        other = "0" if text[place] != "0" else "1"
        assert api_keys.parse(text[:place] + other + text[place + 1 :]) is None
    assert api_keys.parse(text + "\n") is None
    assert api_keys.parse(text.replace("_", "-")) is None


def test_neither_keys_nor_key_rings_show_their_secret():
    key = api_keys.new_key()
    assert key.text not in repr(key)
    assert "11" not in repr(KeyRing(KEK, "22" * 32))


def test_the_digest_depends_on_the_pepper():
    key = api_keys.new_key()
    assert api_keys.digest(key, "22" * 32) != api_keys.digest(key, "33" * 32)


def test_a_wrapped_key_opens_for_its_tenant_under_its_key_alone():
    key = new_tenant_key()
    wrapped = wrap(key, TENANT, KEK)
    assert key not in wrapped
    assert unwrap(wrapped, TENANT, KEK) == key
    assert wrap(key, TENANT, KEK) != wrapped
    flipped = wrapped[:-1] + bytes([wrapped[-1] ^ 1])
    for spoiled, tenant, kek in ((wrapped, OTHER, KEK), (wrapped, TENANT, "44" * 32), (flipped, TENANT, KEK)):
        with pytest.raises(IntegrityBroken):
            unwrap(spoiled, tenant, kek)


def test_derivation_is_the_one_of_the_standard():
    # RFC 5869, written out: extract with an empty salt of zeros, one block of expand
    import hashlib
    import hmac

    key = bytes(range(32))
    extracted = hmac.new(bytes(32), key, hashlib.sha256).digest()
    expanded = hmac.new(extracted, b"dataset:x\x01", hashlib.sha256).digest()
    assert derive(key, "dataset:x") == expanded
    assert derive(key, "dataset:y") != expanded


def test_a_caller_without_the_scope_is_refused():
    caller = Caller(TENANT, "desk", frozenset({"jobs:read"}))
    caller.require("jobs:read")
    with pytest.raises(MissingScope, match="jobs:operate"):
        caller.require("jobs:operate")
