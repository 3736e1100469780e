"""The engine: the contract's methods, each a blocking body in a bounded thread."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from pathlib import Path

from shoal.actors.engines import cgroup_parent
from shoal.actors.engines.contract import (
    Ability,
    Container,
    ContainerSpec,
    Engine,
    EngineEvent,
    EventKind,
    Usage,
    shows_processes,
)
from shoal.actors.engines.disks import Disks
from shoal.actors.engines.gvisor import Gvisor
from shoal.actors.engines.image_store import ImageInfo, ImageStore
from shoal.actors.engines.oci import runtimes, writable
from shoal.actors.engines.oci.bundle import Machine
from shoal.actors.engines.oci.containers import Containers
from shoal.actors.engines.oci.events import Listeners
from shoal.actors.engines.oci.filters import Filters
from shoal.actors.engines.oci.groups import Groups
from shoal.actors.engines.oci.image_mounts import ImageMounts
from shoal.actors.engines.oci.memory import Memories
from shoal.actors.engines.oci.protocols import Layers
from shoal.actors.engines.oci.records import Records
from shoal.actors.engines.oci.runtime_state import close_state, open_state
from shoal.actors.engines.oci.sealed import SealedPrograms
from shoal.actors.engines.oci.watch import Watch
from shoal.actors.engines.seccomp import profile_json
from shoal.actors.engines.shared_counts import queue_limits
from shoal.actors.engines.threads import EngineThreads, not_open
from shoal.model import tasks
from shoal.model.errors import FailedPrecondition

_log = logging.getLogger(__name__)

_KILLS, _LOOKS, _WALKS, _PULLS = 4, 4, 2, 4
_IPV6 = Path("/proc/sys/net/ipv6")


class OciEngine(Engine):
    """Containers of this machine's own, in `root`. `images`: makes the image store over `layers`, given the engine's
    threads and, once it is open, containers. At most `start_limit` containers are started or removed at once; `disks`,
    `pids`, `seccomp`: as for Docker's; `gvisor`: if there is one."""

    name = "oci"

    def __init__(
        self,
        root: Path,
        layers: Layers,
        images: Callable[[EngineThreads, Callable[[], Containers]], ImageStore],
        start_limit: int = 4,
        *,
        disks: Disks | None = None,
        pids: int | None = None,
        seccomp: str | None = None,
        gvisor: Gvisor | None = None,
    ) -> None:
        self.abilities = frozenset({Ability.PULL, Ability.PAUSE, Ability.KILL, Ability.IMAGE_MOUNTS})
        self.runtimes: tuple[str, ...] = ()
        self._root = root
        self._layers = layers
        self._disks = disks
        self._pids = pids
        self._seccomp = seccomp
        self._gvisor = gvisor
        sizes = {"start": start_limit, "kill": _KILLS, "look": _LOOKS, "walk": _WALKS, "pull": _PULLS}
        self._threads = EngineThreads(self.name, sizes)
        self.images = images(self._threads, self._opened)
        self._memories = Memories(root / "memory", layers.find)
        self._sealed = SealedPrograms()
        self._containers: Containers | None = None
        self._watch: Watch | None = None
        self._listeners = Listeners()
        self._closed = False

    async def open(self) -> None:
        if self._closed:
            raise FailedPrecondition("the engine is closed; make another one", state="closed")
        if self._containers is not None:
            return
        groups = Groups(await asyncio.to_thread(Path("/proc/self/mountinfo").read_text))
        watch = Watch(groups, self._exited, self._out_of_memory)
        try:
            containers = await self._threads.run("look", lambda: self._open(groups, watch))
        except BaseException:
            watch.close()
            raise
        self.runtimes = tuple(containers.known_runtimes)
        if containers.own_disks is not None:
            self.abilities |= {Ability.DISK_LIMIT}
        if not all(map(shows_processes, self.runtimes)):
            self.abilities |= {Ability.CHECKPOINT}
        self._watch, self._containers = watch, containers
        await self._threads.run("look", containers.watch_all)

    def _open(self, groups: Groups, watch: Watch) -> Containers:
        found = runtimes.found(self._gvisor)
        default = runtimes.RUNC
        if default.name not in found:
            raise FailedPrecondition(
                f"{default.program} is not on this machine; run: apt-get install -y {default.program}",
                state="not installed",
            )
        disks, problem = self._disks, None if self._disks is None else self._disks.problem()
        if problem is not None:
            _log.warning("disks are watched, not limited: %s", problem)
            disks = None
        self._layers.open()
        self._memories.sweep(unfinished=True)
        state = open_state(self._root)
        mount_points = self._root / "mount-points"
        writable.make_mount_points(mount_points)
        kept_tmp = self._root / "kept-tmp"
        writable.make_kept_tmp(kept_tmp)
        records = Records(self._root / "containers")
        records.open()
        profile = json.loads(self._seccomp or profile_json())
        containers = Containers(
            records,
            self._layers,
            groups,
            watch,
            Machine(profile, queue_limits(), has_ipv6=_IPV6.exists()),
            Filters(self._root / "filters", profile),
            self._sealed,
            found,
            state,
            mount_points,
            kept_tmp,
            self._memories,
            disks,
            cgroup_parent.prepare("cgroupfs", self._pids or cgroup_parent.most_pids()),
        )
        containers.sweep()
        return containers

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._listeners.close()
        if self._watch is not None:
            self._watch.close()
        await asyncio.to_thread(self._let_go)

    def _let_go(self) -> None:
        self._threads.close()
        self._sealed.close()
        close_state(self._root)
        self._layers.close()
        if self._disks is not None:
            self._disks.close()

    async def start(self, spec: ContainerSpec) -> Container:
        containers = self._opened()
        return await self._threads.undoable(
            "start", lambda abandoned: containers.start(spec, abandoned), lambda: self.remove(spec.key)
        )

    async def stop(self, key: str) -> None:
        containers = self._opened()
        await self._threads.run("start", lambda: containers.stop(key))

    async def restart(self, key: str) -> Container:
        containers = self._opened()
        return await self._threads.undoable(
            "start", lambda abandoned: containers.restart(key, abandoned), lambda: self.stop(key)
        )

    async def kill(self, key: str, *, files_closed: bool = True) -> None:
        containers = self._opened()
        await self._threads.run("kill", lambda: containers.kill(key, files_closed=files_closed))

    async def remove(self, key: str) -> None:
        containers = self._opened()
        await self._threads.run("start", lambda: containers.remove(key))

    async def forget_disks(self, keep: Collection[str]) -> None:
        self._opened()
        disks, kept = self._disks, frozenset(keep)
        if disks is not None:
            await self._threads.run("look", lambda: disks.forget_all_but(kept))

    async def get(self, key: str) -> Container:
        containers = self._opened()
        return await self._threads.run("look", lambda: containers.get(key))

    async def list(self, labels: Mapping[str, str]) -> list[Container]:
        containers = self._opened()
        return await self._threads.run("look", lambda: containers.list(labels))

    async def usage(self, key: str) -> Usage:
        containers = self._opened()
        return await self._threads.run("look", lambda: containers.usage(key))

    async def usages(self, keys: Collection[str]) -> dict[str, Usage]:
        containers = self._opened()
        return await self._threads.run("look", lambda: containers.usages(keys))

    async def disk_usage(self, key: str, *, limit: int) -> int:
        containers = self._opened()
        return await self._threads.run("walk", lambda: containers.disk_usage(key, limit=limit))

    async def pause(self, key: str) -> None:
        containers = self._opened()
        await self._threads.run("look", lambda: containers.pause(key))

    async def resume(self, key: str) -> None:
        containers = self._opened()
        await self._threads.run("look", lambda: containers.resume(key))

    async def checkpoint(self, key: str, reference: str | None = None) -> ImageInfo:
        return await asyncio.shield(tasks.shared(self._checkpoint(key, reference), "checkpoint"))

    async def _checkpoint(self, key: str, reference: str | None) -> ImageInfo:
        """Files and memory of one moment: nothing runs in it between the two."""
        containers, run = self._opened(), self._threads.run
        config = await run("start", lambda: containers.still(key))
        memory = await run("look", self._memories.new)
        try:
            image = await self.images.commit(key, config, reference)
            try:
                await run("start", lambda: containers.save_memory(key, memory))
                await run("look", lambda: self._memories.keep(memory, image))
            except BaseException:
                await self.images.remove(image.digest)
                raise
        finally:
            await run("look", lambda: self._memories.drop(memory))
            await run("start", lambda: containers.go_on(key))
        return image

    async def mount_image(self, key: str, image: str, path: str) -> None:
        images = ImageMounts(self._opened())
        await self._threads.run("start", lambda: images.mount(key, image, path))

    async def unmount_image(self, key: str, path: str) -> None:
        images = ImageMounts(self._opened())
        await self._threads.run("start", lambda: images.unmount(key, path))

    async def suspend(self, key: str) -> None:
        containers = self._opened()
        await self._threads.run("start", lambda: containers.suspend(key))

    async def forget_memory(self, key: str) -> None:
        containers = self._opened()
        await self._threads.run("start", lambda: containers.forget_memory(key))

    def events(self, labels: Mapping[str, str]) -> AsyncIterator[EngineEvent]:
        self._opened()
        return self._listeners.add(labels)

    def _exited(self, key: str, code: int | None) -> None:
        containers = self._opened()
        containers.codes[key] = code
        self._listeners.tell(EngineEvent(EventKind.EXITED, key, code), containers.labels_of(key))

    def _out_of_memory(self, key: str) -> None:
        containers = self._opened()
        if key not in containers.out_of_memory:
            containers.out_of_memory.add(key)
            self._listeners.tell(EngineEvent(EventKind.OUT_OF_MEMORY, key), containers.labels_of(key))

    def _opened(self) -> Containers:
        if self._containers is None or self._closed:
            raise not_open()
        return self._containers
