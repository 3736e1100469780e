"""Whether what is behind a mount answers, such as the service of a bucket: the mount's root may answer without it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass

from shoal.actors.node.mounts import threads

ASK_EVERY_S = 10.0
PATIENCE_S = 5.0


@dataclass(slots=True, eq=False)
class ServiceWatch:
    """`silent_since`: since when it has not answered; None: it does, as far as is known."""

    silent_since: float | None = None
    _asked_at: float = -math.inf
    _asking: asyncio.Future[bool] | None = None

    def look(self, now: float, answers: Callable[[], bool]) -> float:
        """For how long a question has waited for its answer. Called again and again; waits for nothing. `answers`:
        asks, and blocks as long as that takes."""
        if self._asking is not None and self._asking.done():
            answered = self._asking.exception() is not None or self._asking.result()
            self.silent_since = None if answered else self._since()
            self._asking = None
        if self._asking is None:
            if now - self._asked_at >= ASK_EVERY_S:
                self._asked_at, self._asking = now, threads.begin(answers)
            return 0.0
        waited_s = now - self._asked_at
        if waited_s >= PATIENCE_S:
            self.silent_since = self._since()
        return waited_s

    def _since(self) -> float:
        return self._asked_at if self.silent_since is None else self.silent_since
