"""The whole service on one machine: servers from wheels, then gateway, worker, control and signer; started, watched and stopped together.

A server is started only where its URL is not configured. Secrets and ports live in LETHE_HOME, so that a second start finds the same data.
"""

import json
import os
import secrets
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
from psycopg import sql

from cli.embedded.object_store import SeaweedFS
from cli.embedded.postgres import Postgres
from cli.embedded.processes import Child, NotReady, free_port, spawn, wait_until
from cli.embedded.redis import Redis

DATABASE = "lethe"
ROLES = ("lethe_gateway", "lethe_worker", "lethe_control", "lethe_signer")
KEYS = ("encryption", "pepper", "cursor", "signing")


class AlreadyRunning(Exception):
    """Another process owns this LETHE_HOME."""


class Stack:
    """Servers and processes over one home folder.

    Args:
        home: data, logs, secrets. gateway_port: 0 for a free one. extra_env: passed to the service's own processes.
        configured: environment whose LETHE_DATABASE__OWNER_URL, LETHE_QUEUE__URL or LETHE_STORE__ENDPOINT, where set, keep a server from being started.
    """

    def __init__(
        self, home: Path, *, gateway_port: int = 0, extra_env: Mapping[str, str] | None = None, configured: Mapping[str, str] | None = None
    ) -> None:
        self.home = home.resolve()
        self.configured = dict(os.environ if configured is None else configured)
        self.extra_env = dict(extra_env or {})
        self.home.mkdir(parents=True, exist_ok=True)
        self.secrets = self._secrets()
        self.gateway_port = gateway_port or free_port()
        self.postgres = Postgres(self.home, password=self.secrets["superuser"])
        self.redis = Redis(self.home, password=self.secrets["redis"])
        self.store = SeaweedFS(self.home, access_key=self.secrets["s3_access"], secret_key=self.secrets["s3_secret"])
        self.children: dict[str, Child] = {}
        self.first_key: str | None = None

    @property
    def url(self) -> str:
        """Return the gateway's address."""
        return f"http://127.0.0.1:{self.gateway_port}"

    @property
    def api_key(self) -> str:
        """Return the first API key, kept in the home folder (mode 0600) for the demo and for a second start."""
        return self.first_key or (self.home / "api-key").read_text().strip()

    def start(self) -> None:
        """Start everything that is not configured elsewhere, migrate, bootstrap, and wait until the gateway is ready."""
        self._own()
        self.start_servers()
        self.bootstrap()
        for name in ("worker", "gateway", "control", "signer"):  # the worker first: it has the longest way
            self.start_process(name)
        self.wait_ready()

    def start_servers(self) -> None:
        """Start PostgreSQL, Redis and SeaweedFS where no URL is configured."""
        if "LETHE_DATABASE__OWNER_URL" not in self.configured:
            self.postgres.start()
            self._prepare_database()
        if "LETHE_QUEUE__URL" not in self.configured:
            self.redis.start()
        if "LETHE_STORE__ENDPOINT" not in self.configured:
            self.store.start()

    def env(self, role: str) -> dict[str, str]:
        """Return the environment of a process of `role` (`gateway`, `worker`, `control`, `signer`, `owner`); the signing key is the signer's alone."""
        env = {
            **self.configured,
            "LETHE_HOME": str(self.home),
            "LETHE_EMBEDDED": "true",
            "LETHE_KEYS__ENCRYPTION": self.secrets["encryption"],
            "LETHE_KEYS__PEPPER": self.secrets["pepper"],
            "LETHE_KEYS__CURSOR": self.secrets["cursor"],
            "LETHE_WORKER__SCRATCH": str(self.home / "scratch"),
            "OMP_NUM_THREADS": self.configured.get("OMP_NUM_THREADS", "1"),
            **({"LETHE_KEYS__SIGNING": self.secrets["signing"], "LETHE_SIGNER__ORIGIN": self.origin} if role == "signer" else {}),
            **self.extra_env,
        }
        if "LETHE_DATABASE__OWNER_URL" not in self.configured:
            env["LETHE_DATABASE__OWNER_URL" if role == "owner" else "LETHE_DATABASE__URL"] = self.database_url(role)
        if "LETHE_QUEUE__URL" not in self.configured:
            env["LETHE_QUEUE__URL"] = self.redis.url
        if "LETHE_STORE__ENDPOINT" not in self.configured:
            env |= {
                "LETHE_STORE__ENDPOINT": self.store.endpoint,
                "LETHE_STORE__PUBLIC_ENDPOINT": self.store.endpoint,
                "LETHE_STORE__ACCESS_KEY": self.store.access_key,
                "LETHE_STORE__SECRET_KEY": self.store.secret_key,
            }
        return env

    @property
    def origin(self) -> str:
        """Return the name of this stack's audit log."""
        return f"lethe.local/{self.secrets['log'][:16]}"

    def database_url(self, role: str) -> str:
        """Return the database URL of a role."""
        name = f"lethe_{role}"
        return self.postgres.url(name, self.secrets[name], DATABASE)

    def bootstrap(self) -> None:
        """Run the migrations and `control.bootstrap`; keep the first API key where one is printed."""
        done = subprocess.run(
            [sys.executable, "-m", "control.bootstrap", "--migrate"],
            env=self.env("owner"),
            capture_output=True,
            text=True,
            check=False,
            cwd=self.home,
        )
        if done.returncode != 0:
            raise NotReady(f"migration or bootstrap failed:\n{done.stderr[-4000:]}")
        for line in done.stdout.splitlines():
            if line.startswith("{") and "api_key" in line:
                self.first_key = str(json.loads(line)["api_key"])
                kept = self.home / "api-key"
                kept.touch(mode=0o600)
                kept.write_text(self.first_key + "\n")
        self._set_role_passwords()

    def start_process(self, name: str) -> Child:
        """Start `gateway`, `worker`, `control` or `signer`; a running one is left alone."""
        held = self.children.get(name)
        if held is not None and held.running:
            return held
        commands: dict[str, list[str | Path]] = {
            "gateway": [
                sys.executable, "-m", "uvicorn", "--factory", "api.app:from_environment", "--host", "127.0.0.1", "--port", str(self.gateway_port),
                "--log-level", "warning", "--no-server-header",
                "--timeout-graceful-shutdown", "5",
            ],
            "worker": [sys.executable, "-m", "celery", "-A", "worker.celery_app", "worker", "-Q", "cpu", "-c", "1", "--pool", "prefork", "-l", "WARNING"],
            "control": [sys.executable, "-m", "control"],
            "signer": [sys.executable, "-m", "control.signer"],
        }  # fmt: skip
        child = spawn(name, commands[name], log=self.home / "logs" / f"{name}.log", env=self.env(name), cwd=self.home)
        self.children[name] = child
        return child

    def wait_ready(self, *, timeout_s: float = 180.0) -> None:
        """Wait, as long as a slow machine needs to load its libraries for the first time, until `/readyz` says `ok`: database, migration, store and signer are well, and a worker has published what it can run."""
        wait_until(self._ready, self.children["gateway"], timeout_s=timeout_s)

    def watch(self) -> None:
        """Start again what ends; returns only by KeyboardInterrupt or a signal's exception."""
        while True:
            time.sleep(1)
            for name, child in list(self.children.items()):
                if not child.running:
                    print(f"{name} ended with code {child.process.returncode}; starting it again", file=sys.stderr)
                    self.start_process(name)

    def stop(self) -> None:
        """Stop everything this object started, processes first, then servers."""
        for name in ("worker", "control", "gateway", "signer"):
            child = self.children.get(name)
            if child is not None:
                child.stop(timeout_s=20)
        self.redis.stop()
        self.store.stop()
        self.postgres.stop()
        (self.home / "stack.lock").unlink(missing_ok=True)

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=2) as answer:  # noqa: S310  our own loopback server
                return json.load(answer)["status"] == "ok"
        except (urllib.error.URLError, OSError):
            return False

    def _secrets(self) -> dict[str, str]:
        kept = self.home / "secrets.json"
        names = ("superuser", "redis", "s3_access", "s3_secret", *KEYS, "log", "lethe_owner", *ROLES)
        held: dict[str, str] = json.loads(kept.read_text()) if kept.exists() else {}
        for name in names:
            held.setdefault(name, secrets.token_hex(32 if name in KEYS else 16))
        kept.touch(mode=0o600)
        kept.write_text(json.dumps(held))
        return held

    def _own(self) -> None:
        """Take the lock of the home folder; a lock whose owner is gone is taken over."""
        lock = self.home / "stack.lock"
        me = {"pid": os.getpid(), "started": psutil.Process().create_time()}
        if lock.exists():
            held: dict[str, Any] = json.loads(lock.read_text() or "{}")
            pid = int(held.get("pid", 0))
            if pid != me["pid"] and psutil.pid_exists(pid) and abs(psutil.Process(pid).create_time() - float(held["started"])) < 1:
                raise AlreadyRunning(f"process {pid} already runs a stack over {self.home}; stop it or set LETHE_HOME to another folder")
        lock.write_text(json.dumps(me))

    def _prepare_database(self) -> None:
        with self.postgres.admin() as connection:
            create_owner(connection, self.secrets["lethe_owner"])
            if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,)).fetchone() is None:
                connection.execute(sql.SQL("CREATE DATABASE {} OWNER lethe_owner").format(sql.Identifier(DATABASE)))

    def _set_role_passwords(self) -> None:
        if "LETHE_DATABASE__OWNER_URL" in self.configured:
            return
        with self.postgres.admin() as connection:
            for role in ROLES:
                connection.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(role), sql.Literal(self.secrets[role])))


def create_owner(connection: Any, password: str) -> None:
    """Create the role that owns tables and runs migrations, or set its password; it is no superuser."""
    if connection.execute("SELECT 1 FROM pg_roles WHERE rolname = 'lethe_owner'").fetchone() is None:
        connection.execute("CREATE ROLE lethe_owner LOGIN CREATEROLE")
    connection.execute(sql.SQL("ALTER ROLE lethe_owner PASSWORD {}").format(sql.Literal(password)))
