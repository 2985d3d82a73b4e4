"""First steps of a deployment: `python -m control.bootstrap [--migrate]`.

Migrates (with --migrate), then makes the tenant `default`, its policies and its first API key. Run again, it adds only what is missing. It runs as
the owner role (LETHE_DATABASE__OWNER_URL), which no serving process has. Standard output: one JSON line, with `api_key` only when a key was made.
"""

import argparse
import json
import sys
from pathlib import Path

from alembic import command
from alembic.config import Config

from services.clock import SystemClock
from services.db.session import make_engine, unit_of_work
from services.settings import Settings
from services.tenants import repository
from services.tenants.caller import SCOPES
from services.tenants.keys import KeyRing
from services.tenants.policies import seed_policies
from services.tenants.service import create_tenant, issue_key

MIGRATIONS = Path(__file__).resolve().parent.parent / "migrations"
TENANT = "default"
CLIENT = "bootstrap"


def migrate(owner_url: str) -> None:
    """Bring the schema to the newest revision. Two at once take turns."""
    config = Config(MIGRATIONS / "alembic.ini")
    config.attributes["url"] = owner_url
    command.upgrade(config, "head")


def bootstrap(owner_url: str, keys: KeyRing) -> dict[str, object]:
    """Make tenant, policies and first key where they are missing.

    Returns:
        tenant (id), policies (keys of those written now) and, only if a key was made, api_key.
    """
    engine = make_engine(owner_url, pool_size=1)
    try:
        with unit_of_work(engine, tenant=None) as session:
            tenant_id = create_tenant(session, name=TENANT, keys=keys)
        with unit_of_work(engine, tenant=tenant_id) as session:
            report: dict[str, object] = {"tenant": str(tenant_id)}
            report["policies"] = seed_policies(session, tenant_id=tenant_id, clock=SystemClock())
            if repository.live_keys(session, tenant_id) == 0:
                report["api_key"] = issue_key(session, tenant_id=tenant_id, client=CLIENT, scopes=SCOPES, pepper=keys.pepper)
        return report
    finally:
        engine.dispose()


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m control.bootstrap", description="Make what a deployment starts with.")
    parser.add_argument("--migrate", action="store_true", help="migrate the database first")
    arguments = parser.parse_args()
    settings = Settings()
    owner_url = settings.database.owner_url.get_secret_value()
    keys = KeyRing(settings.keys.encryption.get_secret_value(), settings.keys.pepper.get_secret_value())
    if not owner_url or not keys.kek or not keys.pepper:
        sys.stderr.write("Set LETHE_DATABASE__OWNER_URL, LETHE_KEYS__ENCRYPTION and LETHE_KEYS__PEPPER.\n")
        return 2
    if arguments.migrate:
        migrate(owner_url)
    sys.stdout.write(json.dumps(bootstrap(owner_url, keys)) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
