"""The bytes of a stream as entries: one for each line."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

LONGEST = 64 * 1024
"""Bytes of the longest line; longer ones are several entries."""

STREAMS = {1: "stdout", 2: "stderr"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One line as it is sent, JSON without its end. `size`: what it counts towards the bound of the spool."""

    body: bytes

    @property
    def size(self) -> int:
        return len(self.body)


@dataclass(slots=True)
class Splitter:
    """Makes lines of the chunks of one stream. `offset`: of the first byte that is in no line yet."""

    offset: int = 0
    _rest: bytearray = field(default_factory=bytearray)

    @property
    def end(self) -> int:
        """Where the next chunk begins."""
        return self.offset + len(self._rest)

    @property
    def has_rest(self) -> bool:
        """Whether there is a line that has not ended yet."""
        return bool(self._rest)

    def add(self, data: bytes) -> list[tuple[int, bytes]]:
        """(offset, line without its end) of each line that is whole now."""
        self._rest += data
        found = []
        while (end := self._rest.find(b"\n", 0, LONGEST)) >= 0 or len(self._rest) >= LONGEST:
            size = end if end >= 0 else LONGEST
            found.append((self.offset, bytes(self._rest[:size])))
            self._drop(size + (end >= 0))
        return found

    def flush(self) -> list[tuple[int, bytes]]:
        """The line that has not ended, as one: nothing has come for a while, or the stream is over."""
        if not self._rest:
            return []
        found = [(self.offset, bytes(self._rest))]
        self._drop(len(self._rest))
        return found

    def skip_to(self, offset: int) -> None:
        """Bytes before `offset` are not to be had."""
        self._rest.clear()
        self.offset = offset

    def _drop(self, size: int) -> None:
        del self._rest[:size]
        self.offset += size


@dataclass(frozen=True, slots=True)
class Names:
    """Where entries come from."""

    cluster: str
    node: str

    def line(self, at: float, sandbox_id: str, fd: int, offset: int, line: bytes) -> Entry:
        """A line of a sandbox's output."""
        text = line.removesuffix(b"\r").decode("utf-8", "replace")
        return self._entry(at, "output", sandbox_id=sandbox_id, stream=STREAMS[fd], offset=offset, text=text)

    def gap(self, at: float, sandbox_id: str, fd: int, offset: int, size: int) -> Entry:
        """Output that is lost: `size` bytes from `offset` on."""
        return self._entry(at, "gap", sandbox_id=sandbox_id, stream=STREAMS[fd], offset=offset, bytes=size)

    def event(self, at: float, told: dict[str, Any]) -> Entry:
        """An event of the cluster's; `told`: as `SandboxEvent.to_dict` gives it."""
        kind = told["kind"]
        members = {name: told[name] for name in ("id", "environment", "sandbox_id", "data")}
        return self._entry(at, "event", event=kind, **members)

    def _entry(self, at: float, kind: str, **members: Any) -> Entry:
        time = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
        entry = {"time": time, "kind": kind, "cluster": self.cluster, "node": self.node, **members}
        return Entry(json.dumps(entry, ensure_ascii=False).encode("utf-8", "replace"))
