"""The sandboxes in memory, by id, name and idempotency key. Pure: no Ray, no disk, no clock.

Memory holds all living sandboxes and the newest ended ones. The store may know more.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict
from collections.abc import Iterable, Iterator

from shoal.actors.controller.listing import page_of, position, wants_ended
from shoal.actors.controller.phase import RESTING
from shoal.actors.controller.quotas import Usage
from shoal.actors.controller.record import SandboxRecord
from shoal.model.errors import AlreadyExists, InvalidRequest
from shoal.model.info import Listing, PageCursor
from shoal.model.sorting import NEWEST, OLDEST
from shoal.model.spec import SandboxSpec

HISTORY_BYTES = 64 << 20
"""The most bytes that the texts of ended sandboxes (commands, tags, messages) take in memory."""


class Registry:
    """The sandboxes that live and the newest `history` that ended. Names are unique among the living of one
    environment."""

    def __init__(self, history: int) -> None:
        self._history = history
        self._live: dict[str, SandboxRecord] = {}
        self._ended: OrderedDict[str, SandboxRecord] = OrderedDict()
        self._by_age: list[PageCursor] = []  # of all in memory, oldest first: a page needs no look at the rest
        self._weight = 0
        self._living_weights: dict[str, int] = {}
        self._resting: dict[str, SandboxRecord] = {}
        self._names: dict[tuple[str, str], str] = {}
        self._keys: dict[tuple[str, str], str] = {}
        self._usage: dict[str, Usage] = {}
        self.complete = True
        """Whether memory has every sandbox that the store has."""

    def add(self, record: SandboxRecord) -> None:
        """Adds a new sandbox; `AlreadyExists` if a living one has its name."""
        spec = record.spec
        if spec.name is not None:
            holder = self._names.get((spec.environment, spec.name))
            if holder is not None and holder in self._live:
                raise AlreadyExists(
                    f"name: {spec.name!r} is taken by {holder} in environment {spec.environment!r}; "
                    "terminate it, use Sandbox.from_name, or choose another",
                    field="name",
                )
            record.name_from = holder
            self._names[spec.environment, spec.name] = record.id
        if spec.idempotency_key is not None:
            self._keys[spec.environment, spec.idempotency_key] = record.id
        self._enter(record)

    def settle(self, record: SandboxRecord) -> None:
        """Moves a sandbox that has ended to the history, and frees its idempotency key if its create failed."""
        if record.released:
            self._drop_key(record)
        if self._leave(record):
            self._remember(record)
        self._trim()

    def retract(self, record: SandboxRecord) -> None:
        """Removes a sandbox that could not be put on record, as if it had never existed."""
        if self._leave(record) and not record.hidden:
            self.usage(record.spec.environment).take_back()
        self._unlink(record)
        self._drop_age(record)
        had_it = record.name_from
        if record.spec.name is not None and had_it is not None and had_it in self._ended:
            self._names.setdefault((record.spec.environment, record.spec.name), had_it)

    def rest(self, record: SandboxRecord) -> None:
        """A persistent sandbox has stopped. Idempotent."""
        if record.id in self._live and record.id not in self._resting:
            self._resting[record.id] = record
            self.usage(record.spec.environment).rest(record.spec)

    def wake(self, record: SandboxRecord) -> None:
        """It is to run again. Idempotent."""
        if self._resting.pop(record.id, None) is not None:
            self.usage(record.spec.environment).wake(record.spec)

    def resting(self) -> list[SandboxRecord]:
        """The persistent sandboxes that are stopped."""
        return list(self._resting.values())

    def expire(self, before: float) -> list[str]:
        """Forgets sandboxes that ended before that time. Returns their ids."""
        old = [r.id for r in self._ended.values() if r.end is not None and r.end.ended_at < before]
        for sandbox_id in old:
            self._forget(sandbox_id)
        return old

    def get(self, sandbox_id: str) -> SandboxRecord | None:
        """The sandbox, living or ended, if memory has it."""
        return self._live.get(sandbox_id) or self._ended.get(sandbox_id)

    def find(self, name: str, environment: str) -> SandboxRecord | None:
        """The sandbox in memory that has that name, or had it last."""
        sandbox_id = self._names.get((environment, name))
        return None if sandbox_id is None else self.get(sandbox_id)

    def keyed(self, environment: str, key: str) -> SandboxRecord | None:
        """The sandbox that was created with that idempotency key."""
        sandbox_id = self._keys.get((environment, key))
        return None if sandbox_id is None else self.get(sandbox_id)

    def same_request(self, spec: SandboxSpec, forgotten: SandboxRecord | None = None) -> SandboxRecord | None:
        """The sandbox of an earlier call with the same idempotency key; `forgotten`: the one that only the store knows.
        `InvalidRequest` if that call asked for something else."""
        if spec.idempotency_key is None:
            return None
        record = self.keyed(spec.environment, spec.idempotency_key) or forgotten
        if record is not None and not record.asked_for(spec):
            raise InvalidRequest(
                "idempotency_key: it was used before for a different request; use a new one for each sandbox",
                field="idempotency_key",
            )
        return record

    def select(self, listing: Listing) -> list[SandboxRecord]:
        """Those in memory, in the listing's order."""
        return page_of(self._candidates(listing), listing)

    def live(self) -> list[SandboxRecord]:
        return list(self._live.values())

    def usage(self, environment: str) -> Usage:
        """What an environment's living sandboxes use."""
        return self._usage.setdefault(environment, Usage())

    def restore(self, records: Iterable[SandboxRecord]) -> None:
        """Takes back what the store kept, oldest first."""
        for record in records:
            spec = record.spec
            if spec.name is not None and not (
                record.ended and self._names.get((spec.environment, spec.name)) in self._live
            ):
                self._names[spec.environment, spec.name] = record.id
            if spec.idempotency_key is not None and not record.released:
                self._keys[spec.environment, spec.idempotency_key] = record.id
            if not record.hidden:
                self.usage(spec.environment).accept(record.created_at)
            if record.ended:
                insort(self._by_age, position(record))
                self._remember(record)
            else:
                self._enter(record)
                if record.life.phase in RESTING:
                    self.rest(record)
        self.complete = len(self._ended) < self._history
        self._trim()

    def _candidates(self, listing: Listing) -> Iterator[SandboxRecord]:
        """By time, from where the listing goes on, if that is its order; else all."""
        begin, end = 0, len(self._by_age)
        if listing.before is not None and listing.sort == OLDEST:
            begin = bisect_right(self._by_age, listing.before[:2])
        elif listing.before is not None and listing.sort == NEWEST:
            end = bisect_left(self._by_age, listing.before[:2])
        indices = range(begin, end) if listing.sort == OLDEST else range(end - 1, begin - 1, -1)
        with_ended = wants_ended(listing)
        for index in indices:
            sandbox_id = self._by_age[index][1]
            record = self._live.get(sandbox_id) or (self._ended.get(sandbox_id) if with_ended else None)
            if record is not None:
                yield record

    def _enter(self, record: SandboxRecord) -> None:
        self._live[record.id] = record
        insort(self._by_age, position(record))
        self._living_weights[record.id] = record.weight
        if not record.hidden:
            self.usage(record.spec.environment).add(record.spec, record.weight)

    def _leave(self, record: SandboxRecord) -> bool:
        self.wake(record)
        if self._live.pop(record.id, None) is None:
            return False
        weight = self._living_weights.pop(record.id)
        if not record.hidden:
            self.usage(record.spec.environment).remove(record.spec, weight)
        return True

    def _remember(self, record: SandboxRecord) -> None:
        self._ended[record.id] = record
        self._weight += record.weight

    def _trim(self) -> None:
        while len(self._ended) > self._history or self._weight > HISTORY_BYTES:
            self._forget(next(iter(self._ended)))
            self.complete = False

    def _forget(self, sandbox_id: str) -> None:
        record = self._ended.pop(sandbox_id)
        self._weight -= record.weight
        self._drop_age(record)
        self._unlink(record)

    def _drop_age(self, record: SandboxRecord) -> None:
        index = bisect_left(self._by_age, position(record))
        if index < len(self._by_age) and self._by_age[index] == position(record):
            del self._by_age[index]

    def _unlink(self, record: SandboxRecord) -> None:
        spec = record.spec
        if spec.name is not None and self._names.get((spec.environment, spec.name)) == record.id:
            del self._names[spec.environment, spec.name]
        self._drop_key(record)

    def _drop_key(self, record: SandboxRecord) -> None:
        spec = record.spec
        if spec.idempotency_key is not None and self._keys.get((spec.environment, spec.idempotency_key)) == record.id:
            del self._keys[spec.environment, spec.idempotency_key]
