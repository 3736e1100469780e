"""Gets ready ahead what the next taking of an image needs: starting its program takes some 3 ms of 30."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from shoal.actors.engines.oci.layers.maker import Maker
from shoal.actors.engines.oci.layers.taking import Taking, taking


@dataclass(slots=True)
class TakingAhead:
    """At most one that is ready. Its program and drafts go with this process, however that ends. Safe for several
    threads."""

    maker: Callable[[], Maker]
    _ready: tuple[Taking, ExitStack] | None = None
    _closed: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def provide(self) -> None:
        """Makes one, unless it is there."""
        if self._may_keep():
            with ExitStack() as stack:
                made = stack.enter_context(taking(self.maker()))
                with self._lock:
                    if self._may_keep():
                        self._ready = made, stack.pop_all()

    @contextmanager
    def taking(self) -> Iterator[Taking]:
        """The one that is ready, or a new one."""
        found = self._pop()
        with ExitStack() as stack:
            if found is not None:
                stack.enter_context(found[1])
            if found is None or not found[0].command.runs:
                yield stack.enter_context(taking(self.maker()))
            else:
                yield found[0]

    def drop(self) -> None:
        """Lets go of what is ready. Idempotent."""
        found = self._pop()
        if found is not None:
            found[1].close()

    def close(self) -> None:
        """And gets nothing ready any more. Idempotent."""
        with self._lock:
            self._closed = True
        self.drop()

    def _may_keep(self) -> bool:
        return self._ready is None and not self._closed

    def _pop(self) -> tuple[Taking, ExitStack] | None:
        with self._lock:
            found, self._ready = self._ready, None
        return found
