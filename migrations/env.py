"""Alembic's environment: online only, one transaction, one migrator at a time."""

import os

from alembic import context
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from services.db.session import driver_url
from services.db.tables import Base

MIGRATION_LOCK = 0x6C657468  # "leth"


def migrate() -> None:
    """Run the migrations as the owner, on the URL the caller gave or on LETHE_DATABASE__OWNER_URL."""
    url = context.config.attributes.get("url") or os.environ["LETHE_DATABASE__OWNER_URL"]
    engine = create_engine(driver_url(url), poolclass=NullPool)
    with engine.connect() as connection:
        context.configure(connection=connection, target_metadata=Base.metadata, compare_type=True)
        with context.begin_transaction():
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})")
            context.run_migrations()


if context.is_offline_mode():
    raise SystemExit("Migrations need a database: set LETHE_DATABASE__OWNER_URL and leave out --sql.")
migrate()
