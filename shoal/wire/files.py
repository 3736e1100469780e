"""The agent's calls for files."""

from __future__ import annotations

import os
from collections.abc import AsyncIterable
from typing import Any

from shoal.model import errors
from shoal.wire import checks, records
from shoal.wire.connection import Connection
from shoal.wire.exchanges import Gather
from shoal.wire.flows import Chunks, WatchStream
from shoal.wire.processes import REPLY_S
from shoal.wire.records import Entry

IDLE_S = 60.0
"""Seconds that a transfer may stall on the sandbox's side."""

_LONG_S = 3600.0
"""Seconds for work that reports nothing until it is done, such as removing a large tree."""

MAX_READ = 1 << 30
"""The most bytes that `read_bytes` returns."""

MAX_ENTRIES = 1_000_000
MAX_LISTING = 256 << 20
"""The most characters of paths and targets that `list` keeps in memory."""

_READ_WINDOW = 8 << 20
"""The window of `read_bytes`, whose result ends up in memory anyway."""

Content = bytes | bytearray | memoryview


class FileCalls:
    """Reads, writes and moves files. Every path is absolute, inside the sandbox.

    `user` is who does it, so the kernel decides what is allowed; "": the sandbox's user.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def read(self, path: checks.PathLike, offset: int = 0, length: int = -1, user: str = "") -> Chunks:
        """A file's bytes from `offset` on, chunk by chunk. `length` -1: up to its size when opened."""
        return Chunks(self.connection, _read(path, offset, length, user), idle_s=IDLE_S)

    async def read_bytes(self, path: checks.PathLike, offset: int = 0, length: int = -1, user: str = "") -> bytes:
        """A file's bytes; `QuotaExceeded` above 1 GiB: use `read`."""
        request = _read(path, offset, length, user)
        if length > MAX_READ:
            raise _too_large(f"length is {length}")
        # Without a length, one byte more than the bound is requested, which shows that a file is too large.
        if length < 0:
            request["length"] = length = MAX_READ + 1
        gather = Gather(self.connection, length)
        self.connection.start(gather, request, window=min(length, _READ_WINDOW))
        reply = await gather.reply_while_moving(IDLE_S)
        data = gather.output
        if len(data) > MAX_READ:
            raise _too_large("the file is larger")
        if records.whole(reply, "size", 0, checks.MAX_OFFSET) != len(data):
            raise errors.Internal(f"the sandbox sent {len(data)} bytes, but reported another size")
        return data

    async def write(
        self,
        path: checks.PathLike,
        data: Content | AsyncIterable[bytes],
        *,
        mode: int | None = None,
        append: bool = False,
        parents: bool = False,
        user: str = "",
    ) -> int:
        """Writes a file and returns its size. Except with `append`, readers see either the old or the new content.

        `mode` None: keeps the old file's, else what the umask leaves of 0o666. `parents`: creates missing directories.
        An old file keeps its owner. Where the user may write it, but not replace it, it is filled in place.
        """
        request = {
            **_request("write", path, user),
            "append": checks.flag(append, "append"),
            "parents": checks.flag(parents, "parents"),
        }
        if mode is not None:
            request["mode"] = checks.mode(mode)
        reply = await self._send(request, data, "data")
        return records.whole(reply, "size", 0, checks.MAX_OFFSET)

    async def list(self, path: checks.PathLike, user: str = "", after: str = "", limit: int = 0) -> list[Entry]:
        """The entries of a directory, sorted by name as bytes; `QuotaExceeded` above a million. `limit`: that many at
        most (0: all), of those whose names come after `after`."""
        request = _request("list", path, user)
        if after or limit:
            request |= {
                "after": checks.name(after, "after"),
                "limit": checks.whole(limit, "limit", 0, MAX_ENTRIES),
            }
        stream = self.connection.stream(request)
        found: list[Entry] = []
        weight = 0
        try:
            while (item := await stream.receive(IDLE_S)) is not None:
                if not isinstance(item, dict):
                    raise errors.Internal("the sandbox sent data where none has a place")
                batch = records.entries(item)
                found += batch
                weight += sum(len(entry.path) + len(entry.target or "") for entry in batch)
                if len(found) > MAX_ENTRIES or weight > MAX_LISTING:
                    raise errors.QuotaExceeded(
                        f"path holds more than {MAX_ENTRIES} entries: list it inside the sandbox", field="path"
                    )
        finally:
            stream.cancel()
        return found

    async def stat(self, path: checks.PathLike, follow: bool = True, user: str = "") -> Entry:
        """The entry at a path. `follow`: follows links."""
        request = {**_request("stat", path, user), "follow": checks.flag(follow, "follow")}
        return records.entry(await self.connection.request(request, timeout_s=REPLY_S))

    async def mkdir(
        self, path: checks.PathLike, parents: bool = False, mode: int | None = None, user: str = ""
    ) -> None:
        """Creates a directory. `parents`: also creates missing parents, and accepts an existing directory.

        `mode` None: what the umask leaves of 0o777.
        """
        request = {**_request("mkdir", path, user), "parents": checks.flag(parents, "parents")}
        if mode is not None:
            request["mode"] = checks.mode(mode)
        await self.connection.request(request, timeout_s=REPLY_S)

    async def remove(self, path: checks.PathLike, recursive: bool = False, user: str = "") -> None:
        """Removes a file, a link (not its target), an empty directory, or with `recursive` a tree."""
        request = {**_request("remove", path, user), "recursive": checks.flag(recursive, "recursive")}
        await self.connection.request(request, timeout_s=_LONG_S)

    async def move(self, path: checks.PathLike, to: checks.PathLike, overwrite: bool = False, user: str = "") -> None:
        """Moves a file or tree, also across file systems. `overwrite`: replaces an existing file."""
        await self._place("move", path, to, overwrite, user)

    async def copy(self, path: checks.PathLike, to: checks.PathLike, overwrite: bool = False, user: str = "") -> None:
        """Copies a file or tree, a link as it is. `overwrite`: replaces an existing file."""
        await self._place("copy", path, to, overwrite, user)

    async def _place(self, op: str, path: checks.PathLike, to: checks.PathLike, overwrite: bool, user: str) -> None:
        request = {
            **_request(op, path, user),
            "to": checks.path(to, "to"),
            "overwrite": checks.flag(overwrite, "overwrite"),
        }
        await self.connection.request(request, timeout_s=_LONG_S)

    def pack(self, path: checks.PathLike, user: str = "") -> Chunks:
        """A tree (or one file) as a tar archive, chunk by chunk."""
        return Chunks(self.connection, _request("pack", path, user), idle_s=IDLE_S)

    async def unpack(
        self, path: checks.PathLike, chunks: Content | AsyncIterable[bytes], user: str = ""
    ) -> dict[str, int]:
        """Unpacks a tar archive below a directory, created if missing; returns `files` and `bytes`."""
        reply = await self._send(_request("unpack", path, user), chunks, "chunks")
        return {name: records.whole(reply, name, 0, checks.MAX_OFFSET) for name in ("files", "bytes")}

    def watch(self, path: checks.PathLike, recursive: bool = False, user: str = "") -> WatchStream:
        """Watches a path and what is below it. Await or enter it before the first change that must not be missed."""
        request = {**_request("watch", path, user), "recursive": checks.flag(recursive, "recursive")}
        return WatchStream(self.connection, request, os.fspath(path), REPLY_S)

    async def _send(self, request: dict[str, Any], data: Content | AsyncIterable[bytes], field: str) -> dict[str, Any]:
        if not isinstance(data, AsyncIterable):
            return await self.connection.request(request, data=checks.content(data, field), idle_s=IDLE_S)
        stream = self.connection.stream(request)
        try:
            async for chunk in data:
                await stream.send(checks.content(chunk, field), IDLE_S)
                if stream.finished:
                    break
            stream.end()
            return await stream.reply(IDLE_S)
        finally:
            stream.cancel()  # if the source failed, no half a file stays


def _request(op: str, path: checks.PathLike, user: str) -> dict[str, Any]:
    request = {"op": op, "path": checks.path(path)}
    return request if user == "" else {**request, "user": checks.user(user)}


def _read(path: checks.PathLike, offset: int, length: int, user: str) -> dict[str, Any]:
    return {
        **_request("read", path, user),
        "offset": checks.whole(offset, "offset", 0, checks.MAX_OFFSET),
        "length": checks.whole(length, "length", -1, checks.MAX_OFFSET),
    }


def _too_large(what: str) -> errors.QuotaExceeded:
    return errors.QuotaExceeded(f"{what}, at most {MAX_READ} bytes can be returned: read it in chunks", field="length")
