"""Takes images of sandboxes' files. The intent goes on record while the node makes one. What a controller that is
killed had begun, the next one removes, or the node, if nothing is on record."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shoal.actors.controller.endings import check_gives_memory, ended_error
from shoal.actors.controller.history import History
from shoal.actors.controller.image_changes import ImageChanges
from shoal.actors.controller.image_mounts import check_directories
from shoal.actors.controller.images import Images
from shoal.actors.controller.nodes import Nodes
from shoal.actors.controller.persistence import machine_missing
from shoal.actors.controller.record import SandboxRecord
from shoal.actors.controller.record_writer import audited
from shoal.actors.handles import is_restarting
from shoal.actors.messages import NodeImage
from shoal.model import tasks, verbs
from shoal.model.access import INSIDE, AuditEntry, Caller
from shoal.model.errors import (
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    PathNotFound,
    QuotaExceeded,
    ShoalError,
    Unavailable,
)
from shoal.model.ids import new_image_id
from shoal.model.images import ImageKind, ImageRecord, ImageState, check_ttl, image_name
from shoal.model.settings import Limits
from shoal.model.states import State
from shoal.model.validate import check_absolute, check_key, text_size
from shoal.model.verbs import SNAPSHOT_S

_RETRY_S = 0.2
_ATTEMPTS = 100  # twenty seconds: Ray restarts a node actor in one or two


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What kind of image is to be made, and what becomes of it. `config`: None for that of the image below; `path`: of
    one directory."""

    kind: ImageKind
    name: str | None
    ttl: float | None
    key: str | None = None
    cache_key: str | None = None
    config: Mapping[str, Any] | None = None
    path: str | None = None


