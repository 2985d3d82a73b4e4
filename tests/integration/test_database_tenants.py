"""Bootstrap, API keys, keys of tenants and policies, on a real server."""

import json
import os
import subprocess
import sys

import pytest
from sqlalchemy import select, text

from services.clock import SystemClock, uuid7
from services.db.session import unit_of_work
from services.db.tables import ApiKey
from services.errors import Conflict, IntegrityBroken, InvalidInput, NotFound, Unauthenticated
from services.tenants import policies, repository
from services.tenants.caller import SCOPES
from services.tenants.keys import tenant_key
from services.tenants.service import authenticate, issue_key

KEK, PEPPER = "11" * 32, "22" * 32


@pytest.fixture
def tenant(ledger):
    return ledger.default_tenant()


def caller_of(ledger, secret, pepper=PEPPER):
    with unit_of_work(ledger.engine("lethe_gateway"), tenant=None) as session:
        return authenticate(session, secret, pepper)


def key_of(ledger, tenant, client="desk", scopes=("requests:read",)):
    with unit_of_work(ledger.engine("lethe_gateway"), tenant=tenant) as session:
        return issue_key(session, tenant_id=tenant, client=client, scopes=scopes, pepper=PEPPER)


def test_bootstrap_prints_one_key_once_and_seeds_both_policies(postgres):
    name = postgres.empty_database()
    keys = {"LETHE_KEYS__ENCRYPTION": KEK, "LETHE_KEYS__PEPPER": PEPPER, "LETHE_EMBEDDED": "true"}
    env = {**os.environ, **keys, "LETHE_DATABASE__OWNER_URL": postgres.url("lethe_owner", name)}
    printed = []
    for flags in (["--migrate"], ["--migrate"], []):
        done = subprocess.run([sys.executable, "-m", "control.bootstrap", *flags], env=env, capture_output=True, text=True, check=True)
        printed.append(json.loads(done.stdout))
    first, second, third = printed
    assert first["policies"] == ["gdpr-default", "demo"]
    assert first["api_key"].startswith("lk_live_")
    assert second == third == {"tenant": first["tenant"], "policies": []}


def test_bootstrap_without_keys_says_what_is_missing(postgres):
    env = {**os.environ, "LETHE_EMBEDDED": "true", "LETHE_DATABASE__OWNER_URL": "", "LETHE_KEYS__ENCRYPTION": "", "LETHE_KEYS__PEPPER": ""}
    done = subprocess.run([sys.executable, "-m", "control.bootstrap"], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "LETHE_KEYS__ENCRYPTION" in done.stderr


def test_the_first_key_opens_the_default_tenant_with_every_scope(ledger, postgres, tenant):
    caller = caller_of(ledger, postgres.first_key)
    assert (caller.tenant_id, caller.principal, caller.scopes) == (tenant, "bootstrap", SCOPES)


def test_a_key_opens_its_own_tenant_with_its_own_scopes_and_is_not_stored(ledger, tenant):
    other = ledger.tenant("other")
    secret = key_of(ledger, other, scopes=("audit:read", "jobs:read"))
    caller = caller_of(ledger, secret)
    assert (caller.tenant_id, caller.scopes) == (other, {"audit:read", "jobs:read"})
    with unit_of_work(ledger.engine("superuser"), tenant=None) as session:
        stored = session.scalar(text("SELECT string_agg(api_key::text, ' ') FROM api_key"))
    assert secret not in stored
    assert secret.split("_")[3] not in stored


def test_use_is_noted_once_a_minute(ledger, tenant):
    secret = key_of(ledger, tenant)
    for _ in range(2):
        caller_of(ledger, secret)
    used = select(ApiKey.last_used_at).where(ApiKey.client == "desk")
    with unit_of_work(ledger.engine("lethe_gateway"), tenant=tenant) as session:
        first = session.scalar(used)
    assert first is not None
    caller_of(ledger, secret)
    with unit_of_work(ledger.engine("lethe_gateway"), tenant=tenant) as session:
        assert session.scalar(used) == first


@pytest.mark.parametrize("spoil", ["", "lk_live_x", "Bearer x", "lk_live_" + "0" * 8 + "_" + "0" * 32 + "_000000"])
def test_malformed_keys_are_refused(ledger, spoil):
    with pytest.raises(Unauthenticated):
        caller_of(ledger, spoil)


def test_unknown_wrong_expired_and_revoked_keys_are_refused_alike(ledger, tenant):
    from services.tenants import api_keys

    with pytest.raises(Unauthenticated):
        caller_of(ledger, api_keys.new_key().text)
    secret = key_of(ledger, tenant)
    with pytest.raises(Unauthenticated):
        caller_of(ledger, secret, pepper="33" * 32)
    for spoil, mend in (("revoked_at = clock_timestamp()", "revoked_at = NULL"), ("expires_at = clock_timestamp()", "expires_at = NULL")):
        with unit_of_work(ledger.engine("lethe_gateway"), tenant=tenant) as session:
            session.execute(text(f"UPDATE api_key SET {spoil} WHERE client = 'desk'"))
        with pytest.raises(Unauthenticated):
            caller_of(ledger, secret)
        with unit_of_work(ledger.engine("lethe_gateway"), tenant=tenant) as session:
            session.execute(text(f"UPDATE api_key SET {mend} WHERE client = 'desk'"))
    assert caller_of(ledger, secret).principal == "desk"


def test_a_client_has_two_live_keys_at_most_and_scopes_must_exist(ledger, tenant):
    key_of(ledger, tenant)
    key_of(ledger, tenant)
    with pytest.raises(Conflict):
        key_of(ledger, tenant)
    for scopes in ((), ("requests:everything",)):
        with pytest.raises(InvalidInput):
            key_of(ledger, tenant, client="other", scopes=scopes)


def test_the_key_of_a_tenant_opens_for_every_process_and_under_no_other_key(ledger, tenant):
    opened = set()
    for role in ("lethe_gateway", "lethe_worker", "lethe_control"):
        with unit_of_work(ledger.engine(role), tenant=tenant) as session:
            opened.add(tenant_key(session, tenant, KEK))
    assert len(opened) == 1
    assert len(opened.pop()) == 32
    with unit_of_work(ledger.engine("lethe_gateway"), tenant=tenant) as session:
        with pytest.raises(IntegrityBroken):
            tenant_key(session, tenant, "44" * 32)
        with pytest.raises(NotFound):
            tenant_key(session, uuid7(SystemClock()), KEK)


def test_the_stored_policies_are_the_seeds_and_a_change_is_a_new_version(ledger, tenant):
    with unit_of_work(ledger.engine("lethe_gateway"), tenant=tenant) as session:
        for key, seed in policies.SEEDS.items():
            assert policies.body_of(policies.current_policy(session, tenant, key)) == seed
        stricter = policies.DEMO.model_copy(update={"max_batch": 7})
        version = policies.write_policy(session, tenant_id=tenant, policy_id=uuid7(SystemClock()), key="demo", body=stricter)
        assert version == 2
        assert policies.current_policy(session, tenant, "demo").max_batch == 7
        with pytest.raises(InvalidInput):
            policies.current_policy(session, tenant, "none of ours")


def test_a_tenant_is_made_once(ledger):
    assert ledger.tenant("other") == ledger.tenant("other")
    with unit_of_work(ledger.engine("lethe_control"), tenant=None) as session:
        assert len(repository.tenant_ids(session)) == 2
