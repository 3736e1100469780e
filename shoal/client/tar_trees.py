"""Trees as tar streams: packing a local one, and unpacking one that a sandbox sent, which may be hostile.

Unpacking trusts nothing. Every length is bounded. Names lead only below the destination: each directory is opened
relative to its parent, and no link is followed. Existing files are replaced, not written through. Special mode bits are
dropped. Links that may lead out of the tree are skipped and reported.
"""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from shoal.client.sparse import SparseFile
from shoal.model.errors import FailedPrecondition, Internal, QuotaExceeded

_BLOCK = tarfile.BLOCKSIZE
_PIECE = 1 << 20
_MAX_EXTENSION = 64 << 10
"""Most bytes of an extended header: a path and a link target have at most 4 KiB each."""

_MAX_DEPTH = 256
_MAX_SKIPPED = 1000


@dataclass(frozen=True, slots=True)
class Transfer:
    """What an upload or download moved. `skipped`: sockets, devices, and links that may lead out of the tree."""

    files: int
    bytes: int
    skipped: tuple[str, ...] = ()


# Packing


def pack(root: Path, skipped: list[str]) -> Iterator[bytes]:
    """The tree below `root` as a tar archive: see `pack_entries`."""
    return pack_entries(_walk(root), skipped)


def pack_entries(
    entries: Iterable[tuple[Path, str]], skipped: list[str], *, mtime: int | None = None, mode: int | None = None
) -> Iterator[bytes]:
    """Local files and directories under the names given, as a tar archive in pieces; adds the names of sockets and
    devices to `skipped`. `mtime` (unix seconds), `mode`: of all of them; None: their own.

    A growing file is read to its first size; a shrinking one raises `FailedPrecondition`.
    """
    ready = bytearray()
    for part in _members(entries, skipped, mtime, mode):
        ready += part
        if len(ready) >= _PIECE:
            yield bytes(ready)
            ready.clear()
    yield bytes(ready) + bytes(2 * _BLOCK)


def _members(
    entries: Iterable[tuple[Path, str]], skipped: list[str], mtime: int | None, mode: int | None
) -> Iterator[bytes]:
    """Per entry: its header, its content, and the padding of its last block."""
    for path, name in entries:
        header = _header(path, name, path.lstat())
        if header is None:
            skipped.append(name)
            continue
        if mtime is not None:
            header.mtime = mtime
        if mode is not None and not header.issym():
            header.mode = mode
        yield header.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
        if header.isreg():
            yield from _content(path, header.size)
            yield bytes(-header.size % _BLOCK)


def _walk(root: Path) -> Iterator[tuple[Path, str]]:
    """All entries below `root` with their relative names, directories before their content."""
    pending = [root]
    while pending:
        directory = pending.pop()
        for entry in sorted(os.scandir(directory), key=lambda entry: entry.name):
            path = Path(entry.path)
            yield path, path.relative_to(root).as_posix()
            if entry.is_dir(follow_symlinks=False):
                pending.append(path)


def _header(path: Path, name: str, status: os.stat_result) -> tarfile.TarInfo | None:
    header = tarfile.TarInfo(name)
    header.mode = stat.S_IMODE(status.st_mode)
    header.mtime = int(status.st_mtime)
    if stat.S_ISREG(status.st_mode):
        header.size = status.st_size
    elif stat.S_ISDIR(status.st_mode):
        header.type = tarfile.DIRTYPE
    elif stat.S_ISLNK(status.st_mode):
        header.type = tarfile.SYMTYPE
        header.linkname = str(path.readlink())
    else:
        return None
    return header


