"""Local files of callers, as tar archives by their digest, for as long as builds may need them. Blocks."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from pathlib import Path

from shoal.model.builds import PIECE
from shoal.model.errors import InvalidRequest, QuotaExceeded
from shoal.model.recipe import DIGEST, MOST_FILES_BYTES

KEPT_S = 24 * 3600.0
MOST_BYTES = 8 << 30
"""Bytes of all that is kept; the oldest goes first."""

_PART = ".part"


class FileStore:
    """Archives below a directory of this machine."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._writing = threading.Lock()

    def path(self, digest: str) -> Path | None:
        """The archive, if it is there whole."""
        found = self._root / digest
        return found if found.is_file() else None

    def put(self, digest: str, size: int, offset: int, data: bytes) -> None:
        """A piece. The same again does no harm; with the last one, the whole is checked."""
        if not DIGEST.fullmatch(digest):
            raise InvalidRequest("digest: it is no SHA-256 in 64 hexadecimal digits", field="digest")
        if not 0 <= size <= MOST_FILES_BYTES:
            raise InvalidRequest(
                f"size: {size:,} is more than {MOST_FILES_BYTES:,} bytes, or less than 0", field="size"
            )
        if len(data) > PIECE or not 0 <= offset <= size - len(data):
            raise InvalidRequest(f"offset: {len(data)} bytes at {offset} are no piece of {size}", field="offset")
        with self._writing:
            if self.path(digest) is not None:
                return
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            part = self._root / f"{digest}{_PART}"
            if not part.exists():
                self._make_room(size)
            try:
                with open(os.open(part, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as file:
                    file.seek(offset)
                    file.write(data)
            except OSError as error:
                raise QuotaExceeded(f"the files cannot be kept: {error.strerror}; make room on the head") from None
            if offset + len(data) == size:
                self._finish(part, digest, size)

    def _finish(self, part: Path, digest: str, size: int) -> None:
        with part.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != digest or part.stat().st_size != size:
            part.unlink()
            raise InvalidRequest(
                "digest: the files are not those of this digest; send all of them again", field="digest"
            )
        part.replace(self._root / digest)

    def _make_room(self, size: int) -> None:
        """Removes what is old, and what is too much."""
        kept = sorted(
            ((each.stat().st_mtime, each.stat().st_size, each) for each in self._root.iterdir()), reverse=True
        )
        total = size
        for at, own, path in kept:
            total += own
            if time.time() - at > KEPT_S or total > MOST_BYTES:
                path.unlink(missing_ok=True)
