"""What gathered outputs may hold in memory together, however many there are.

Bytes count as they arrive, of outputs that are longer than `UNCOUNTED`; so short answers cost nothing here. Where all is used up, the output
that holds most is given up, so those who ask for much stand back for those who ask for little. It fails with an `Unavailable` that is not
retryable: its command was started, and runs on.
"""

from __future__ import annotations

from typing import Protocol

from shoal.model.errors import Unavailable

UNCOUNTED = 64 << 10
"""Bytes up to which an output does not count."""


class Gathering(Protocol):
    """Output that is being gathered."""

    def give_up(self, error: Unavailable) -> None:
        """Lets go of what was gathered, at once, and fails with `error`."""


class Budget:
    """Bytes for all outputs of a process's; belongs to one event loop."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.held = 0
        self._growing: dict[Share, Gathering] = {}

    def share(self) -> Share:
        """A new output's share, empty."""
        return Share(self)

    def grow(self, share: Share, count: int, owner: Gathering) -> None:
        """`count` bytes more in a share; gives up outputs, `owner` perhaps among them, until all have room."""
        share.size += count
        self.held += count
        self._growing[share] = owner
        while self.held > self.most and self._growing:
            largest = max(self._growing, key=_size)
            loser = self._growing[largest]
            largest.release()
            loser.give_up(self._refusal())

    def settle(self, share: Share) -> None:
        """The share grows no more, and is not given up."""
        self._growing.pop(share, None)

    def release(self, share: Share) -> None:
        """The share holds nothing any more."""
        self._growing.pop(share, None)
        self.held -= share.size
        share.size = 0

    def _refusal(self) -> Unavailable:
        error = Unavailable(
            f"the command was started, but there is no room for its output: long outputs hold all of the {self.most >> 20} MiB that "
            "they may here; ask for less (`max_output`), or start it as a process and read its output as it comes"
        )
        error.retryable = False
        return error


class Share:
    """What one output holds of a `Budget`. Whoever made it releases it once the output is in memory no more."""

    __slots__ = ("_budget", "_uncounted", "size")

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._uncounted = 0
        self.size = 0

    def add(self, count: int, owner: Gathering) -> None:
        """`count` bytes have come to `owner`, which may be given up for it."""
        if self.size:
            self._budget.grow(self, count, owner)
            return
        self._uncounted += count
        if self._uncounted > UNCOUNTED:
            count, self._uncounted = self._uncounted, 0
            self._budget.grow(self, count, owner)

    def settle(self) -> None:
        """All has come: from now on it is not given up."""
        if self.size:
            self._budget.settle(self)

    def release(self) -> None:
        """Nothing of it is held. Again is harmless."""
        self._uncounted = 0
        if self.size:
            self._budget.release(self)


def _size(share: Share) -> int:
    return share.size
