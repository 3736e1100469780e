"""The files of a sandbox."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast, overload

from shoal.client.dual_method import dual_method
from shoal.client.html import Listed
from shoal.client.retrying_agent import RetryingAgent
from shoal.client.sandbox_file import FileBytes, SandboxFile
from shoal.client.sparse import SparseFile
from shoal.client.tar_trees import Transfer, pack, unpack
from shoal.client.watch import Watch
from shoal.model.errors import AlreadyExists, InvalidRequest, PathNotFound, QuotaExceeded

if TYPE_CHECKING:
    from shoal.wire.agent import Agent, Entry

__all__ = ["FileSystem", "SandboxFile", "Transfer", "Watch"]

PathLike = str | os.PathLike[str]
Progress = Callable[[int], None]

MAX_TREE_BYTES = 16 << 30
MAX_TREE_FILES = 1_000_000
_PIECE = 1 << 20

ENTRY_COLUMNS = "name kind size target"
"""What a directory's entries show of themselves."""


class _OpenCall(Protocol):
    """`FileSystem.open`, typed by its mode."""

    @overload
    def __call__(
        self, path: PathLike, mode: Literal["r", "w", "a"] = "r", *, user: str | None = None
    ) -> SandboxFile[str]: ...
    @overload
    def __call__(
        self, path: PathLike, mode: Literal["rb", "wb", "ab"], *, user: str | None = None
    ) -> SandboxFile[bytes]: ...
    @overload
    def __call__(self, path: PathLike, mode: str, *, user: str | None = None) -> SandboxFile[Any]: ...

    @overload
    async def aio(
        self, path: PathLike, mode: Literal["r", "w", "a"] = "r", *, user: str | None = None
    ) -> SandboxFile[str]: ...
    @overload
    async def aio(
        self, path: PathLike, mode: Literal["rb", "wb", "ab"], *, user: str | None = None
    ) -> SandboxFile[bytes]: ...
    @overload
    async def aio(self, path: PathLike, mode: str, *, user: str | None = None) -> SandboxFile[Any]: ...


def _open_call(call: object) -> _OpenCall:
    return cast(_OpenCall, call)


