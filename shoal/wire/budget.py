"""A bound on the memory of all collected outputs together.

Bytes count as they arrive, but only of outputs longer than `UNCOUNTED`, so short answers cost nothing. When the budget
is spent, the largest output is dropped, so large requests yield to small ones. It fails with an `Unavailable` that is
not retryable: its command was started, and goes on.
"""

from __future__ import annotations

from typing import Protocol

from shoal.model.errors import Unavailable

UNCOUNTED = 64 << 10
"""Outputs up to this many bytes are not counted."""


class Gathering(Protocol):
    """An output that is being collected."""

    def give_up(self, error: Unavailable) -> None:
        """Drops the collected output at once, and fails with `error`."""


class Budget:
    """The memory for all outputs of this process; belongs to one event loop."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.held = 0
        self._growing: dict[Share, Gathering] = {}

    def share(self) -> Share:
        """A new, empty share for one output."""
        return Share(self)

    def grow(self, share: Share, count: int, owner: Gathering) -> None:
        """Adds `count` bytes to a share; drops outputs, perhaps `owner` too, until the rest fits."""
        share.size += count
        self.held += count
        self._growing[share] = owner
        while self.held > self.most and self._growing:
            largest = max(self._growing, key=_size)
            loser = self._growing[largest]
            largest.release()
            loser.give_up(self._refusal())

    def settle(self, share: Share) -> None:
        """The share is complete, and will not be dropped."""
        self._growing.pop(share, None)

    def release(self, share: Share) -> None:
        """The share's memory is free again."""
        self._growing.pop(share, None)
        self.held -= share.size
        share.size = 0

    def _refusal(self) -> Unavailable:
        error = Unavailable(
            "the command was started, but there is no room for its output: other outputs fill all "
            f"{self.most >> 20} MiB; ask for less (`max_output`), or start a process and read its output as it comes"
        )
        error.retryable = False
        return error


class Share:
    """One output's part of a `Budget`. Its creator releases it once the output is no longer in memory."""

    __slots__ = ("_budget", "_uncounted", "size")

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._uncounted = 0
        self.size = 0

    def add(self, count: int, owner: Gathering) -> None:
        """Counts `count` bytes that arrived for `owner`, which may be dropped for it."""
        if self.size:
            self._budget.grow(self, count, owner)
            return
        self._uncounted += count
        if self._uncounted > UNCOUNTED:
            count, self._uncounted = self._uncounted, 0
            self._budget.grow(self, count, owner)

    def settle(self) -> None:
        """The output is complete: it will not be dropped."""
        if self.size:
            self._budget.settle(self)

    def release(self) -> None:
        """The output is no longer in memory. May be called again."""
        self._uncounted = 0
        if self.size:
            self._budget.release(self)


def _size(share: Share) -> int:
    return share.size
