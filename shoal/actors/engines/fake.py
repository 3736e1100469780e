"""An engine in memory that starts nothing. It remembers its calls and injects one failure.

It keeps to the contract like every engine, so tests of the layers above need neither root nor a daemon.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from shoal.actors.engines.contract import (
    Ability,
    Container,
    ContainerSpec,
    ContainerState,
    Engine,
    EngineEvent,
    EventKind,
    Usage,
)
from shoal.actors.engines.fake_images import FakeImageStore, fake_image
from shoal.actors.engines.image_store import ImageInfo
from shoal.model import ids
from shoal.model.errors import (
    AlreadyExists,
    FailedPrecondition,
    ImageNotFound,
    Internal,
    InvalidRequest,
    NotFound,
    ShoalError,
    Unavailable,
)


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the engine."""

    method: str
    args: tuple[Any, ...]
    at: float


class Failure(ABC):
    """A failure of the next call of `method`. Subclasses define it."""

    def __init__(self, method: str) -> None:
        self.method = method

    @abstractmethod
    async def happen(self) -> None:
        """Raises, or waits."""


class EngineDown(Failure):
    """The engine does not answer; nothing happened."""

    async def happen(self) -> None:
        raise Unavailable("the engine does not answer; run `shoal doctor`")


class EngineBroken(Failure):
    """The engine fails with an unforeseen error."""

    async def happen(self) -> None:
        raise Internal("the engine failed")


class EngineStuck(Failure):
    """The call hangs until `let_go` is set, or its caller is cancelled."""

    def __init__(self, method: str) -> None:
        super().__init__(method)
        self.reached = asyncio.Event()
        self.let_go = asyncio.Event()

    async def happen(self) -> None:
        self.reached.set()
        await self.let_go.wait()


class EngineRefuses(Failure):
    """The call fails with `error`."""

    def __init__(self, method: str, error: ShoalError) -> None:
        super().__init__(method)
        self._error = error

    async def happen(self) -> None:
        raise self._error


@dataclass(slots=True)
class FakeContainer:
    """The state of a container, which a test may set. `memory`: what `suspend` saved is there."""

    spec: ContainerSpec
    container: Container
    usage: Usage
    written: int = 0
    images: dict[str, str] = field(default_factory=dict)
    """The digest of what is mounted at each path."""
    memory: bool = False


