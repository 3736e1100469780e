"""One change of a container at a time, whichever of the engine's threads makes it."""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass, field


@dataclass(slots=True)
class KeyLocks:
    """A lock for each key, as long as somebody has it."""

    _locks: weakref.WeakValueDictionary[str, _Lock] = field(default_factory=weakref.WeakValueDictionary)

    def __call__(self, key: str) -> _Lock:
        lock = self._locks.get(key)
        return lock if lock is not None else self._locks.setdefault(key, _Lock())


class _Lock:
    """A lock that a weak reference may point to."""

    __slots__ = ("__weakref__", "_lock")

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()
