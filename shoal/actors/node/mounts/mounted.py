"""One mount of the node: its helper process, from start to end.

<state_dir>/node/mounts/<identity>.json   what serves it, written before the helper is used; removed once it is gone
<state_dir>/node/mounts/<identity>.log    what the helper says
<state_dir>/node/mounts/<identity>.d/     the helper's own files: caches
<run_dir>/<cluster>/v/<identity>          the point
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from shoal.actors.engines import mount_namespaces
from shoal.actors.engines.disks import mounts as mount_table
from shoal.actors.node.mounts import threads
from shoal.actors.node.mounts.contract import Helper, MountKind
from shoal.actors.node.mounts.service_watch import ServiceWatch
from shoal.model.errors import ShoalError, Unavailable
from shoal.model.mounts import MountSpec, mount_of
from shoal.model.private_directory import make_private_directory

log = logging.getLogger("shoal.node")

CALL_S = 20.0
"""The longest that one call into a mount may take for those who wait for it."""

_END_S = 15.0
"""The longest that a helper may take to write what it holds, once its mount is unmounted."""

_LOOK_S = 0.01
_LOG_LIMIT = 1 << 20


@dataclass(frozen=True, slots=True)
class Served:
    """What serves a mount. `pid`, `started`: the helper's, as in `ContainerRecord`."""

    identity: str
    spec: MountSpec
    inside: str
    pid: int
    started: int


