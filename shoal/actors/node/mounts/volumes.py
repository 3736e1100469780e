"""The kind of mounts for volumes: JuiceFS.

Without write-back: `close` and `fsync` return once the data is in the object storage and the metadata in the database.
What another node has cached of attributes and names is at most half a second old.
"""

from __future__ import annotations

import asyncio
import secrets
import ssl
import subprocess
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from urllib.parse import urlsplit

from shoal.actors.handles import call, find_actor
from shoal.actors.node.mounts import threads
from shoal.actors.node.mounts.contract import Helper, MountKind
from shoal.actors.node.mounts.juicefs import QUIET, environment, juicefs, kept_environment
from shoal.actors.node.mounts.versions import change_versions
from shoal.actors.volumes import VersionChange, VolumeAccess
from shoal.model.errors import FailedPrecondition, Unavailable
from shoal.model.ids import CONTROLLER
from shoal.model.mounts import MountSpec
from shoal.model.volumes import FRESH_S

COMMIT_S = 30.0
"""The longest that a commit may take."""

_ASK_S = 60.0
_MOST_OPEN_MIB = 128
_NOWHERE = "192.0.2.1:0"
"""Where its metrics are: at an address of no machine (RFC 5737), so that it goes on without. It has no option to have
none, and every account of the machine could read them."""

_BUCKET = "bucket"
"""The file of the helper's that tells where the data is."""

_STORAGE_S = 5.0

_INSIDE = "d"
"""What containers see of a volume. Above it are JuiceFS's own files, which tell of its settings."""


async def volume_access(volume_id: str) -> VolumeAccess:
    """How to mount a volume. `VolumeNotFound`, `Unavailable`."""
    controller = await asyncio.to_thread(find_actor, CONTROLLER)
    if controller is None:
        raise Unavailable("there is no controller to ask how to mount the volume")
    access: VolumeAccess = await call(controller, "volume_access", volume_id, timeout_s=_ASK_S)
    return access


class VolumeMounts(MountKind):
    """`access`: asks how to mount a volume; `cache_mib`: of its data on the node's disk."""

    name = "volume"

    def __init__(self, access: Callable[[str], Awaitable[VolumeAccess]], cache_mib: int) -> None:
        self._access = access
        self._cache_mib = cache_mib

    def identity(self, spec: MountSpec) -> str:
        return spec.volume

    async def helper(self, spec: MountSpec, point: Path, directory: Path) -> Helper:
        access = await self._access(spec.volume)
        await asyncio.to_thread(_check_here, access)
        await asyncio.to_thread((directory / _BUCKET).write_text, access.bucket)
        argv = (
            juicefs(),
            QUIET,
            "mount",
            "--no-usage-report",
            "--no-syslog",
            "--backup-meta=0",
            f"--cache-dir={directory / 'cache'}",
            f"--cache-size={self._cache_mib}",
            f"--buffer-size={_MOST_OPEN_MIB}",
            f"--attr-cache={FRESH_S}",
            f"--entry-cache={FRESH_S}",
            f"--dir-entry-cache={FRESH_S}",
            f"--metrics={_NOWHERE}",
            f"--bucket={access.bucket}",
            "-o",
            "allow_other",
            access.metadata,
            str(point),
        )
        return Helper(argv, environment(access), _INSIDE)

    async def commit(self, spec: MountSpec, point: Path, directory: Path) -> None:
        """Writes a file through the mount, and has another JuiceFS process, which has cached nothing, read it: what was
        closed before it is at least as durable, since each `close` waited for its own."""
        access = await self._access(spec.volume)
        name = f".commit-{secrets.token_hex(8)}"
        content = secrets.token_hex(32)
        marker, copy = point / name, directory / name

        def write() -> None:
            # In a process of its own: what this one has open, each process that it starts would close, and so wait for
            # an object storage that is away.
            subprocess.run(
                ["dd", f"of={marker}", "conv=fsync,excl", "status=none"],
                input=content.encode(),
                capture_output=True,
                timeout=COMMIT_S,
                check=True,
            )

        def read() -> str:
            done = subprocess.run(
                [juicefs(), QUIET, "sync", f"jfs://SHOAL_META/{name}", str(copy)],
                env={**kept_environment(), **environment(access), "SHOAL_META": access.metadata},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=COMMIT_S,
                check=False,
            )
            return copy.read_text() if done.returncode == 0 and copy.exists() else ""

        def remove() -> None:
            copy.unlink(missing_ok=True)
            marker.unlink(missing_ok=True)

        try:
            async with asyncio.timeout(COMMIT_S):
                await asyncio.shield(threads.begin(write))
                seen = await asyncio.shield(threads.begin(read))
        except (OSError, TimeoutError, subprocess.SubprocessError) as error:
            raise _not_committed(spec, str(error) or f"it took longer than {COMMIT_S:g} s") from None
        finally:
            threads.begin(remove)
        if seen != content:
            raise _not_committed(spec, "what was written is not seen by another reader")

    def answers(self, spec: MountSpec, directory: Path) -> bool:
        """Whether the object storage answers, whatever it says. JuiceFS itself waits for one that is away, so that an
        outage costs time and loses nothing."""
        return storage_answers((directory / _BUCKET).read_text())

    def remains(self, pid: int) -> Sequence[Path]:
        """The socket at which JuiceFS hands over to a newer one. It has no setting for where."""
        return [Path(f"/tmp/fuse_fd_comm.{pid}")]

    async def change_versions(self, point: Path, change: VersionChange) -> None:
        await threads.begin(lambda: change_versions(juicefs(), point, _INSIDE, change))


def storage_answers(url: str, within_s: float = _STORAGE_S) -> bool:
    """Whether a server speaks HTTP there; no secret is sent, so it need not prove who it is."""
    parts = urlsplit(url)
    host = parts.netloc
    if parts.scheme == "https":
        connection: HTTPConnection = HTTPSConnection(host, timeout=within_s, context=_unproven())
    else:
        connection = HTTPConnection(host, timeout=within_s)
    with closing(connection):
        try:
            connection.request("HEAD", parts.path or "/")
            connection.getresponse()
        except (OSError, HTTPException):
            return False
    return True


def _unproven() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _check_here(access: VolumeAccess) -> None:
    """Raises what keeps this machine from mounting it."""
    if access.only_on_head and not Path(access.metadata.removeprefix("sqlite3://")).exists():
        raise FailedPrecondition(
            "volumes: their metadata is in files of the head, so other machines cannot mount them; set store.url "
            "to a PostgreSQL database that all machines reach, or create the sandbox on the head",
            state="head_only",
            field="volumes",
        )
    if not Path("/dev/fuse").exists():
        raise FailedPrecondition("volumes need /dev/fuse on the node: modprobe fuse", state="no_fuse")


def _not_committed(spec: MountSpec, why: str) -> Unavailable:
    return Unavailable(
        f"volume {spec.volume} is not committed: {why}; what its sandboxes have closed without an error is kept. "
        "Try again once object storage and database answer",
        field="volume",
    )
