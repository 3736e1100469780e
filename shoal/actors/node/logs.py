"""Output of sandboxes' own commands, kept on the node after their end: at most `KEEP` bytes per stream and `KEEP_ALL`
in total."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from shoal.model.ids import SANDBOX

KEEP = 1024 * 1024
KEEP_ALL = 2 * 1024 * 1024 * 1024
CHUNK = 256 * 1024


class LogFiles:
    """Files `<directory>/<sandbox>.<fd>`: the offset of the first byte kept in eight bytes, then the bytes. Blocks:
    call in a thread."""

    def __init__(self, directory: Path, keep_all: int = KEEP_ALL) -> None:
        self._directory = directory
        self._keep_all = keep_all

    def save(self, sandbox_id: str, fd: int, offset: int, data: bytes) -> None:
        """Keeps the last `KEEP` bytes of `data`, which begins at `offset` of the stream. Atomic."""
        self._directory.mkdir(parents=True, exist_ok=True)
        dropped = max(0, len(data) - KEEP)
        file = self._file(sandbox_id, fd)
        temporary = file.with_name(file.name + ".tmp")
        with temporary.open("wb") as out:
            out.write((offset + dropped).to_bytes(8, "big"))
            out.write(data[dropped:])
        temporary.replace(file)

    def read(self, sandbox_id: str, fd: int, offset: int) -> tuple[int, bytes, bool]:
        """(offset of the first byte, up to `CHUNK` bytes, whether they are the last). If nothing was kept: empty, the
        last."""
        try:
            with self._file(sandbox_id, fd).open("rb") as source:
                base = int.from_bytes(source.read(8), "big")
                start = max(offset, base)
                source.seek(8 + start - base)
                data = source.read(CHUNK)
                return start, data, not source.read(1)
        except FileNotFoundError:
            return offset, b"", True

    def whole(self, sandbox_id: str, fd: int) -> tuple[int, bytes]:
        """(offset of the first byte, all bytes) of what was kept; empty if nothing was."""
        try:
            kept = self._file(sandbox_id, fd).read_bytes()
        except FileNotFoundError:
            return 0, b""
        return int.from_bytes(kept[:8], "big"), kept[8:]

    def has(self, sandbox_id: str) -> bool:
        """Whether output of the sandbox is kept."""
        return any(self._file(sandbox_id, fd).exists() for fd in (1, 2))

    def sweep(self, max_age: float, now: float | None = None) -> None:
        """Removes files older than `max_age` seconds, and the oldest ones beyond the total: many short sandboxes would
        fill the disk."""
        moment = time.time() if now is None else now
        left = self._keep_all
        for written, size, file in sorted(self._files(), reverse=True):
            left -= size
            if left < 0 or moment - written > max_age:
                file.unlink(missing_ok=True)

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """(time written, size, path) of each file."""
        if not self._directory.exists():
            return
        for file in self._directory.iterdir():
            with suppress(FileNotFoundError):
                found = file.stat()
                yield found.st_mtime, found.st_size, file

    def _file(self, sandbox_id: str, fd: int) -> Path:
        if not SANDBOX.fullmatch(sandbox_id) or fd not in (1, 2):
            raise ValueError(f"no log of {sandbox_id!r}, {fd!r}")
        return self._directory / f"{sandbox_id}.{fd}"
