"""An object storage in memory, which can fail."""

from __future__ import annotations

import builtins
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from shoal.actors.objects import PIECE, ObjectAccess, ObjectInfo, ObjectKeeper, ObjectStore
from shoal.model.errors import NotFound, ShoalError


@dataclass
class MemoryStore(ObjectStore):
    """`calls`: (method, key) of every call; `fail`: raised by the next calls, one each."""

    objects: dict[str, bytes] = field(default_factory=dict)
    modified: dict[str, float] = field(default_factory=dict)
    calls: builtins.list[tuple[str, str]] = field(default_factory=list)
    fail: builtins.list[ShoalError] = field(default_factory=list)
    _turn: threading.Lock = field(default_factory=threading.Lock)

    def check(self) -> None:
        self._note("check", "")

    def put(self, key: str, content: bytes | Path, *, replace: bool = True) -> bool:
        self._note("put", key)
        data = content if isinstance(content, bytes) else content.read_bytes()
        with self._turn:
            if not replace and len(self.objects.get(key, b"")) == len(data) and key in self.objects:
                return False
            self.objects[key] = data
            self.modified[key] = time.time()
        return True

    def read(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        self._note("read", key)
        if key not in self.objects:
            raise NotFound(f"there is no object {key}")
        data = self.objects[key][start : None if length is None else start + length]
        for first in range(0, len(data), PIECE):
            yield data[first : first + PIECE]

    def get(self, key: str, target: Path) -> int:
        self._note("get", key)
        if key not in self.objects:
            raise NotFound(f"there is no object {key}")
        have = target.stat().st_size if target.exists() else 0
        with target.open("ab") as file:
            file.write(self.objects[key][have:])
        return len(self.objects[key])

    def head(self, key: str) -> ObjectInfo | None:
        self._note("head", key)
        data = self.objects.get(key)
        return None if data is None else ObjectInfo(key, len(data), self.modified[key])

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        self._note("list", prefix)
        for key, data in sorted(self.objects.items()):
            if key.startswith(prefix):
                yield ObjectInfo(key, len(data), self.modified[key])

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._note("delete", key)
            self.objects.pop(key, None)

    def close(self) -> None:
        pass

    def _note(self, method: str, key: str) -> None:
        with self._turn:
            self.calls.append((method, key))
            if self.fail:
                raise self.fail.pop(0)


@dataclass
class MemoryKeeper(ObjectKeeper):
    """Gives access to one store in memory."""

    store: MemoryStore = field(default_factory=MemoryStore)

    def access(self) -> ObjectAccess:
        return MemoryAccess(self.store)

    def tend(self) -> None:
        pass


@dataclass
class MemoryAccess(ObjectAccess):
    """Leads to a store of this process."""

    store: MemoryStore

    def connect(self) -> ObjectStore:
        return self.store
