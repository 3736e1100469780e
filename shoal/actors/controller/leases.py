"""The owner leases: which sandboxes end because nobody has renewed theirs. Pure, but for the clock.

They are kept in memory only: a controller that was restarted grants each a full lease anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from shoal.actors.controller.record import SandboxRecord

SILENCE_S = 5.0
"""A controller that has not looked for so long has heard no renewals either: that time counts for nobody."""


@dataclass(slots=True)
class OwnerLeases:
    """The leases of the sandboxes that run, by `clock`."""

    clock: Callable[[], float] = time.monotonic
    _until: dict[str, float] = field(default_factory=dict)
    _ending: set[str] = field(default_factory=set)
    _looked: float | None = None

    def renew(self, record: SandboxRecord) -> bool:
        """Grants a full lease from now on. False: it has none, or has ended, or its lease is over."""
        lease_s = record.spec.owner_lease
        if lease_s is None or record.ended or record.ended_by is not None or record.id in self._ending:
            return False
        if record.id in self._until:  # else it begins when it runs
            self._until[record.id] = self.clock() + lease_s
        return True

    def expired(self, living: Sequence[SandboxRecord]) -> list[SandboxRecord]:
        """Those whose leases are over since the last look; each is told once. A lease begins at the first look at which
        its sandbox runs."""
        now = self.clock()
        silent_s = 0.0 if self._looked is None else now - self._looked
        self._looked = now
        until, over = {}, []
        for record in living:
            lease_s = record.spec.owner_lease
            if lease_s is None or record.started is None or record.id in self._ending:
                continue
            end = self._until.get(record.id, now + lease_s)
            if silent_s > SILENCE_S:
                end += silent_s
            if end <= now:
                over.append(record)
            else:
                until[record.id] = end
        self._until = until
        if self._ending:
            self._ending.intersection_update([record.id for record in living])
        self._ending.update(record.id for record in over)
        return over