@dataclass(slots=True, eq=False)
class Mounted:
    """One mount. `served` None: it is not mounted."""

    identity: str
    kind: MountKind
    spec: MountSpec
    files: Path
    point: Path
    served: Served | None = None
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while it is started, healed, ended."""
    unused_since: float | None = None
    busy: int = 0
    """How many calls of the node's own use it now."""
    still_since: float | None = None
    """Since when its helper has not answered."""
    service: ServiceWatch = field(default_factory=ServiceWatch)
    _probe: asyncio.Future[os.stat_result] | None = None

    def still_for(self, now: float) -> float:
        """For how long it has not answered, or what is behind it; 0: it does."""
        since = [each for each in (self.still_since, self.service.silent_since) if each is not None]
        return max(0.001, now - min(since)) if since else 0.0

    @property
    def root(self) -> Path:
        """What containers see."""
        return self.point / self.served.inside if self.served is not None else self.point

    @property
    def directory(self) -> Path:
        return self.files / f"{self.identity}.d"

    @property
    def _file(self) -> Path:
        return self.files / f"{self.identity}.json"

    @property
    def _log(self) -> Path:
        return self.files / f"{self.identity}.log"

    async def start(self) -> None:
        """Mounts it. If it raises, nothing is left."""
        await asyncio.to_thread(self._make_directories)
        helper = await self.kind.helper(self.spec, self.point, self.directory)
        process = await asyncio.to_thread(self._launch, helper)
        try:
            await self._wait_until_mounted(process, helper.ready_s)
            if helper.inside:
                await threads.within(CALL_S, f"the first call into {self.identity}", lambda: self._make_inside(helper))
        except BaseException:
            await asyncio.shield(self.end(force=True))
            raise

    async def end(self, *, force: bool) -> None:
        """Unmounts it, and waits until its helper has ended. `force`: what uses it or hangs in it gets an error, and
        what its helper holds is lost."""
        try:
            await threads.within(CALL_S, "unmounting", lambda: mount_namespaces.unmount(self.point, force=force))
        except (OSError, ShoalError) as error:
            if not force:
                log.warning("mount %s: %s", self.identity, error)
            with suppress(OSError, ShoalError):
                await threads.within(CALL_S, "unmounting", lambda: mount_namespaces.unmount(self.point, force=True))
        served, self.served = self.served, None
        if served is not None:
            limit = time.monotonic() + (0 if force else _END_S)
            while _runs(served) and time.monotonic() < limit:  # noqa: ASYNC110 - a process of another parent, perhaps
                await asyncio.sleep(_LOOK_S)
            _kill(served)
        self.still_since, self._probe, self.service = None, None, ServiceWatch(self.service.silent_since)
        await asyncio.to_thread(self._forget, served)

    def resume(self) -> None:
        """Takes over what an earlier node actor left; blocks."""
        try:
            data = json.loads(self._file.read_text())
            self.served = Served(**{**data, "spec": mount_of(data["spec"])})
        except (OSError, ValueError, TypeError, KeyError):
            self.served = None

    async def broken(self, now: float, patience_s: float) -> str | None:
        """Why it must be started again; None where it is well, or has not answered for less than `patience_s`. Called
        again and again: a look that hangs is waited for by the next."""
        if self.served is None:
            return "it is not mounted"
        if not _runs(self.served):
            return "its helper has ended"
        if self._probe is None:
            root = self.root
            self._probe = threads.begin(lambda: os.stat(root))
        done, _ = await asyncio.wait([self._probe], timeout=1.0)
        if done:
            error, self._probe, self.still_since = self._probe.exception(), None, None
            if error is not None:
                return str(error)
            waited_s = self.service.look(now, partial(self.kind.answers, self.spec, self.directory))
            return f"what is behind it has not answered for {patience_s:g} s" if waited_s >= patience_s else None
        if self.still_since is None:
            self.still_since = now
            log.warning("mount %s does not answer", self.identity)
        return f"it has not answered for {patience_s:g} s" if now - self.still_since >= patience_s else None

    def _make_directories(self) -> None:
        for directory in (self.files, self.directory, self.point.parent):
            make_private_directory(directory)
        with suppress(OSError):
            mount_namespaces.unmount(self.point, force=True)  # what a crash left
        self.point.mkdir(mode=0o700, exist_ok=True)

    def _make_inside(self, helper: Helper) -> None:
        inside = self.point / helper.inside
        if not inside.is_dir():
            inside.mkdir(exist_ok=True)
            inside.chmod(0o777)  # any user of a sandbox may write, as in a directory of its own

    def _launch(self, helper: Helper) -> subprocess.Popen[bytes]:
        if self._log.exists() and self._log.stat().st_size > _LOG_LIMIT:
            self._log.unlink()
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        output = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            process = subprocess.Popen(
                helper.argv,
                env={**kept, **helper.env},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                group=helper.group,
                cwd="/",
            )
        except OSError as error:
            raise Unavailable(f"the helper of {self.identity} does not start: {error}") from None
        finally:
            os.close(output)
        self.served = Served(self.identity, self.spec, helper.inside, process.pid, _start_of(process.pid))
        temporary = self._file.with_suffix(".new")
        temporary.write_text(json.dumps(asdict(self.served)))
        temporary.replace(self._file)
        return process

    async def _wait_until_mounted(self, process: subprocess.Popen[bytes], ready_s: float) -> None:
        limit = time.monotonic() + ready_s
        while not await asyncio.to_thread(self._is_mounted):
            if process.poll() is not None:
                raise Unavailable(f"{self.identity} cannot be mounted: {self._tail()}")
            if time.monotonic() > limit:
                raise Unavailable(f"{self.identity} was not mounted within {ready_s:g} s: {self._tail()}")
            await asyncio.sleep(_LOOK_S)
        process.returncode = 0  # it outlives this actor: avoids a warning that it still runs

    def _is_mounted(self) -> bool:
        return any(entry.point == self.point for entry in mount_table.table())

    def _tail(self) -> str:
        try:
            return " | ".join(self._log.read_text("utf-8", "replace").splitlines()[-3:])[-600:]
        except OSError:
            return "its helper said nothing"

    def _forget(self, served: Served | None) -> None:
        if served is not None:
            for file in self.kind.remains(served.pid):
                file.unlink(missing_ok=True)
        with suppress(OSError):
            self.point.rmdir()
        shutil.rmtree(self.directory, ignore_errors=True)
        self._log.unlink(missing_ok=True)
        self._file.unlink(missing_ok=True)


def _start_of(pid: int) -> int:
    """When the process started, in clock ticks after boot; 0 if there is none, or it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return 0 if fields[0] == "Z" else int(fields[19])
    except (OSError, ValueError, IndexError):
        return 0


def _runs(served: Served) -> bool:
    if served.started != 0 and _start_of(served.pid) == served.started:
        return True
    with suppress(OSError):  # a child of this actor, perhaps, which is to be buried
        os.waitpid(served.pid, os.WNOHANG)
    return False


def _kill(served: Served) -> None:
    """The helper, and what it has started."""
    if served.started and _start_of(served.pid) not in (0, served.started):
        return  # another process by now
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(served.pid, signal.SIGKILL)
