"""New local files, written without their zeros, so that a sparse file of a sandbox stays sparse here."""

from __future__ import annotations

import os
from typing import Self

_BLOCK = 16 << 10
"""Bytes: of a shorter stretch of zeros no hole is made."""

_ZEROS = bytes(_BLOCK)


class SparseFile:
    """A new file that is written from its beginning to its end. It owns the descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._size = 0
        self.closed = False

    def write(self, data: bytes) -> None:
        """Adds `data`; blocks of zeros in it become holes."""
        start = 0  # of what is still to be written
        for at in range(0, len(data), _BLOCK):
            if data[at] or not _ZEROS.startswith(data[at : at + _BLOCK]):
                continue
            self._put(memoryview(data)[start:at], start)
            start = at + _BLOCK
        self._put(memoryview(data)[start:], start)
        self._size += len(data)

    def close(self) -> None:
        """Gives the file its size, which holes at its end did not, and closes it. May be called again."""
        if self.closed:
            return
        self.closed = True
        try:
            os.ftruncate(self._descriptor, self._size)
        finally:
            os.close(self._descriptor)

    def _put(self, data: memoryview, start: int) -> None:
        at = self._size + start
        while data:
            written = os.pwrite(self._descriptor, data, at)
            data = data[written:]
            at += written

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
