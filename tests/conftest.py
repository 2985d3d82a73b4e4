"""Real servers for the tests: started once a test process, on free ports, in a temporary folder."""

import gc
import os
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from psycopg import sql

from cli.embedded.object_store import SeaweedFS
from cli.embedded.postgres import Postgres
from cli.embedded.redis import Redis
from cli.embedded.stack import create_owner

PASSWORD = "test"
KEYS = {"LETHE_KEYS__ENCRYPTION": "11" * 32, "LETHE_KEYS__PEPPER": "22" * 32, "LETHE_KEYS__CURSOR": "33" * 32}


class PostgresServer:
    """A server with a migrated and bootstrapped template database; `fresh_database` copies it."""

    def __init__(self, server: Postgres) -> None:
        self.server = server
        self.template = "template_lethe"
        self.first_key = ""
        self.settled: dict[str, str] = {}  # databases that tests start from, by the name of what is in them

    def url(self, role: str, database: str) -> str:
        """Return the URL for `superuser` or for `lethe_owner`, `lethe_gateway`, `lethe_worker`, `lethe_control`, `lethe_signer`."""
        name = "postgres" if role == "superuser" else role
        return self.server.url(name, PASSWORD, database)

    def empty_database(self) -> str:
        """Return the name of a new database with no tables, owned by lethe_owner."""
        name = f"empty_{uuid.uuid4().hex[:12]}"
        with self.server.admin() as connection:
            connection.execute(sql.SQL("CREATE DATABASE {} OWNER lethe_owner").format(sql.Identifier(name)))
        return name

    def fresh_database(self, template: str | None = None) -> str:
        """Return the name of a copy of `template`, or else of the migrated database; that holds the tenant, the first key and the policies."""
        name = f"test_{uuid.uuid4().hex[:12]}"
        with self.server.admin() as connection:
            connection.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE {} OWNER lethe_owner").format(sql.Identifier(name), sql.Identifier(template or self.template))
            )
        return name

    def migrate_template(self) -> None:
        """Make the template by Alembic and control.bootstrap, as a deployment does."""
        import json

        with self.server.admin() as connection:
            create_owner(connection, PASSWORD)
            connection.execute(sql.SQL("CREATE DATABASE {} OWNER lethe_owner").format(sql.Identifier(self.template)))
        env = {**os.environ, **KEYS, "LETHE_EMBEDDED": "true", "LETHE_DATABASE__OWNER_URL": self.url("lethe_owner", self.template)}
        done = subprocess.run([sys.executable, "-m", "control.bootstrap", "--migrate"], env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
        for line in done.stdout.splitlines():
            if line.startswith("{") and "api_key" in line:
                self.first_key = json.loads(line)["api_key"]
        with self.server.admin() as connection:
            for role in ("lethe_gateway", "lethe_worker", "lethe_control", "lethe_signer"):
                connection.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(role), sql.Literal(PASSWORD)))


settings.register_profile("lethe", deadline=None)  # how long an example takes is the machine's affair
settings.load_profile("lethe")

FIRST = ("demo", "up", "worker", "stack")
"""Groups that take minutes: started first, so that no process waits for another at the end."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of a module in one process, so that what they share is made once; the longest groups come first."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.nodeid.split("::")[0]))
    items.sort(key=lambda item: FIRST.index(group) if (group := group_of(item)) in FIRST else len(FIRST))


def pytest_collection_finish() -> None:
    """Leave what is loaded by now out of every later collection of garbage: with torch that is millions of objects that stay."""
    gc.collect()
    gc.freeze()


def group_of(item: pytest.Item) -> str:
    """Return the name of a test's group."""
    mark = item.get_closest_marker("xdist_group")
    return str(mark.args[0]) if mark is not None else ""


@pytest.fixture(scope="session")
def server_home() -> Iterator[Path]:
    """A folder that the servers' own user may enter: none of pytest's, which each new session of pytest closes to others, also under a running server."""
    home = Path(tempfile.mkdtemp(prefix="lethe-servers-"))
    for folder in (home, *home.parents):
        if folder.stat().st_mode & 0o055 != 0o055 and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    yield home
    subprocess.run(
        ["/bin/rm", "-rf", home], check=False
    )  # a hundred databases are tens of thousands of files, which Python takes far longer to remove


@pytest.fixture(scope="session")
def postgres_server(server_home: Path) -> Iterator[Postgres]:
    """A running PostgreSQL 18, empty."""
    server = Postgres(server_home, password=PASSWORD)
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def postgres(postgres_server: Postgres) -> PostgresServer:
    """A running PostgreSQL with the migrated template."""
    prepared = PostgresServer(postgres_server)
    prepared.migrate_template()
    return prepared


@pytest.fixture(scope="session")
def redis_server(server_home: Path) -> Iterator[Redis]:
    """A running Redis."""
    server = Redis(server_home, password=PASSWORD)
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def object_store_server(server_home: Path) -> Iterator[SeaweedFS]:
    """A running SeaweedFS."""
    server = SeaweedFS(server_home, access_key="testaccess", secret_key="testsecret")
    server.start()
    yield server
    server.kill()
