"""The files of a volume, from outside: through a sandbox of the cluster's own that has it mounted."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol, TypeVar

from shoal.client.dual_method import dual_method
from shoal.client.files import (
    ENTRY_COLUMNS,
    MAX_TREE_BYTES,
    MAX_TREE_FILES,
    FileSystem,
    PathLike,
    Progress,
    Transfer,
)
from shoal.client.html import Listed
from shoal.client.retrying_agent import RetryingAgent
from shoal.model import verbs
from shoal.model.errors import SandboxEnded
from shoal.model.volume_paths import DATA, OTHER, errors_name_the_volumes_paths, inside, outside
from shoal.model.volumes import VolumeInfo

if TYPE_CHECKING:
    from shoal.transport.contract import Transport
    from shoal.wire.agent import Entry

T = TypeVar("T")


class Named(Protocol):
    """A volume."""

    @property
    def id(self) -> str: ...


class VolumeFiles:
    """The files of one volume. Paths are relative to it; a leading `/` does no harm. Errors are those of the files of a
    sandbox, and `VolumeNotFound`."""

    def __init__(self, transport: Transport, info: VolumeInfo) -> None:
        self._transport = transport
        self._info = info
        self._opened: FileSystem | None = None

    @dual_method
    async def put(self, local: PathLike, remote: PathLike = "", *, progress: Progress | None = None) -> Transfer:
        """Copies a local file or tree into the volume, as `Sandbox.files.upload` does."""
        return await self._with(lambda files: files.upload.aio(local, _inside(remote), progress=progress))

    @dual_method
    async def get(
        self,
        remote: PathLike,
        local: PathLike,
        *,
        max_bytes: int = MAX_TREE_BYTES,
        max_files: int = MAX_TREE_FILES,
        progress: Progress | None = None,
    ) -> Transfer:
        """Copies a file or tree out of the volume, as `Sandbox.files.download` does."""
        return await self._with(
            lambda files: files.download.aio(
                _inside(remote), local, max_bytes=max_bytes, max_files=max_files, progress=progress
            )
        )

    @dual_method
    async def list(self, path: PathLike = "", *, after: str = "", limit: int = 0) -> Sequence[Entry]:
        """The entries of a directory, sorted by name; page by page as `Sandbox.files.list` gives them."""
        found = await self._with(lambda files: files.list.aio(_inside(path), after=after, limit=limit))
        return Listed((_outside(entry) for entry in found), ENTRY_COLUMNS)

    @dual_method
    async def stat(self, path: PathLike = "") -> Entry:
        """The entry at a path."""
        return _outside(await self._with(lambda files: files.stat.aio(_inside(path))))

    @dual_method
    async def exists(self, path: PathLike) -> bool:
        """Whether a path exists."""
        return await self._with(lambda files: files.exists.aio(_inside(path)))

    @dual_method
    async def read_bytes(self, path: PathLike, *, offset: int = 0, length: int = -1) -> bytes:
        """A file's bytes from `offset` on; `length` -1: to the end."""
        return await self._with(lambda files: files.read_bytes.aio(_inside(path), offset=offset, length=length))

    @dual_method
    async def read_text(self, path: PathLike) -> str:
        """A file's text, decoded as UTF-8."""
        return await self._with(lambda files: files.read_text.aio(_inside(path)))

    @dual_method
    async def write_bytes(self, path: PathLike, data: bytes) -> int:
        """Replaces a file atomically and returns its size; missing directories are made."""
        return await self._with(lambda files: files.write_bytes.aio(_inside(path), data))

    @dual_method
    async def write_text(self, path: PathLike, text: str) -> int:
        """Like `write_bytes`, with `text` encoded as UTF-8."""
        return await self._with(lambda files: files.write_text.aio(_inside(path), text))

    @dual_method
    async def remove(self, path: PathLike, *, recursive: bool = False) -> None:
        """Removes a file, a link (not its target), an empty directory, or with `recursive` a tree."""
        await self._with(lambda files: files.remove.aio(_inside(path), recursive=recursive))

    @dual_method
    async def move(self, path: PathLike, to: PathLike, *, overwrite: bool = False) -> None:
        """Moves a file or tree within the volume."""
        await self._with(lambda files: files.move.aio(_inside(path), _inside(to), overwrite=overwrite))

    @dual_method
    async def copy(self, path: PathLike, to: PathLike, *, volume: Named | None = None, overwrite: bool = False) -> None:
        """Copies a file or tree within the volume, or into another `volume` of its environment. `to` does not exist,
        or with `overwrite` is a file. Within a volume the copy of a file shares its data."""
        if volume is None or volume.id == self._info.id:
            await self._with(lambda files: files.copy.aio(_inside(path), _inside(to), overwrite=overwrite))
            return
        both = await self._open(volume.id)
        with errors_name_the_volumes_paths():
            await both.copy.aio(_inside(path), _inside(to, OTHER), overwrite=overwrite)

    async def _with(self, body: Callable[[FileSystem], Awaitable[T]]) -> T:
        """Runs `body` with the files of the volume's sandbox; with those of another one, if it has ended meanwhile."""
        with errors_name_the_volumes_paths():
            if self._opened is not None:
                try:
                    return await body(self._opened)
                except SandboxEnded:
                    self._opened = None
            self._opened = await self._open()
            return await body(self._opened)

    async def _open(self, other: str | None = None) -> FileSystem:
        sandbox = await self._transport.ask(verbs.open_volume, self._info.id, self._info.environment, other)
        return FileSystem(RetryingAgent(self._transport, sandbox.id))


def _inside(path: PathLike, top: str = DATA) -> str:
    return inside(os.fspath(path), top)


def _outside(entry: Entry) -> Entry:
    return replace(entry, path=outside(entry.path))