class FileSystem:
    """The files of one sandbox. Paths are absolute; names that are not UTF-8 carry surrogate escapes, as in `os`.

    `user` is who does it, as a process of that user would: `name`, `uid`, `uid:gid` or `name:group`; default: the
    sandbox's user. What is created belongs to that user.

    All calls may raise `PathNotFound`, `PermissionDenied` (the user may not), `AlreadyExists`, `InvalidRequest` (with
    its kinds `IsADirectory`, `NotADirectory` and `RelativePath`), `QuotaExceeded` (the disk is full), `SandboxEnded`,
    `Unavailable`.
    """

    def __init__(self, agent: RetryingAgent) -> None:
        self._agent = agent

    # Content

    @dual_method
    async def read_bytes(self, path: PathLike, *, offset: int = 0, length: int = -1, user: str | None = None) -> bytes:
        """A file's bytes from `offset` on; `length` -1: to the end. `QuotaExceeded` above 1 GiB: use `open`."""
        return await self._agent.call(lambda agent: agent.read_bytes(path, offset, length, _name(user)))

    @dual_method
    async def read_text(self, path: PathLike, *, user: str | None = None) -> str:
        """A file's text, decoded as UTF-8; invalid bytes become U+FFFD."""
        return (await self.read_bytes.aio(path, user=user)).decode("utf-8", "replace")

    @dual_method
    async def write_bytes(
        self,
        path: PathLike,
        data: bytes | bytearray | memoryview,
        *,
        mode: int | None = None,
        parents: bool = True,
        user: str | None = None,
    ) -> int:
        """Replaces a file atomically and returns its size: a reader sees either the old or the new content.

        `mode` None: keeps the old file's, else 0o644 (0o666 less the umask). `parents`: creates missing directories. An
        old file keeps its owner. Where the user may write the file, but not replace it, it is filled in place.
        """
        if not isinstance(data, bytes | bytearray | memoryview):
            raise InvalidRequest(f"data: {type(data).__name__} is not bytes; `write_text` takes text", field="data")
        return await self._agent.call(
            lambda agent: agent.write(path, data, mode=mode, parents=parents, user=_name(user))
        )

    @dual_method
    async def write_text(
        self, path: PathLike, text: str, *, mode: int | None = None, parents: bool = True, user: str | None = None
    ) -> int:
        """Like `write_bytes`, with `text` encoded as UTF-8; returns the size in bytes."""
        return await self.write_bytes.aio(path, _encoded(text), mode=mode, parents=parents, user=user)

    @dual_method
    async def append(self, path: PathLike, data: str | bytes, *, user: str | None = None) -> int:
        """Appends to a file, created if missing; returns the number of bytes.

        It is sent once: if the connection breaks meanwhile, the `Unavailable` is not retryable.
        """
        content = _encoded(data) if isinstance(data, str) else data
        return await self._agent.once(
            lambda agent: agent.write(path, content, append=True, parents=True, user=_name(user)), f"append to {path}"
        )

    @_open_call
    @dual_method
    async def open(self, path: PathLike, mode: str = "r", *, user: str | None = None) -> SandboxFile[Any]:
        """A file object: `r` reads, `w` replaces, `a` appends; with `b` bytes, else text in UTF-8.

        Closing it writes all data at once; an error in the `with` block writes nothing. Reading continues after a
        broken connection, or raises `FailedPrecondition` if the file was changed meanwhile.
        """
        if mode not in ("r", "rb", "w", "wb", "a", "ab"):
            raise InvalidRequest(f"mode: {mode!r} is not one of r, rb, w, wb, a, ab", field="mode")
        if mode[0] != "r":
            return SandboxFile.writing(self._agent, path, mode, _name(user))
        entry = await self.stat.aio(path, user=user)
        # Raises other errors of the path here, rather than at the first read.
        await self._agent.call(lambda agent: agent.read_bytes(path, 0, 0, _name(user)))
        return SandboxFile.reading(self._agent, path, mode, entry, _name(user))

    # Whole trees

    @dual_method
    async def upload(
        self, local: PathLike, remote: PathLike, *, user: str | None = None, progress: Progress | None = None
    ) -> Transfer:
        """Copies a local file or tree into the sandbox.

        A file becomes `remote`; if that ends with `/`, it goes into that directory under its own name. A directory's
        content goes into the directory `remote`, created if missing. Modes and links are kept. `progress` gets the
        number of bytes sent so far.
        """
        source = Path(local)
        if await asyncio.to_thread(source.is_dir):
            return await self._upload_tree(source, remote, _name(user), progress)
        target = _beneath(remote, source.name) if os.fspath(remote).endswith("/") else remote
        try:
            mode = (await asyncio.to_thread(source.stat)).st_mode & 0o777
            size = await self._agent.call(
                lambda agent: agent.write(
                    target, _counted(_file_pieces(source), progress), mode=mode, parents=True, user=_name(user)
                )
            )
        except OSError as error:
            raise _local_error(error) from None
        return Transfer(1, size)

    @dual_method
    async def download(
        self,
        remote: PathLike,
        local: PathLike,
        *,
        max_bytes: int = MAX_TREE_BYTES,
        max_files: int = MAX_TREE_FILES,
        user: str | None = None,
        progress: Progress | None = None,
    ) -> Transfer:
        """Copies a file or a tree out of the sandbox.

        A file becomes `local`; if that is a directory, it goes into it under its own name. A directory's content goes
        into the directory `local`, created if missing. Links that may lead out of the tree are skipped: absolute ones,
        and those with `..` after a name. Raises `QuotaExceeded` beyond `max_bytes` or `max_files`, and
        `FailedPrecondition` if the file changed while the connection was broken. `progress` gets the number of bytes
        received so far.
        """
        entry = await self.stat.aio(remote, user=user)
        target = Path(local)
        try:
            if entry.kind == "dir":
                await asyncio.to_thread(target.mkdir, parents=True, exist_ok=True)
                return await self._download_tree(remote, target, max_bytes, max_files, _name(user), progress)
            if await asyncio.to_thread(target.is_dir):
                target /= PurePosixPath(os.fspath(remote)).name
            return await self._download_file(remote, target, entry, max_bytes, _name(user), progress)
        except OSError as error:
            raise _local_error(error) from None

    # Arranging

    @dual_method
    async def list(
        self, path: PathLike, *, after: str = "", limit: int = 0, user: str | None = None
    ) -> Sequence[Entry]:
        """The entries of a directory, sorted by name; `QuotaExceeded` above a million. Page by page: `limit` at most,
        of those whose names come after `after`, the last page's last; an empty page comes after the last."""
        found = await self._agent.call(lambda agent: agent.list(path, _name(user), after, limit))
        return Listed(found, ENTRY_COLUMNS)

    @dual_method
    async def stat(self, path: PathLike, *, follow: bool = True, user: str | None = None) -> Entry:
        """The entry at a path; `follow`: follows links."""
        return await self._agent.call(lambda agent: agent.stat(path, follow, _name(user)))

    @dual_method
    async def exists(self, path: PathLike, *, user: str | None = None) -> bool:
        """Whether a path exists; False for a dangling link."""
        try:
            await self.stat.aio(path, user=user)
        except PathNotFound:
            return False
        return True

    @dual_method
    async def mkdir(
        self, path: PathLike, *, parents: bool = False, mode: int | None = None, user: str | None = None
    ) -> None:
        """Creates a directory. `parents`: also creates missing parents, and accepts an existing directory.

        `mode` None: 0o755 (0o777 less the umask).
        """
        await self._until_done(lambda agent: agent.mkdir(path, parents, mode, _name(user)), AlreadyExists)

    @dual_method
    async def remove(self, path: PathLike, *, recursive: bool = False, user: str | None = None) -> None:
        """Removes a file, a link (not its target), an empty directory, or with `recursive` a tree. `FailedPrecondition`
        for a directory that is not empty."""
        await self._until_done(lambda agent: agent.remove(path, recursive, _name(user)), PathNotFound)

    @dual_method
    async def move(self, path: PathLike, to: PathLike, *, overwrite: bool = False, user: str | None = None) -> None:
        """Moves a file or tree, also across file systems. It is sent once, like `append`."""
        await self._agent.once(lambda agent: agent.move(path, to, overwrite, _name(user)), f"move {path}")

    @dual_method
    async def copy(self, path: PathLike, to: PathLike, *, overwrite: bool = False, user: str | None = None) -> None:
        """Copies a file or tree to a path that does not exist, or with `overwrite` is a file. Links are copied as they
        are; hard links become files of their own. It is sent once, like `append`."""
        await self._agent.once(lambda agent: agent.copy(path, to, overwrite, _name(user)), f"copy {path}")

    @dual_method
    async def watch(self, path: PathLike, *, recursive: bool = False, user: str | None = None) -> Watch:
        """Watches a path and what is below it: iterate over the result, and close it or use it in `with`."""
        watch = Watch(self._agent, path, recursive, _name(user))
        await watch.start.aio()
        return watch

    # Inside

    async def _until_done(self, ask: Callable[[Agent], Any], done: type[Exception]) -> None:
        """Calls `ask`, again after a broken connection; `done` from a later attempt means an earlier one succeeded."""
        asked = False

        async def attempt(agent: Agent) -> None:
            nonlocal asked
            before, asked = asked, True
            try:
                await ask(agent)
            except done:
                if not before:
                    raise

        await self._agent.call(attempt)

    async def _upload_tree(self, source: Path, remote: PathLike, user: str, progress: Progress | None) -> Transfer:
        skipped: list[str] = []

        async def send(agent: Agent) -> dict[str, int]:
            skipped.clear()
            return await agent.unpack(remote, _counted(pack(source, skipped), progress), user)

        try:
            moved = await self._agent.call(send)
        except OSError as error:
            raise _local_error(error) from None
        return Transfer(moved["files"], moved["bytes"], tuple(skipped))

    async def _download_file(
        self, remote: PathLike, target: Path, entry: Entry, max_bytes: int, user: str, progress: Progress | None
    ) -> Transfer:
        too_large = QuotaExceeded(f"{remote} has more than {max_bytes} bytes; raise max_bytes", field="max_bytes")
        if entry.size > max_bytes:
            raise too_large
        source = FileBytes(self._agent, remote, entry, user)
        # Its name is not made of the target's, which may have the greatest length that there is.
        partial = target.with_name(f".shoal-{os.urandom(8).hex()}")
        file = await asyncio.to_thread(_create, partial, entry.mode & 0o777)
        try:
            while data := await source.next():
                if source.offset > max_bytes:  # a file without a size, or one that grew
                    raise too_large
                await asyncio.to_thread(file.write, data)
                if progress is not None:
                    progress(source.offset)
            await asyncio.to_thread(file.close)
            await asyncio.to_thread(partial.replace, target)
        finally:
            file.close()
            partial.unlink(missing_ok=True)
            await source.close()
        return Transfer(1, source.offset)

    async def _download_tree(
        self, remote: PathLike, target: Path, max_bytes: int, max_files: int, user: str, progress: Progress | None
    ) -> Transfer:
        loop = asyncio.get_running_loop()

        async def receive(agent: Agent) -> Transfer:
            received = 0

            async def following() -> bytes:
                nonlocal received
                piece = await anext(chunks, b"")
                received += len(piece)
                if progress is not None:
                    progress(received)
                return piece

            def pull() -> bytes:
                return asyncio.run_coroutine_threadsafe(following(), loop).result()

            chunks = agent.pack(remote, user)
            # Unpacking blocks on files, so it has a thread of its own, which fetches data through this loop.
            work = asyncio.ensure_future(
                asyncio.to_thread(unpack, pull, target, max_bytes=max_bytes, max_files=max_files)
            )
            try:
                return await asyncio.shield(work)
            finally:
                await chunks.aclose()  # the thread gets an error if it still reads
                await asyncio.wait([work])

        return await self._agent.call(receive)


