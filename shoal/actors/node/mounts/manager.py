"""The mounts of one node: each is shared by the containers that use it, watched, started again when it is lost, and
ended when nothing has used it for a while. Who uses what is in the containers' records, so nothing is counted twice."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shoal.actors.engines import mount_namespaces
from shoal.actors.node.mounts import threads
from shoal.actors.node.mounts.contract import MountKind
from shoal.actors.node.mounts.mounted import CALL_S, Mounted
from shoal.actors.node.records import ContainerRecord, Stage
from shoal.actors.volumes import VersionChange
from shoal.model import tasks
from shoal.model.errors import FailedPrecondition, InvalidRequest, NotFound, ShoalError
from shoal.model.mounts import MountSpec, in_order

log = logging.getLogger("shoal.node")

LINGER_S = 60.0
"""How long a mount stays for the next sandbox."""

STILL_S = 60.0
"""How long a mount may stand still, until it is ended by force, and who waits for it gets an error."""


@dataclass(frozen=True, slots=True)
class MountState:
    """A mount as it is told: `uses`: containers that have it; `still_s`: for how long it has not answered, 0: it does,
    or nothing uses it."""

    identity: str
    kind: str
    uses: int
    still_s: float


@dataclass(slots=True)
class Mounts:
    """`files`: where what must be found after a crash is kept; `points`: where is mounted; `records`: the containers of
    the node."""

    kinds: Mapping[str, MountKind]
    files: Path
    points: Path
    records: Callable[[], Iterable[ContainerRecord]] = tuple
    clock: Callable[[], float] = time.monotonic
    _mounted: dict[str, Mounted] = field(default_factory=dict)

    async def open(self) -> None:
        """Finds what an earlier node actor mounted."""
        for file in await asyncio.to_thread(lambda: sorted(self.files.glob("*.json"))):
            found = Mounted(
                file.stem, next(iter(self.kinds.values())), MountSpec("/"), self.files, self._point(file.stem)
            )
            await asyncio.to_thread(found.resume)
            if found.served is None or found.served.spec.kind not in self.kinds:
                await found.end(force=True)
                continue
            found.spec, found.kind = found.served.spec, self.kinds[found.served.spec.kind]
            self._mounted[found.identity] = found

    async def attach(self, record: ContainerRecord, *, again: str | None = None) -> None:
        """Puts what the record mounts into its container. `again`: only what is of that mount, in place of what was
        there. The record is on disk by now, so that its mounts are known to be used."""
        for spec in in_order(record.mounts):
            if again is None or self._kind(spec).identity(spec) == again:
                mounted = await self._ensure(spec)
                await _put_into(record, mounted, spec, again=again is not None)

    async def commit(self, identity: str) -> bool:
        """Returns once what was written and closed through a mount is durable and seen elsewhere; False where it is not
        mounted here, and so nothing can be on its way. `Unavailable`."""
        mounted = self._mounted.get(identity)
        if mounted is None or mounted.served is None:
            return False
        await mounted.kind.commit(mounted.spec, mounted.point, mounted.directory)
        return True

    async def change_versions(self, spec: MountSpec, change: VersionChange) -> None:
        """Makes, restores or removes versions of what a spec names, which is mounted for that."""
        mounted = await self._ensure(spec)
        mounted.busy += 1
        try:
            await mounted.kind.change_versions(mounted.point, change)
        finally:
            mounted.busy -= 1

    async def let_go(self, identity: str) -> None:
        """Unmounts at once what no container uses; `FailedPrecondition` where one does."""
        mounted = self._mounted.get(identity)
        if mounted is None:
            return
        async with mounted.turn:
            if self._users(identity) or mounted.busy:
                raise FailedPrecondition(f"{identity} is in use", state="mounted")
            await mounted.end(force=False)
            self._mounted.pop(identity, None)

    async def tend(self) -> None:
        """Looks after all of them, each by itself: one that hangs keeps no other waiting."""
        await asyncio.gather(*(self._tend(each) for each in list(self._mounted.values())))

    def states(self) -> Sequence[MountState]:
        """What there is, by identity."""
        now = self.clock()
        return [
            MountState(each.identity, each.kind.name, uses, each.still_for(now) if uses else 0.0)
            for each in sorted(self._mounted.values(), key=lambda each: each.identity)
            for uses in [len(self._users(each.identity))]
        ]

    async def close(self) -> None:
        """Unmounts everything. No container is left that uses it."""
        await asyncio.gather(*(each.end(force=False) for each in self._mounted.values()))
        self._mounted.clear()

    async def _ensure(self, spec: MountSpec) -> Mounted:
        kind = self._kind(spec)
        identity = kind.identity(spec)
        mounted = self._mounted.get(identity)
        if mounted is None:
            mounted = self._mounted[identity] = Mounted(identity, kind, spec, self.files, self._point(identity))
        # A caller that goes away does not leave a mount half made.
        await asyncio.shield(tasks.shared(self._started(mounted), "mount"))
        return mounted

    async def _started(self, mounted: Mounted) -> None:
        async with mounted.turn:
            self._mounted.setdefault(mounted.identity, mounted)  # it may have been ended while we waited
            mounted.unused_since = None
            if mounted.served is None:
                try:
                    await mounted.start()
                except BaseException:
                    if not self._users(mounted.identity):
                        self._mounted.pop(mounted.identity, None)
                    raise

    async def _tend(self, mounted: Mounted) -> None:
        if mounted.turn.locked():
            return
        users = self._users(mounted.identity)
        now = self.clock()
        if users or mounted.busy:
            mounted.unused_since = None
        elif mounted.unused_since is None:
            mounted.unused_since = now
        if mounted.unused_since is not None and now - mounted.unused_since >= LINGER_S:
            async with mounted.turn:
                if not self._users(mounted.identity) and not mounted.busy:
                    await mounted.end(force=False)
                    self._mounted.pop(mounted.identity, None)
            return
        why = await mounted.broken(now, STILL_S)
        if why is not None and not mounted.turn.locked():
            await self._heal(mounted, why)

    async def _heal(self, mounted: Mounted, why: str) -> None:
        async with mounted.turn:
            log.warning("mount %s is lost: %s", mounted.identity, why)
            await mounted.end(force=True)
            if not self._users(mounted.identity):
                self._mounted.pop(mounted.identity, None)
                return
            try:
                await mounted.start()
            except ShoalError as error:
                log.warning("mount %s: %s", mounted.identity, error)  # the next look tries again
                return
        for record in self._users(mounted.identity):
            if record.stage is Stage.READY:
                try:
                    await self.attach(record, again=mounted.identity)
                except ShoalError as error:
                    log.warning("mount %s is not back in %s: %s", mounted.identity, record.key, error)

    def _users(self, identity: str) -> list[ContainerRecord]:
        return [
            record
            for record in self.records()
            if record.stage is not Stage.STOPPED
            and any(self._kind(spec).identity(spec) == identity for spec in record.mounts)
        ]

    def _kind(self, spec: MountSpec) -> MountKind:
        kind = self.kinds.get(spec.kind)
        if kind is None:
            raise FailedPrecondition(f"volumes: this node mounts no {spec.kind}; upgrade it", state="no_kind")
        return kind

    def _point(self, identity: str) -> Path:
        return self.points / identity


async def _put_into(record: ContainerRecord, mounted: Mounted, spec: MountSpec, *, again: bool) -> None:
    def put() -> None:
        tree = mount_namespaces.clone(mounted.root, spec.sub_path, read_only=spec.read_only)
        try:
            mount_namespaces.attach(record.pid, tree, spec.path, again=again)
        finally:
            os.close(tree)

    try:
        await threads.within(CALL_S, f"mounting at {spec.path}", put)
    except OSError as error:
        raise _told(error, spec) from None


def _told(error: OSError, spec: MountSpec) -> ShoalError:
    if error.errno == errno.ENOSYS:
        return FailedPrecondition(
            "volumes: the node's kernel is too old to mount them; it must be Linux 5.6, or 5.12 for read_only",
            state="kernel",
            field="volumes",
        )
    if error.errno == errno.ENOENT and spec.sub_path:
        return NotFound(f"volumes: there is no directory {spec.sub_path:.200} to mount at {spec.path:.200}")
    if error.errno in (errno.EXDEV, errno.ELOOP):
        return InvalidRequest(f"volumes: {spec.sub_path:.200} is a link that leads out of the volume", field="volumes")
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return InvalidRequest(
            f"volumes: {spec.path:.200}, or sub_path {spec.sub_path:.200}, is no directory", field="volumes"
        )
    return FailedPrecondition(f"volumes: {spec.path:.200} cannot be mounted: {error.strerror}", state="mount")
