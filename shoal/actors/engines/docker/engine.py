"""The engine: the contract's methods over the low-level client of the `docker` SDK.

The SDK blocks, so every method runs in one of the engine's bounded thread pools. Starts, queries, tree walks and pulls
have a pool each, so that a query never waits behind a pull.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import weakref
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import closing
from typing import Any

from docker import APIClient
from docker.utils import kwargs_from_env

from shoal.actors.engines import cgroup_parent
from shoal.actors.engines.contract import (
    Ability,
    Container,
    ContainerSpec,
    Engine,
    EngineEvent,
    Usage,
    shows_processes,
)
from shoal.actors.engines.disks import Disks
from shoal.actors.engines.docker import disk as own_disk
from shoal.actors.engines.docker.commits import commit
from shoal.actors.engines.docker.containers import Containers
from shoal.actors.engines.docker.events import EventStream
from shoal.actors.engines.docker.failures import docker_errors
from shoal.actors.engines.docker.image_store import DockerImageStore
from shoal.actors.engines.docker.images import Images
from shoal.actors.engines.image_store import ImageConfig, ImageInfo
from shoal.actors.engines.seccomp import profile_json
from shoal.actors.engines.threads import EngineThreads, not_open
from shoal.model.errors import FailedPrecondition

_log = logging.getLogger(__name__)

_USUAL = "unix:///var/run/docker.sock"
_LOOKS, _WALKS, _PULLS = 4, 2, 4
_COMMIT_S = 600.0
"""Seconds that the daemon has to store what a container has changed: gigabytes take minutes."""


class DockerEngine(Engine):
    """Containers of the Docker daemon at `address` (None: `DOCKER_HOST`, else the usual socket). At most `start_limit`
    are started or removed at once; `timeout`: seconds that the daemon may take for one answer; `disks`: where the
    containers' own disks come from, if they shall have such; `pids`: the most processes of all containers together
    (None: by the kernel's own bounds); `seccomp`: the profile of each, as JSON (None: Shoal's own)."""

    name = "docker"

    def __init__(
        self,
        address: str | None = None,
        start_limit: int = 4,
        *,
        timeout: float = 60.0,
        disks: Disks | None = None,
        pids: int | None = None,
        seccomp: str | None = None,
    ) -> None:
        self.abilities = frozenset({Ability.PULL, Ability.PAUSE})
        self.runtimes: tuple[str, ...] = ()
        self._address = address
        self._seccomp = seccomp or profile_json()
        self._timeout = timeout
        self._disks = disks
        self._pids = pids
        self._threads = EngineThreads(self.name, {"start": start_limit, "look": _LOOKS, "walk": _WALKS, "pull": _PULLS})
        self._in = self._threads.run
        self._connections = start_limit + _LOOKS + _WALKS + _PULLS
        self._client: APIClient | None = None
        self._images: Images | None = None
        self.images = DockerImageStore(self._open_images, self._in, self._commit)
        self._containers: Containers | None = None
        self._streams: weakref.WeakSet[EventStream] = weakref.WeakSet()
        self._closed = False

    async def open(self) -> None:
        if self._closed:
            raise FailedPrecondition("the engine is closed; make another one", state="closed")
        if self._client is None:
            await self._in("look", self._open)

    def _open(self) -> None:
        with docker_errors("reach the Docker engine"):
            client = self._connect()
            try:
                info = client.info()
            except BaseException:
                client.close()
                raise
        default = info.get("DefaultRuntime") or "runc"
        # Those of `io.containerd.` are the shims behind the others. gVisor reads its network when it starts,
        # and the daemon starts it before the node can give it one.
        others = sorted(
            name
            for name in info.get("Runtimes") or {}
            if not name.startswith("io.containerd.") and name != default and shows_processes(name)
        )
        self.runtimes = (default, *others)
        disks = self._disks
        if disks is not None:
            problem = own_disk.problem(disks, self._place()["base_url"], info)
            if problem is None:
                self.abilities |= {Ability.DISK_LIMIT}
            else:
                _log.warning("disks are watched, not limited: %s", problem)
                disks = None
        images = Images(client)
        parent = cgroup_parent.prepare(info.get("CgroupDriver", ""), self._pids or cgroup_parent.most_pids())
        self._containers = Containers(
            client, images, runtimes=self.runtimes, seccomp=self._seccomp, disks=disks, cgroup_parent=parent
        )
        self._images = images
        self._client = client

    def _connect(self, timeout_s: float | None = None) -> APIClient:
        """A new client; asks the daemon once, for the API's version. `timeout_s`: for one answer, None: the usual."""
        place, timeout = self._place(), timeout_s or self._timeout
        _probe(place["base_url"])
        return APIClient(version="auto", timeout=timeout, max_pool_size=self._connections, **place)

    def _place(self) -> dict[str, Any]:
        """Where the daemon is, as the SDK takes it."""
        place: dict[str, Any] = {"base_url": self._address} if self._address else kwargs_from_env(os.environ)
        return {**place, "base_url": place.get("base_url") or _USUAL}

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for stream in list(self._streams):
            stream.close()
        client, self._client = self._client, None

        def let_go() -> None:
            self._threads.close()
            if client is not None:
                client.close()
            if self._disks is not None:
                self._disks.close()

        await asyncio.to_thread(let_go)

    async def start(self, spec: ContainerSpec) -> Container:
        containers = self._open_containers()
        return await self._threads.undoable(
            "start", lambda abandoned: containers.start(spec, abandoned), lambda: self.remove(spec.key)
        )

    async def stop(self, key: str) -> None:
        containers = self._open_containers()
        await self._in("start", lambda: containers.stop(key))

    async def restart(self, key: str) -> Container:
        containers = self._open_containers()
        return await self._threads.undoable(
            "start", lambda abandoned: containers.restart(key, abandoned), lambda: self.stop(key)
        )

    async def remove(self, key: str) -> None:
        containers = self._open_containers()
        await self._in("start", lambda: containers.remove(key))

    async def forget_disks(self, keep: Collection[str]) -> None:
        disks, kept = self._disks, frozenset(keep)
        if disks is not None:
            await self._in("look", lambda: disks.forget_all_but(kept))

    async def get(self, key: str) -> Container:
        containers = self._open_containers()
        return await self._in("look", lambda: containers.get(key))

    async def list(self, labels: Mapping[str, str]) -> list[Container]:
        containers = self._open_containers()
        return await self._in("look", lambda: containers.list(labels))

    async def usage(self, key: str) -> Usage:
        containers = self._open_containers()
        return await self._in("look", lambda: containers.usage(key))

    async def usages(self, keys: Collection[str]) -> dict[str, Usage]:
        containers = self._open_containers()
        return await self._in("look", lambda: containers.usages(keys))

    async def disk_usage(self, key: str, *, limit: int) -> int:
        containers = self._open_containers()
        return await self._in("walk", lambda: containers.disk_usage(key, limit=limit))

    async def pause(self, key: str) -> None:
        containers = self._open_containers()
        await self._in("look", lambda: containers.pause(key))

    async def resume(self, key: str) -> None:
        containers = self._open_containers()
        await self._in("look", lambda: containers.resume(key))

    def _commit(self, key: str, config: ImageConfig | None, reference: str) -> ImageInfo:
        images = self._open_images()
        with docker_errors("reach the Docker engine"):
            client = self._connect(_COMMIT_S)
        with closing(client):
            return commit(client, images, self._disks, key, config, reference)

    def events(self, labels: Mapping[str, str]) -> AsyncIterator[EngineEvent]:
        stream = EventStream(self._connect, labels, self._open_containers().note_out_of_memory)
        self._streams.add(stream)
        return aiter(stream)

    def _open_containers(self) -> Containers:
        if self._containers is None or self._client is None:
            raise not_open()
        return self._containers

    def _open_images(self) -> Images:
        if self._images is None or self._client is None:
            raise not_open()
        return self._images


def _probe(address: str) -> None:
    """Raises the `OSError` that tells why nobody answers. The SDK would hide it in its own errors and leak its
    socket."""
    path = address.removeprefix("unix://")
    if path == address:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.connect(path)
