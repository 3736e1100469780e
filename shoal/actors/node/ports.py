"""Exposed ports: ports of this node that lead to ports in sandboxes.

The relay listens and forwards but stores nothing; the containers' records store the ports. So they survive a restart of
either.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from shoal.actors.node.containers import Containers
from shoal.actors.node.records import ContainerRecord, ExposedPort
from shoal.model.errors import AlreadyExists, InvalidRequest, NotFound, ShoalError, Unavailable

log = logging.getLogger("shoal.node")

_FIRST_LISTEN = 1024
"""Below it lie the ports of the machine's own services."""


class PortOpener(Protocol):
    """What exposing needs of the relay; see `Relay`."""

    async def expose(self, key: str, port: int, private: bool, listen: int, sandbox_id: str) -> str: ...

    async def unexpose(self, key: str, port: int) -> None: ...

    async def exposed(self) -> list[tuple[str, int]]: ...


@dataclass(slots=True)
class ExposedPorts:
    """The exposed ports of one node; one change at a time."""

    containers: Containers
    relay: PortOpener
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def expose(self, sandbox_id: str, port: int, private: bool, listen: int = 0) -> str:
        """Opens a port of the node for `port` in the sandbox and returns its address (`host:port`). Idempotent.

        `private`: connections must begin with a token (see PROTOCOL.md); a change of it cuts those that stand.
        `listen`: the node's port, 0: any. Raises `NotFound` (no such sandbox here), `AlreadyExists` (`listen` is taken,
        or the port is exposed on another), `QuotaExceeded`, `Unavailable` (the relay is being restarted: try again).
        """
        _check(port, listen)
        async with self._turn:
            record = self.containers.serving(sandbox_id)
            if record is None:
                raise NotFound(f"sandbox {sandbox_id} has no container on this node")
            known = _find(record, port)
            if known is not None and known.listen and listen not in (0, known.listen):
                raise AlreadyExists(
                    f"port {port} is exposed on {known.listen} already: unexpose it first, or leave listen out",
                    field="listen",
                )
            wanted = ExposedPort(port, private, listen or (known.listen if known is not None else 0))
            return await self._open(record, wanted)

    async def unexpose(self, sandbox_id: str, port: int) -> None:
        """Closes the node's port and all connections through it. Idempotent."""
        _check(port, 0)
        async with self._turn:
            record = self.containers.of_sandbox(sandbox_id)
            if record is None:
                return
            if _find(record, port) is not None:
                await self.containers.note(record.key, exposed=_without(record, port))
            await self.relay.unexpose(record.key, port)

    async def restore(self) -> None:
        """Makes the relay's ports match the records, on their former addresses if these are free.

        Raises `Unavailable` if the relay went away meanwhile.
        """
        async with self._turn:
            records = dict(self.containers.records)
            wanted = {(key, port.port) for key, record in records.items() if record.ready for port in record.exposed}
            for key, number in await self.relay.exposed():
                if (key, number) not in wanted:
                    await self.relay.unexpose(key, number)
            for record in [each for each in records.values() if each.ready]:
                for port in record.exposed:
                    await self._reopen(record.key, port)

    async def reopen(self, key: str) -> None:
        """Opens the ports again of a container that was stopped, on their former addresses if these are free."""
        async with self._turn:
            record = self.containers.records.get(key)
            for port in () if record is None else record.exposed:
                with suppress(Unavailable):  # `restore` tells the next relay
                    await self._reopen(key, port)

    async def _open(self, record: ContainerRecord, wanted: ExposedPort) -> str:
        """Records the intent first, so that what the relay opens is known whatever happens. Undone if the relay opens
        nothing."""
        key, before = record.key, record.exposed
        if wanted not in before:
            await self.containers.note(key, exposed=(*_without(record, wanted.port), wanted))
        try:
            address = await self.relay.expose(key, wanted.port, wanted.private, wanted.listen, record.sandbox_id or "")
            opened = ExposedPort(wanted.port, wanted.private, int(address.rpartition(":")[2]))
            if opened != wanted:
                await self.containers.note(key, exposed=(*_without(record, wanted.port), opened))
        except BaseException:
            await asyncio.shield(self._undo(key, before, wanted.port))
            raise
        return address

    async def _undo(self, key: str, before: tuple[ExposedPort, ...], port: int) -> None:
        try:
            await self.containers.note(key, exposed=before)
            if all(known.port != port for known in before):
                await self.relay.unexpose(key, port)
        except NotFound:
            pass  # the container is gone, and its ports with it
        except Unavailable:
            pass  # `restore` tells the next relay

    async def _reopen(self, key: str, port: ExposedPort) -> None:
        record = self.containers.records.get(key)
        if record is None:
            return
        try:
            try:
                await self._open(record, port)
            except AlreadyExists:
                address = await self._open(record, ExposedPort(port.port, port.private))
                log.warning(
                    "port %d of %s: %d was taken, now at %s", port.port, record.sandbox_id, port.listen, address
                )
        except Unavailable:
            raise
        except ShoalError as error:
            log.warning("port %d of %s is no longer exposed: %s", port.port, record.sandbox_id, error)


def _find(record: ContainerRecord, port: int) -> ExposedPort | None:
    return next((known for known in record.exposed if known.port == port), None)


def _without(record: ContainerRecord, port: int) -> tuple[ExposedPort, ...]:
    return tuple(known for known in record.exposed if known.port != port)


def _check(port: int, listen: int) -> None:
    if not 0 < port < 65536:
        raise InvalidRequest(f"port must be 1 to 65535, not {port}", field="port")
    if listen and not _FIRST_LISTEN <= listen < 65536:
        raise InvalidRequest(f"listen must be 0 (any) or {_FIRST_LISTEN} to 65535, not {listen}", field="listen")