def _name(user: str | None) -> str:
    """The user as the agent gets it: "" for the sandbox's own."""
    return "" if user is None else user


async def _counted(pieces: Iterator[bytes], progress: Progress | None) -> AsyncIterator[bytes]:
    """The pieces of a blocking iterator, each read in a thread."""
    sent = 0
    while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
        yield piece
        sent += len(piece)
        if progress is not None:
            progress(sent)


def _file_pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        left = os.fstat(file.fileno()).st_size  # a growing file is read to its present size
        while left > 0 and (piece := file.read(min(left, _PIECE))):
            left -= len(piece)
            yield piece


def _create(path: Path, mode: int) -> SparseFile:
    return SparseFile(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))


def _encoded(text: str) -> bytes:
    if not isinstance(text, str):
        raise InvalidRequest(f"text: {type(text).__name__} is not str; `write_bytes` takes bytes", field="text")
    return text.encode("utf-8", "surrogateescape")


def _beneath(directory: PathLike, name: str) -> str:
    return f"{os.fspath(directory).rstrip('/')}/{name}"


def _local_error(error: OSError) -> InvalidRequest | QuotaExceeded:
    where = error.filename if isinstance(error.filename, str) else "the local side"
    message = f"local: {where}: {error.strerror or error}"
    if error.errno in (28, 122):  # ENOSPC, EDQUOT
        return QuotaExceeded(f"{message}; make room on this machine", field="local")
    return InvalidRequest(f"{message}; give a local path that can be used", field="local")
