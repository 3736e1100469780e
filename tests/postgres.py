"""A PostgreSQL server of the session's own, in a temporary directory, on a free port of the loopback.

Its programs come from the distribution's packages, which are kept from starting a server by themselves. PostgreSQL
refuses to run as root, so root runs it as the package's own user.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from shoal.cluster.local import packages
from shoal.model import programs
from tests.cluster import printing
from tests.ports import free_port

_CREATE_NONE = Path("/etc/postgresql-common/createcluster.conf")
_OPTIONS = "-c unix_socket_directories= -c listen_addresses=127.0.0.1 -c max_connections=40"


@dataclass(frozen=True)
class Postgres:
    """A server that runs. `port` stays the same when it is restarted."""

    programs: Path
    data: Path
    port: int
    user: str
    password: str

    def url(self, database: str = "postgres", port: int | None = None) -> str:
        return f"postgresql://{self.user}:{self.password}@127.0.0.1:{port or self.port}/{database}"

    @contextmanager
    def database(self) -> Iterator[str]:
        """The URL of a new, empty database."""
        name = f"store_{secrets.token_hex(4)}"
        self.execute(f"CREATE DATABASE {name}")
        try:
            yield self.url(name)
        finally:
            self.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def execute(self, statement: str, database: str = "postgres") -> list[Any]:
        import psycopg

        with psycopg.connect(self.url(database), autocommit=True, connect_timeout=10) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def start(self) -> None:
        log = self.data.parent / "log"
        self._run(
            "pg_ctl", "start", "-w", "-t", "60", "-D", self.data, "-l", log, "-o", f"{_OPTIONS} -c port={self.port}"
        )

    def stop(self, mode: str = "fast") -> None:
        """`immediate`: as in a crash, connections are cut and nothing is tidied up."""
        self._run("pg_ctl", "stop", "-w", "-t", "60", "-m", mode, "-D", self.data)

    def kill(self) -> None:
        """As by the kernel: SIGKILL to the server, whose processes then end by themselves."""
        server = int((self.data / "postmaster.pid").read_text().split()[0])
        children = Path(f"/proc/{server}/task/{server}/children").read_text().split()
        os.kill(server, signal.SIGKILL)
        end = time.monotonic() + 30
        while any(Path(f"/proc/{pid}/exe").exists() for pid in (server, *children)):
            assert time.monotonic() < end, "processes of the server go on"
            time.sleep(0.05)

    def make(self) -> None:
        secret = self.data.parent / "password"
        secret.write_text(self.password)
        shutil.chown(secret, self.user)
        self._run(
            "initdb", "-D", self.data, "-U", self.user, f"--pwfile={secret}", "-A", "scram-sha-256", "-E", "UTF8", "-N"
        )
        secret.unlink()

    def _run(self, program: str, *arguments: object) -> None:
        done = subprocess.run(
            [self.programs / program, *map(str, arguments)],
            user=self.user if os.geteuid() == 0 else None,
            group=self.user if os.geteuid() == 0 else None,
            extra_groups=[] if os.geteuid() == 0 else None,
            cwd="/",
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE
            if program != "pg_ctl"
            else subprocess.DEVNULL,  # a server inherits it, and keeps it open
            stderr=subprocess.STDOUT,
            text=True,
            timeout=90,
        )
        log = self.data.parent / "log"
        assert done.returncode == 0, f"{program}: {done.stdout or ''}{log.read_text() if log.exists() else ''}"


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A server for the session; afterwards nothing of it is left."""
    programs = _programs()
    directory = Path(tempfile.mkdtemp(prefix="shoal-pg-", dir="/tmp"))
    user = "postgres" if os.geteuid() == 0 else os.environ["USER"]
    if os.geteuid() == 0:
        shutil.chown(directory, user)
    server = Postgres(programs, directory / "data", free_port(), user, secrets.token_hex(12))
    try:
        server.make()
        server.start()
        try:
            yield server
        finally:
            server.stop("immediate")
    finally:
        shutil.rmtree(directory)


def _programs() -> Path:
    """The newest version's directory; installs one where there is none."""
    if programs.find("pg_ctlcluster") is None and packages.can_install() and not _CREATE_NONE.exists():
        _CREATE_NONE.parent.mkdir(parents=True, exist_ok=True)
        _CREATE_NONE.write_text("create_main_cluster = false\n")
    packages.ensure({"pg_ctlcluster": "postgresql"}, printing)
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
    assert found, "the package postgresql is there, but no server: apt-get install postgresql"
    return found[-1]