def _content(path: Path, size: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        while size > 0:
            piece = file.read(min(size, _PIECE))
            if not piece:
                raise FailedPrecondition(f"{path} shrank while it was read; try again when nobody writes to it")
            size -= len(piece)
            yield piece


# Unpacking


def unpack(pull: Callable[[], bytes], root: Path, *, max_bytes: int, max_files: int) -> Transfer:
    """Unpacks the archive that `pull` returns in pieces (empty at the end) below `root`, which exists.

    Raises `QuotaExceeded` beyond the bounds and `Internal` if the archive is malformed; what was written stays.
    """
    source = _Source(pull)
    tree = _Tree(root)
    files = total = 0
    skipped: list[str] = []
    try:
        for header in _headers(source):
            files += 1
            total += header.size
            if files > max_files:
                raise QuotaExceeded(f"the tree has more than {max_files} files; raise max_files", field="max_files")
            if total > max_bytes:
                raise QuotaExceeded(f"the tree has more than {max_bytes} bytes; raise max_bytes", field="max_bytes")
            parts = _parts(header.name)
            if header.isdir():
                tree.make_directory(parts)
            elif header.isreg():
                tree.write_file(parts, header.mode, source.pieces(header.size))
                source.skip(-header.size % _BLOCK)
            elif not (header.issym() and tree.make_link(parts, header.linkname)):
                if len(skipped) >= _MAX_SKIPPED:
                    raise QuotaExceeded(
                        f"more than {_MAX_SKIPPED} entries had to be skipped, the next is {header.name!r}"
                    )
                skipped.append("/".join(parts))
    finally:
        tree.close()
    return Transfer(files - len(skipped), total, tuple(skipped))


class _Source:
    """Exact reads over pieces of any size."""

    def __init__(self, pull: Callable[[], bytes]) -> None:
        self._pull = pull
        self._piece = b""
        self._at = 0

    def read(self, size: int) -> bytes:
        """`size` bytes, bounded by the caller; empty at the end."""
        taken = self._take(size)
        while len(taken) < size:
            if not self._more():
                if taken:
                    raise _malformed("it ends in the middle")
                return b""
            taken += self._take(size - len(taken))
        return taken

    def pieces(self, size: int) -> Iterator[bytes]:
        """`size` bytes, in pieces as they come."""
        while size > 0:
            if self._at == len(self._piece) and not self._more():
                raise _malformed("it ends in the middle")
            taken = self._take(size)
            size -= len(taken)
            yield taken

    def skip(self, size: int) -> None:
        for _ in self.pieces(size):
            pass

    def _take(self, size: int) -> bytes:
        taken = self._piece[self._at : self._at + size]
        self._at += len(taken)
        return taken

    def _more(self) -> bool:
        self._piece, self._at = self._pull(), 0
        return bool(self._piece)


def _headers(source: _Source) -> Iterator[tarfile.TarInfo]:
    """The members, with their extended headers applied. The caller reads each member's content."""
    extended: dict[str, str] = {}
    while True:
        block = source.read(_BLOCK)
        if not block or not block.strip(b"\0"):
            return
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise _malformed(str(error)) from None
        if header.size < 0:
            raise _malformed("a negative size")
        if header.type in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
            if header.size > _MAX_EXTENSION:
                raise _malformed(f"a header of {header.size} bytes")
            content = source.read(header.size + -header.size % _BLOCK)[: header.size]
            if header.type == tarfile.XHDTYPE:
                extended |= _records(content)
            elif header.type != tarfile.XGLTYPE:
                key = "path" if header.type == tarfile.GNUTYPE_LONGNAME else "linkpath"
                extended[key] = content.rstrip(b"\0").decode("utf-8", "surrogateescape")
            continue
        header.name = extended.get("path", header.name)
        header.linkname = extended.get("linkpath", header.linkname)
        if "size" in extended:
            header.size = _number(extended["size"])
        if not header.isreg():
            header.size = 0
        extended = {}
        yield header


def _records(content: bytes) -> dict[str, str]:
    """`"<length> <key>=<value>\\n"`, one after another."""
    found: dict[str, str] = {}
    while content:
        length = _number(content[:8].partition(b" ")[0].decode("ascii", "replace"))
        record, content = content[:length], content[length:]
        key, equals, value = record.partition(b" ")[2].partition(b"=")
        if len(record) != length or length < 5 or not equals or not value.endswith(b"\n"):
            raise _malformed("a malformed extended header")
        found[key.decode("utf-8", "replace")] = value[:-1].decode("utf-8", "surrogateescape")
    return found


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise _malformed(f"{text[:20]!r} is not a size")
    return int(text)


def _parts(name: str) -> tuple[str, ...]:
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if name.startswith("/") or ".." in parts or "\0" in name:
        raise _malformed(f"the name {name[:200]!r} leads out of it")
    if len(parts) > _MAX_DEPTH or len(name) > 4096:
        raise _malformed("a name that is too long")
    return parts


class _Tree:
    """The destination. Every step goes from an open directory to a name in it, never through a link."""

    def __init__(self, root: Path) -> None:
        self._root = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        self._open: tuple[tuple[str, ...], int] | None = None  # the directory used last

    def close(self) -> None:
        self._leave()
        os.close(self._root)

    def make_directory(self, parts: tuple[str, ...]) -> None:
        self._directory(parts)

    def write_file(self, parts: tuple[str, ...], mode: int, pieces: Iterator[bytes]) -> None:
        directory, name = self._clear(parts)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with SparseFile(os.open(name, flags, mode & 0o777, dir_fd=directory)) as file:
            for piece in pieces:
                file.write(piece)

    def make_link(self, parts: tuple[str, ...], target: str) -> bool:
        """False if the link may lead out of the tree."""
        if not target or "\0" in target or _leads_out(parts, target):
            return False
        directory, name = self._clear(parts)
        os.symlink(target, name, dir_fd=directory)
        return True

    def _clear(self, parts: tuple[str, ...]) -> tuple[int, str]:
        """Removes what is there; returns the open directory and the name in it."""
        if not parts:
            raise _malformed("a file without a name")
        directory = self._directory(parts[:-1])
        try:
            os.unlink(parts[-1], dir_fd=directory)
        except FileNotFoundError:
            pass
        return directory, parts[-1]

    def _directory(self, parts: tuple[str, ...]) -> int:
        if not parts:
            return self._root
        if self._open is not None and self._open[0] == parts:
            return self._open[1]
        current = os.dup(self._root)
        for name in parts:
            try:
                os.mkdir(name, dir_fd=current)
            except FileExistsError:
                pass
            try:
                below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=current)
            except OSError:
                raise _malformed(f"{'/'.join(parts)[:200]!r} leads through something that is not a directory") from None
            finally:
                os.close(current)
            current = below
        self._leave()
        self._open = parts, current
        return current

    def _leave(self) -> None:
        if self._open is not None:
            os.close(self._open[1])
            self._open = None


def _leads_out(parts: tuple[str, ...], target: str) -> bool:
    """Whether the link at `parts` may lead out of the tree.

    `..` is safe only at the front, where it goes up from the link's own directory. After a name it is not: the name may
    be a link itself.
    """
    steps = PurePosixPath(target).parts
    up = next((at for at, step in enumerate(steps) if step != ".."), len(steps))
    return target.startswith("/") or up > len(parts) - 1 or ".." in steps[up:]


def _malformed(why: str) -> Internal:
    return Internal(f"malformed archive from the sandbox: {why}")