@dataclass(slots=True)
class Snapshots:
    """`call`: how actors are called; `clock`: unix seconds."""

    images: Images
    changes: ImageChanges
    history: History
    nodes: Nodes
    limits: Limits
    call: Callable[..., Awaitable[Any]]
    clock: Callable[[], float] = time.time
    _making: dict[str, asyncio.Task[ImageRecord]] = field(default_factory=dict)

    async def snapshot(
        self, sandbox_id: str, name: str | None, ttl: float | None, key: str | None, path: str | None, caller: Caller
    ) -> ImageRecord:
        """An image of a sandbox's files, or of one directory; with a `key`, the same again is the same image."""
        if key is not None:
            check_key(key)
        wanted = _Wanted(ImageKind.SNAPSHOT, None if name is None else image_name(name), ttl, key, path=path)
        check_ttl(ttl)
        if path is not None:
            text_size("path", path)
            check_absolute("path", path)
        record = await self.history.get(sandbox_id, caller)
        if path is not None and not record.ended:
            check_directories(record)
        return await self._take(record, wanted, caller)

    async def checkpoint(self, sandbox_id: str, ttl: float | None, key: str | None, caller: Caller) -> ImageRecord:
        """As `snapshot`, with its memory of the same moment."""
        if key is not None:
            check_key(key)
        check_ttl(ttl)
        record = await self.history.get(sandbox_id, caller)
        if not record.ended:
            check_gives_memory(record)
        return await self._take(record, _Wanted(ImageKind.CHECKPOINT, None, ttl, key), caller)

    async def of_disk(self, record: SandboxRecord, ttl: float) -> ImageRecord:
        """An image of the files of a stopped persistent sandbox, which goes after `ttl` unless something needs it."""
        return await self._take(record, _Wanted(ImageKind.SNAPSHOT, None, ttl), INSIDE)

    async def save_build(
        self,
        sandbox_id: str,
        cache_key: str,
        config: Mapping[str, Any] | None,
        name: str | None,
        ttl: float | None,
        replace: bool,
    ) -> ImageRecord:
        """An image of what a step of a build has made."""
        check_ttl(ttl)
        named = None if name is None else image_name(name)
        record = await self.history.get(sandbox_id, INSIDE)
        known = self.images.cached(record.spec.environment, cache_key)
        if known is not None and not replace:
            return known
        wanted = _Wanted(ImageKind.BUILD, named, ttl, None, cache_key, config)
        return await self._take(record, wanted, INSIDE)

    async def _take(self, record: SandboxRecord, wanted: _Wanted, caller: Caller) -> ImageRecord:
        environment = record.spec.environment
        known = None if wanted.key is None else self.images.keyed(environment, wanted.key)
        if known is not None and known.sandbox_id != record.id:
            raise InvalidRequest("key: it was used before for another sandbox; use a new one for each", field="key")
        if known is not None and known.state is ImageState.READY:
            return known
        making = None if known is None else self._making.get(known.id)
        if making is None:
            image = self._new(record, wanted)
            self.images.put(image)  # at once, so that the same call finds it
            verb = verbs.checkpoint if wanted.kind is ImageKind.CHECKPOINT else verbs.snapshot_filesystem
            entry = audited(verb, caller, target=image.id, environment=environment)
            making = self._making[image.id] = tasks.shared(self._make(record, image, wanted, [entry]), "snapshot")
            making.add_done_callback(lambda _: self._making.pop(image.id, None))
        return await asyncio.shield(making)

    def _new(self, record: SandboxRecord, wanted: _Wanted) -> ImageRecord:
        environment = record.spec.environment
        _, machine = self._where(record)
        if self.images.count(environment) >= self.limits.images:
            raise QuotaExceeded(
                f"environment {environment!r} has {self.limits.images} images, which is the most (`limits.images`); "
                "delete some, or run `shoal image gc`"
            )
        now = self.clock()
        return ImageRecord(
            new_image_id(),
            environment,
            wanted.kind,
            now,
            ImageState.MAKING,
            parent=record.spec.image if wanted.path is None else None,
            machines=(machine,),
            sandbox_id=record.id,
            key=wanted.key,
            expires_at=None if wanted.ttl is None else now + wanted.ttl,
        )

    async def _make(
        self, record: SandboxRecord, image: ImageRecord, wanted: _Wanted, audit: Sequence[AuditEntry]
    ) -> ImageRecord:
        try:
            # If it is never recorded, its node removes what it has made.
            _, made = await asyncio.gather(self.changes.add(image), self._made(record, image, wanted))
            return await self.changes.change(
                image.id,
                audit,
                state=ImageState.READY,
                digest=made.digest,
                size=made.size,
                config=made.config,
                name=wanted.name,
                cache_key=wanted.cache_key,
            )
        except Exception as error:
            await self._undo(image)  # also after a defect: or it would be in the making for ever
            if isinstance(error, PathNotFound):
                raise
            if isinstance(error, NotFound) and record.ended:
                raise ended_error(record) from None
            if isinstance(error, NotFound):
                raise FailedPrecondition(
                    f"sandbox {record.id} has no container now: it ends, or is about to start", state=record.state.value
                ) from None
            raise

    async def _undo(self, image: ImageRecord) -> None:
        try:
            await self.changes.let_go([image.id], self.clock())
        except ShoalError:  # the store is away: in memory it is about to go, and the next controller finds it so
            self.changes.doom(image.id)

    async def _made(self, record: SandboxRecord, image: ImageRecord, wanted: _Wanted) -> NodeImage:
        """What its node made of it. A node actor that is being restarted is asked again."""
        for attempt in range(_ATTEMPTS):
            node_id, _ = self._where(record)
            try:
                node = self.nodes.handle(node_id)
                asked: tuple[Any, ...] = ("snapshot_sandbox", record.id, image.id, wanted.config)
                if wanted.path is not None:
                    asked = ("snapshot_directory", record.id, image.id, wanted.path)
                if image.kind is ImageKind.CHECKPOINT:
                    asked = ("checkpoint_sandbox", record.id, image.id)
                made: NodeImage = await self.call(node, *asked, timeout_s=SNAPSHOT_S)
            except Unavailable as error:
                if not is_restarting(error) or attempt == _ATTEMPTS - 1:
                    raise
                await asyncio.sleep(_RETRY_S)
            else:
                return made
        raise AssertionError("unreachable")

    def _where(self, record: SandboxRecord) -> tuple[str, str]:
        """The node and the machine that have a sandbox's files."""
        if record.ended:
            raise ended_error(record)
        if record.started is not None:
            node_id = record.started.node_id
            return node_id, self.nodes.machine_of(node_id) or record.started.machine
        if record.home is not None:
            found = self.nodes.of_machine(record.home.machine)
            if found is None:
                raise machine_missing(record)
            return found, record.home.machine
        if record.disk is not None:
            raise FailedPrecondition(
                f"the files of {record.id} are on no machine now: it was moved while it was stopped; start it first",
                state=State(record.state).value,
            )
        raise FailedPrecondition(
            f"sandbox {record.id} does not run yet, so it has no files of its own; wait until it runs",
            state=State(record.state).value,
        )
