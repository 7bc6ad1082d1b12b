"""A PostgreSQL server of the tests' own: one folder, one loopback port, a password; it can be stopped and started again.

PostgreSQL refuses to run as root, so that root's tests start it as the user that Debian's package makes.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

USER, PASSWORD = "secagg", "a pass/word:with@signs"  # what an URL has to encode
DEBIAN = Path("/usr/lib/postgresql")
STARTS_WITHIN_S = 120.0


def programs() -> Path | None:
    """Folder of initdb and postgres: SECAGG_POSTGRES, the path, or where Debian puts them; None where there are none."""
    chosen = os.environ.get("SECAGG_POSTGRES")
    if chosen:
        return Path(chosen)
    found = shutil.which("initdb")
    if found and shutil.which("postgres"):
        return Path(found).parent
    versions = sorted(DEBIAN.glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return versions[-1].parent if versions else None


@dataclass
class Server:
    """One server. `make` it, `start` and `stop` it as often as wanted, `remove` it."""

    programs: Path
    folder: Path = field(init=False)
    port: int = field(init=False)
    process: subprocess.Popen[bytes] | None = None
    databases: int = 0

    def make(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="secagg-postgres-"))
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        secret = self.folder / "password"
        secret.write_text(f"{PASSWORD}\n")
        if os.geteuid() == 0:
            owner = pwd.getpwnam("postgres")
            for path in (self.folder, secret):
                os.chown(path, owner.pw_uid, owner.pw_gid)
        self._run(
            "initdb", "-D", str(self.data), "-U", USER, f"--pwfile={secret}", "--auth=scram-sha-256", "--no-sync", "-E", "UTF8"
        )

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def start(self) -> None:
        settings = {"listen_addresses": "127.0.0.1", "port": self.port, "unix_socket_directories": "", "fsync": "off"}
        options = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [self.programs / "postgres", "-D", self.data, *options], stdout=log, stderr=log, **self._who()
            )
        deadline = time.monotonic() + STARTS_WITHIN_S
        while True:
            try:
                self.sql("SELECT 1")
            except psycopg.OperationalError:
                assert self.process.poll() is None, (self.folder / "log").read_text()
                assert time.monotonic() < deadline, "the server did not start"
                time.sleep(0.05)
            else:
                return

    def stop(self) -> None:
        """At once, as if the machine had lost power but for its disk."""
        if self.process is not None:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait(120)
            self.process = None

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def database(self) -> str:
        """URL of a new empty database."""
        self.databases += 1
        self.sql(f"CREATE DATABASE store{self.databases}")
        return self.url(f"store{self.databases}")

    def url(self, name: str, user: str = USER, password: str | None = None) -> str:
        secret = (PASSWORD if password is None else password).replace("/", "%2F").replace(":", "%3A").replace("@", "%40")
        return f"postgresql://{user}:{secret.replace(' ', '%20')}@127.0.0.1:{self.port}/{name}"

    def sql(self, statement: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        where = f"host=127.0.0.1 port={self.port} user={USER} dbname={database}"
        with psycopg.connect(where, password=PASSWORD, autocommit=True) as connection:
            cursor = connection.execute(statement)
            return list(cursor.fetchall()) if cursor.description else []

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run([self.programs / program, *arguments], capture_output=True, check=False, **self._who())
        assert done.returncode == 0, done.stderr.decode()

    def _who(self) -> dict[str, Any]:
        return {"user": "postgres", "group": "postgres", "extra_groups": [], "cwd": self.folder} if os.geteuid() == 0 else {}
