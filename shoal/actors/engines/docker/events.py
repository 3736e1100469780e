"""The daemon's event stream as the contract's events.

Reading it blocks, so each stream has its own daemon thread. `close` shuts its socket, which ends the read at once.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import requests
from docker import APIClient
from docker.errors import DockerException

from shoal.actors.engines.contract import EngineEvent, EventKind
from shoal.actors.engines.docker.failures import release
from shoal.actors.engines.docker.request import KEY_LABEL

_log = logging.getLogger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0
_OVERLAP_NS = 10**9
_QUEUE = 10_000
"""Events that may wait for a slow reader; beyond it they are dropped, and found by `list`."""


class EventStream:
    """Events of containers that carry `labels`, from its creation on. Iterate it in the loop that created it.
    `on_out_of_memory(key)` is called in the stream's thread, before the event is delivered."""

    def __init__(
        self, connect: Callable[[], APIClient], labels: Mapping[str, str], on_out_of_memory: Callable[[str], None]
    ) -> None:
        self._connect = connect
        self._on_out_of_memory = on_out_of_memory
        self._filters = {"type": "container", "event": ["die", "oom"], "label": [f"{k}={v}" for k, v in labels.items()]}
        # A new connection asks for events from these nanoseconds on. It asks for a little twice, as events may come
        # out of order, and skips those seen before: so none is lost and none comes twice.
        self._since = time.time_ns()
        self._seen: deque[tuple[object, ...]] = deque(maxlen=256)
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[EngineEvent | None] = asyncio.Queue(_QUEUE)
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._stream: Any = None
        self._thread: threading.Thread | None = None

    async def __aiter__(self) -> AsyncIterator[EngineEvent]:
        self._thread = threading.Thread(target=self._read, name="shoal-engine-events", daemon=True)
        self._thread.start()
        try:
            while (event := await self._queue.get()) is not None:
                yield event
        finally:
            self.close()

    def close(self) -> None:
        """Ends iteration and thread. Idempotent, callable from any thread, never blocks."""
        self._closed.set()
        with self._lock:
            _shut(self._stream)
            self._stream = None
        self._tell(None)

    def _read(self) -> None:
        pause = _FIRST_PAUSE
        while not self._closed.is_set():
            client = None
            try:
                client = self._connect()
                if self._listen(client):
                    pause = _FIRST_PAUSE
            except (DockerException, requests.exceptions.RequestException, OSError, ValueError) as error:
                # ValueError: the stream broke within a message.
                release(error)
                if not self._closed.is_set():
                    _log.warning("the engine's event stream broke, connecting again: %s", error)
            finally:
                if client is not None:
                    client.close()
            self._closed.wait(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _listen(self, client: APIClient) -> bool:
        """Reads until the stream ends; returns whether there was a stream."""
        since = f"{self._since // 10**9}.{self._since % 10**9:09d}"
        stream = client.events(since=since, filters=self._filters, decode=True)
        with self._lock:
            self._stream = stream
        if self._closed.is_set():
            self.close()
        for message in stream:
            at = int(message.get("timeNano") or 0)
            mark = (at, message.get("id"), message.get("Action"))
            if mark in self._seen:
                continue
            self._seen.append(mark)
            self._since = max(self._since, at - _OVERLAP_NS)
            event = to_event(message)
            if event is not None:
                if event.kind is EventKind.OUT_OF_MEMORY:
                    self._on_out_of_memory(event.key)
                self._tell(event)
        return True

    def _tell(self, event: EngineEvent | None) -> None:
        try:
            self._loop.call_soon_threadsafe(self._put, event)
        except RuntimeError:
            # The loop is closed: nobody waits any more.
            self._closed.set()

    def _put(self, event: EngineEvent | None) -> None:
        if self._queue.full():
            if event is not None:
                _log.warning("engine events come faster than they are read; dropped one of %s", event.key)
                return
            self._queue.get_nowait()
        self._queue.put_nowait(event)


def to_event(message: Mapping[str, Any]) -> EngineEvent | None:
    """The daemon's message as an event; None if it is of no interest."""
    attributes = (message.get("Actor") or {}).get("Attributes") or {}
    key, action = attributes.get(KEY_LABEL), message.get("Action")
    if not key:
        return None
    if action == "oom":
        return EngineEvent(EventKind.OUT_OF_MEMORY, key)
    if action == "die":
        code = str(attributes.get("exitCode", ""))
        return EngineEvent(EventKind.EXITED, key, int(code) if code.isdecimal() else None)
    return None


def _shut(stream: Any) -> None:
    if stream is None:
        return
    try:
        stream.close()
    except (OSError, AttributeError, DockerException):
        # The other side has just closed it: there is no socket left to shut.
        pass
