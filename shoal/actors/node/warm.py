"""Warm containers: which to keep ready, by what was created lately. Pure; the caller passes the time."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from shoal.model.settings import NodeSettings
from shoal.model.spec import ContainerShape


@dataclass(slots=True)
class WarmPool:
    """The warm containers of a node, by shape, and the policy of how many there should be.

    A shape is kept warm once it was created `warm_after` times within `warm_linger` seconds, until it is unused for as
    long. Only the `warm_shapes` most recently used shapes are kept.
    """

    settings: NodeSettings
    _created: dict[ContainerShape, deque[float]] = field(default_factory=dict)
    _ready: dict[ContainerShape, deque[str]] = field(default_factory=dict)

    def note_create(self, shape: ContainerShape, now: float) -> None:
        """Notes that a sandbox of `shape` was created."""
        times = self._created.setdefault(shape, deque(maxlen=self.settings.warm_after))
        times.append(now)

    def take(self, shape: ContainerShape) -> str | None:
        """Takes a ready container out of the pool, oldest first; returns its key."""
        ready = self._ready.get(shape)
        if not ready:
            return None
        key = ready.popleft()
        if not ready:
            del self._ready[shape]
        return key

    def put(self, shape: ContainerShape, key: str) -> None:
        """Adds a ready container."""
        self._ready.setdefault(shape, deque()).append(key)

    def discard(self, key: str) -> bool:
        """Forgets a container that died; False if it was not in the pool."""
        for shape, ready in self._ready.items():
            if key in ready:
                ready.remove(key)
                if not ready:
                    del self._ready[shape]
                return True
        return False

    def wanted(self, now: float) -> list[ContainerShape]:
        """The shapes to keep warm, most recently used first."""
        linger = self.settings.warm_linger
        for shape in [s for s, times in self._created.items() if now - times[-1] > linger]:
            del self._created[shape]
        if self.settings.warm_containers == 0:
            return []
        busy = [
            (times[-1], shape)
            for shape, times in self._created.items()
            if len(times) >= self.settings.warm_after and now - times[0] <= linger
        ]
        # A shape whose first uses are older than the window is still wanted while it is warm and in use.
        busy += [(self._created[s][-1], s) for s in self._ready if s in self._created and s not in {b for _, b in busy}]
        busy.sort(key=lambda pair: pair[0], reverse=True)
        return [shape for _, shape in busy[: self.settings.warm_shapes]]

    def missing(self, now: float) -> ContainerShape | None:
        """The shape that lacks a warm container most urgently, if any."""
        for shape in self.wanted(now):
            if len(self._ready.get(shape, ())) < self.settings.warm_containers:
                return shape
        return None

    def surplus(self, now: float) -> list[str]:
        """Takes the containers that are no longer wanted out of the pool; returns their keys."""
        wanted = set(self.wanted(now))
        keys: list[str] = []
        for shape in [s for s in self._ready if s not in wanted]:
            keys.extend(self._ready.pop(shape))
        return keys

    @property
    def keys(self) -> set[str]:
        return {key for ready in self._ready.values() for key in ready}
