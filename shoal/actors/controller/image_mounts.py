"""Mounts images into sandboxes that run. That one shall be is on record first: what a controller that is killed had
begun, the next one does again."""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from shoal.actors.controller.endings import ended_error
from shoal.actors.controller.history import History
from shoal.actors.controller.image_use import ImageUse
from shoal.actors.controller.nodes import Nodes
from shoal.actors.controller.record import HeldImage, SandboxRecord
from shoal.actors.controller.record_writer import RecordWriter, audited
from shoal.actors.messages import SandboxStarted
from shoal.model import tasks, verbs
from shoal.model.access import Caller
from shoal.model.errors import (
    AlreadyExists,
    FailedPrecondition,
    ImageNotFound,
    NotFound,
    QuotaExceeded,
    ShoalError,
)
from shoal.model.info import SandboxInfo
from shoal.model.mounts import MOST_MOUNTS, check_mount_path, overlap
from shoal.model.states import State
from shoal.model.validate import check_text
from shoal.model.verbs import BASE_S

log = logging.getLogger("shoal.image_mounts")

_UP = (State.RUNNING, State.PAUSED)
_UNMOUNT_S = 60.0


@dataclass(slots=True)
class ImageMounting:
    """`call`: how actors are called."""

    history: History
    use: ImageUse
    nodes: Nodes
    writer: RecordWriter
    call: Callable[..., Awaitable[Any]]
    _turns: weakref.WeakValueDictionary[str, asyncio.Lock] = field(default_factory=weakref.WeakValueDictionary)

    async def mount(self, sandbox_id: str, image: str, path: str, caller: Caller) -> SandboxInfo:
        """Mounts one. The same again does nothing."""
        check_text("image", image, "an image's id, name or reference")
        check_mount_path("path", path)
        record = await self.history.get(sandbox_id, caller)
        return await asyncio.shield(tasks.shared(self._mount(record, image, path, caller), "mount image"))

    async def unmount(self, sandbox_id: str, path: str, caller: Caller) -> SandboxInfo:
        """Takes one away. Idempotent."""
        check_mount_path("path", path)
        record = await self.history.get(sandbox_id, caller)
        return await asyncio.shield(tasks.shared(self._unmount(record, path, caller), "unmount image"))

    def restore(self, records: Iterable[SandboxRecord]) -> None:
        """Mounts what an earlier controller was about to."""
        for record in records:
            if record.mounted:
                tasks.shared(self._mount_again(record), "mount images")

    async def _mount(self, record: SandboxRecord, image: str, path: str, caller: Caller) -> SandboxInfo:
        async with self._turn(record):
            started = _running(record)
            check_directories(record)
            wanted = self._wanted(record, started, image)
            before = record.mounted
            if before.get(path) == wanted:
                return record.info
            _check_free(record, path)
            told = {"path": path, "image": wanted.id, "token": caller.token}
            entry = audited(verbs.mount_image, caller, target=record.id, environment=record.spec.environment)
            mounted = {**before, path: wanted}
            await self.writer.put(
                record, ("image_mounted", told), audit=[entry], change=lambda: {"mounted": _living(record, mounted)}
            )
            try:
                await self._ask(record, "mount_image", wanted.digest, path, timeout_s=BASE_S)
            except ShoalError as error:
                await self._undo(record, before, path)
                raise _explained(record, error) from None
        return record.info

    async def _unmount(self, record: SandboxRecord, path: str, caller: Caller) -> SandboxInfo:
        async with self._turn(record):
            _running(record)
            if path not in record.mounted:
                return record.info
            try:
                await self._ask(record, "unmount_image", path, timeout_s=_UNMOUNT_S)
            except ShoalError as error:
                raise _explained(record, error) from None
            told = {"path": path, "token": caller.token}
            entry = audited(verbs.unmount_image, caller, target=record.id, environment=record.spec.environment)
            await self.writer.put(
                record, ("image_unmounted", told), audit=[entry], change=lambda: {"mounted": _without(record, path)}
            )
        return record.info

    def _wanted(self, record: SandboxRecord, started: SandboxStarted, image: str) -> HeldImage:
        """What the name of an image stands for; one of an engine's for itself."""
        held = self.use.held(replace(record.spec, image=image))
        if held is None:
            return HeldImage(image, image)
        nodes = self.use.nodes_with(held.digest)
        if nodes is not None and started.node_id not in nodes:
            raise FailedPrecondition(
                f"image: {image:.80} cannot be had on the machine that {record.id} runs on; store images for all "
                "machines (`objects` in the settings), or create the sandbox where it is",
                state="away",
                field="image",
            )
        return held

    async def _undo(self, record: SandboxRecord, before: Mapping[str, HeldImage], path: str) -> None:
        """Nothing of it is left, also where the node did not answer."""
        try:
            await self._ask(record, "unmount_image", path, timeout_s=_UNMOUNT_S)
        except ShoalError as error:  # it ends, or its node is away: what is mounted goes with it
            log.warning("%s may have an image at %s that is not on record: %s", record.id, path, error)
        try:
            change = {"mounted": _living(record, before)}
            await self.writer.put(record, ("image_unmounted", {"path": path}), change=lambda: change)
        except ShoalError as error:
            log.warning("%s has no image at %s, against the record: %s", record.id, path, error)

    async def _mount_again(self, record: SandboxRecord) -> None:
        async with self._turn(record):
            for path, image in list(record.mounted.items()):
                if record.ended or record.started is None:
                    return
                try:
                    await self._ask(record, "mount_image", image.digest, path, timeout_s=BASE_S)
                except ShoalError as error:
                    log.warning("%s does not have its image at %s: %s", record.id, path, error)

    async def _ask(self, record: SandboxRecord, method: str, *arguments: str, timeout_s: float) -> None:
        node = self.nodes.handle(_running(record).node_id)
        await self.call(node, method, record.id, *arguments, timeout_s=timeout_s)

    def _turn(self, record: SandboxRecord) -> asyncio.Lock:
        """The mounts of one are changed by one caller at a time."""
        turn = self._turns.get(record.id)
        if turn is None:
            turn = self._turns[record.id] = asyncio.Lock()
        return turn