class FakeEngine(Engine):
    """Containers in memory. `images`: those on the node; `registry`: those that can be pulled; `clock`: gives seconds;
    `delay`: seconds that each call takes."""

    name = "fake"
    images: FakeImageStore

    def __init__(
        self,
        *,
        images: Mapping[str, ImageInfo] | None = None,
        registry: Mapping[str, ImageInfo] | None = None,
        clock: Callable[[], float] = time.time,
        delay: float = 0.0,
    ) -> None:
        self.abilities = frozenset({Ability.PULL, Ability.PAUSE, Ability.IMAGE_MOUNTS})
        self.runtimes: tuple[str, ...] = ("runc",)
        known = images if images is not None else {"shoal/base": fake_image("shoal/base")}
        self.images = FakeImageStore(known, registry or {}, self._call, self._used_images)
        self.containers: dict[str, FakeContainer] = {}
        self.calls: list[Call] = []
        self.failure: Failure | None = None
        self._clock = clock
        self._delay = delay
        self._next_pid = 100_000
        self._open = False
        self._listeners: list[tuple[dict[str, str], asyncio.Queue[EngineEvent | None]]] = []

    def inject(self, failure: Failure) -> None:
        """`failure` happens at the next call of its method, once."""
        self.failure = failure

    def called(self, method: str) -> list[Call]:
        return [call for call in self.calls if call.method == method]

    def push(self, event: EngineEvent, labels: Mapping[str, str] | None = None) -> None:
        """Sends an event to the listeners for `labels` (default: those of the container)."""
        known = self.containers.get(event.key)
        carried = labels if labels is not None else (known.spec.labels if known else {})
        for wanted, queue in self._listeners:
            if wanted.items() <= dict(carried).items():
                queue.put_nowait(event)

    def end(self, key: str, exit_code: int = 137, *, out_of_memory: bool = False) -> None:
        """Ends the container, as if by itself."""
        known = self._find(key)
        known.container = replace(
            known.container, state=ContainerState.EXITED, pid=0, exit_code=exit_code, out_of_memory=out_of_memory
        )
        if out_of_memory:
            self.push(EngineEvent(EventKind.OUT_OF_MEMORY, key))
        self.push(EngineEvent(EventKind.EXITED, key, exit_code))

    async def open(self) -> None:
        async with self._call("open", needs_open=False):
            self._open = True

    async def close(self) -> None:
        async with self._call("close", needs_open=False):
            self._open = False
            for _, queue in self._listeners:
                queue.put_nowait(None)

    async def start(self, spec: ContainerSpec) -> Container:
        async with self._call("start", spec):
            _check(spec, self.runtimes)
            if spec.image not in self.images.known:
                raise ImageNotFound(f"image {spec.image} is not on this node")
            if spec.key in self.containers:
                raise FailedPrecondition(f"there is a container {spec.key} already", state="running")
            self._next_pid += 1
            container = Container(
                key=spec.key,
                state=ContainerState.RUNNING,
                pid=self._next_pid,
                created_at=self._clock(),
                labels=dict(spec.labels),
            )
            self.containers[spec.key] = FakeContainer(spec, container, Usage(cpu_s=0.01, memory=1 << 20, pids=1))
            return container

    async def stop(self, key: str) -> None:
        async with self._call("stop", key):
            if self._find(key).container.state is not ContainerState.EXITED:
                self.end(key)

    async def restart(self, key: str) -> Container:
        async with self._call("restart", key):
            known = self._find(key)
            if known.container.state is ContainerState.EXITED:
                self._next_pid += 1
                known.container = replace(
                    known.container,
                    state=ContainerState.RUNNING,
                    pid=self._next_pid,
                    exit_code=None,
                    out_of_memory=False,
                )
                return replace(known.container, resumed=known.memory)
            return known.container

    async def kill(self, key: str, *, files_closed: bool = True) -> None:
        if Ability.KILL not in self.abilities:
            await super().kill(key)
        async with self._call("kill", key):
            known = self._find(key)
            known.container = replace(known.container, state=ContainerState.EXITED, pid=0, exit_code=137)

    async def remove(self, key: str) -> None:
        async with self._call("remove", key):
            _check_key(key)
            known = self.containers.get(key)
            if known is None:
                return
            if known.container.state is not ContainerState.EXITED:
                self.end(key)
            del self.containers[key]

    async def forget_disks(self, keep: Collection[str]) -> None:
        async with self._call("forget_disks", tuple(keep)):
            pass  # its containers have none

    async def get(self, key: str) -> Container:
        async with self._call("get", key):
            return self._find(key).container

    async def list(self, labels: Mapping[str, str]) -> list[Container]:
        async with self._call("list", dict(labels)):
            return [
                known.container
                for known in self.containers.values()
                if labels.items() <= dict(known.spec.labels).items()
            ]

    async def usage(self, key: str) -> Usage:
        async with self._call("usage", key):
            return self._alive(key).usage

    async def disk_usage(self, key: str, *, limit: int) -> int:
        async with self._call("disk_usage", key, limit):
            return self._find(key).written

    async def pause(self, key: str) -> None:
        async with self._call("pause", key):
            known = self._alive(key)
            known.container = replace(known.container, state=ContainerState.PAUSED)

    async def resume(self, key: str) -> None:
        async with self._call("resume", key):
            known = self._alive(key)
            known.container = replace(known.container, state=ContainerState.RUNNING)

    async def mount_image(self, key: str, image: str, path: str) -> None:
        async with self._call("mount_image", key, image, path):
            known = self._alive(key)
            found = self.images.known.get(image)
            if found is None:
                raise ImageNotFound(f"image {image} is not on this node")
            if known.images.setdefault(path, found.digest) != found.digest:
                raise AlreadyExists(f"path: another image is mounted at {path}", field="path")

    async def unmount_image(self, key: str, path: str) -> None:
        async with self._call("unmount_image", key, path):
            self._alive(key).images.pop(path, None)

    async def suspend(self, key: str) -> None:
        if Ability.CHECKPOINT not in self.abilities:
            await super().suspend(key)
        async with self._call("suspend", key):
            if not self._find(key).memory:
                self._alive(key).memory = True

    async def forget_memory(self, key: str) -> None:
        if Ability.CHECKPOINT not in self.abilities:
            await super().forget_memory(key)
        async with self._call("forget_memory", key):
            self._find(key).memory = False

    def events(self, labels: Mapping[str, str]) -> AsyncIterator[EngineEvent]:
        if not self._open:
            raise _not_open()
        self.calls.append(Call("events", (dict(labels),), self._clock()))
        queue: asyncio.Queue[EngineEvent | None] = asyncio.Queue()
        listener = (dict(labels), queue)
        self._listeners.append(listener)

        async def stream() -> AsyncIterator[EngineEvent]:
            try:
                while (event := await queue.get()) is not None:
                    yield event
            finally:
                self._listeners.remove(listener)

        return stream()

    @asynccontextmanager
    async def _call(self, method: str, *args: Any, needs_open: bool = True) -> AsyncIterator[None]:
        self.calls.append(Call(method, args, self._clock()))
        if needs_open and not self._open:
            raise _not_open()
        # Yields even without a delay, as a real engine does.
        await asyncio.sleep(self._delay)
        failure = self.failure
        if failure is not None and failure.method == method:
            self.failure = None
            await failure.happen()
        yield

    def _find(self, key: str) -> FakeContainer:
        _check_key(key)
        known = self.containers.get(key)
        if known is None:
            raise NotFound(f"there is no container {key} on this node")
        return known

    def _used_images(self) -> dict[str, str]:
        own = {key: known.spec.image for key, known in self.containers.items()}
        mounted = {
            f"{key} {path}": image for key, known in self.containers.items() for path, image in known.images.items()
        }
        return own | mounted

    def _alive(self, key: str) -> FakeContainer:
        known = self._find(key)
        if known.container.state is ContainerState.EXITED:
            raise FailedPrecondition(f"container {key} has exited", state=str(ContainerState.EXITED))
        return known


def _check_key(key: str) -> None:
    if not ids.CONTAINER.fullmatch(key):
        raise InvalidRequest(f"key: {key[:64]!r} is no container key", field="key")


def _check(spec: ContainerSpec, runtimes: tuple[str, ...]) -> None:
    _check_key(spec.key)
    if spec.cpu < 0.01:
        raise InvalidRequest("cpu: ask for more", field="cpu")
    if 0 < spec.memory < 6 << 20 or spec.memory < 0:
        raise InvalidRequest("memory: ask for at least 16 MiB", field="memory")
    if spec.pids < 16:
        raise InvalidRequest("pids: ask for at least 16", field="pids")
    if spec.gpu:
        raise InvalidRequest("gpu: this node has none", field="gpu")
    if spec.runtime not in runtimes:
        raise InvalidRequest(f"runtime: this node has no {spec.runtime!r}, only {', '.join(runtimes)}", field="runtime")


def _not_open() -> FailedPrecondition:
    return FailedPrecondition("the engine is not open; call `open` first", state="closed")