def check_directories(record: SandboxRecord) -> None:
    """Raises `FailedPrecondition` for a sandbox of whose directories nothing is taken, and where nothing is mounted."""
    if record.spec.runtime != "runc":
        raise FailedPrecondition(
            "images are mounted into, and directories taken of, sandboxes that runc runs, and "
            f'{record.id} runs by {record.spec.runtime}; create it with runtime="runc", build the image into its own, '
            "or take a snapshot of its whole filesystem",
            state="no_mounts",
        )


def _running(record: SandboxRecord) -> SandboxStarted:
    if record.ended:
        raise ended_error(record)
    if record.started is None or record.state not in _UP:
        raise FailedPrecondition(
            f"sandbox {record.id} is {record.state.value}: images are mounted into what runs; wait until it does, or "
            "start it",
            state=record.state.value,
        )
    return record.started


def _check_free(record: SandboxRecord, path: str) -> None:
    """Raises what keeps an image from being mounted there."""
    taken = (
        *record.mounted,
        *(each.path for each in record.spec.volumes),
        *record.spec.container_shape.memory_directories,
    )
    for other in taken:
        if overlap(path, other):
            where = "" if other == path else f", and {path:.200} is {'below' if path.startswith(other) else 'above'} it"
            how = "unmount that first, or choose" if other in record.mounted else "choose"
            raise AlreadyExists(
                f"path: something is mounted at {other:.200} already{where}; {how} another path",
                field="path",
            )
    if len(taken) >= MOST_MOUNTS:
        raise QuotaExceeded(f"path: {record.id} has {MOST_MOUNTS} mounts, which is the most; unmount one", field="path")


def _living(record: SandboxRecord, mounted: Mapping[str, HeldImage]) -> Mapping[str, HeldImage]:
    return {} if record.ended else mounted


def _without(record: SandboxRecord, path: str) -> Mapping[str, HeldImage]:
    return {at: image for at, image in record.mounted.items() if at != path}


def _explained(record: SandboxRecord, error: ShoalError) -> ShoalError:
    """A container that is gone is a sandbox that ends."""
    if not isinstance(error, NotFound) or isinstance(error, ImageNotFound):
        return error
    if record.ended:
        return ended_error(record)
    return FailedPrecondition(f"sandbox {record.id} has no container now: it ends", state=record.state.value)
