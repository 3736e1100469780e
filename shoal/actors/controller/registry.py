"""All sandboxes in memory, by id, name and idempotency key. Pure: no Ray, no disk, no clock."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from shoal.actors.controller.record import SandboxRecord
from shoal.model.errors import AlreadyExists, InvalidRequest, SandboxNotFound
from shoal.model.info import Listing
from shoal.model.spec import SandboxSpec


class Registry:
    """The sandboxes that live and the newest `history` that ended. Names are unique among the living of one environment."""

    def __init__(self, history: int) -> None:
        self._history = history
        self._live: dict[str, SandboxRecord] = {}
        self._ended: OrderedDict[str, SandboxRecord] = OrderedDict()
        self._names: dict[tuple[str, str], str] = {}
        self._keys: dict[tuple[str, str], str] = {}

    def add(self, record: SandboxRecord) -> None:
        """Takes a new sandbox in; `AlreadyExists` where its name is taken by a living one."""
        spec = record.spec
        if spec.name is not None:
            holder = self._names.get((spec.environment, spec.name))
            if holder is not None and holder in self._live:
                raise AlreadyExists(
                    f"name: {spec.name!r} is taken by {holder} in environment {spec.environment!r}; "
                    "terminate it, use Sandbox.from_name, or choose another",
                    field="name",
                )
            self._names[spec.environment, spec.name] = record.id
        if spec.idempotency_key is not None:
            self._keys[spec.environment, spec.idempotency_key] = record.id
        (self._ended if record.ended else self._live)[record.id] = record

    def settle(self, record: SandboxRecord) -> list[str]:
        """A sandbox has ended: moves it to the history. Returns ids that are forgotten for it."""
        if self._live.pop(record.id, None) is not None:
            self._ended[record.id] = record
        forgotten = []
        while len(self._ended) > self._history:
            forgotten.append(self._forget(next(iter(self._ended))))
        return forgotten

    def release_key(self, record: SandboxRecord) -> None:
        """A create failed so that it may be tried again under the same key."""
        spec = record.spec
        if spec.idempotency_key is not None and self._keys.get((spec.environment, spec.idempotency_key)) == record.id:
            del self._keys[spec.environment, spec.idempotency_key]

    def expire(self, before: float, keep: int) -> list[str]:
        """Forgets ended sandboxes that ended before that moment, beyond the newest `keep`. Returns their ids."""
        old = [
            r.id
            for r in list(self._ended.values())[: max(0, len(self._ended) - keep)]
            if r.end and r.end.ended_at < before
        ]
        return [self._forget(sandbox_id) for sandbox_id in old]

    def get(self, sandbox_id: str) -> SandboxRecord:
        """The sandbox, living or ended; `SandboxNotFound`."""
        record = self._live.get(sandbox_id) or self._ended.get(sandbox_id)
        if record is None:
            raise SandboxNotFound(f"there is no sandbox {sandbox_id}; `shoal ls --all` lists those that were")
        return record

    def find(self, name: str, environment: str) -> SandboxRecord:
        """The sandbox that has that name, or had it last; `SandboxNotFound`."""
        sandbox_id = self._names.get((environment, name))
        if sandbox_id is None:
            raise SandboxNotFound(f"there is no sandbox named {name!r} in environment {environment!r}")
        return self.get(sandbox_id)

    def keyed(self, environment: str, key: str) -> SandboxRecord | None:
        """The sandbox that was made with that idempotency key."""
        sandbox_id = self._keys.get((environment, key))
        return None if sandbox_id is None else self.get(sandbox_id)

    def same_request(self, spec: SandboxSpec) -> SandboxRecord | None:
        """The sandbox that an earlier call with the same idempotency key made. `InvalidRequest` where that call asked for something else."""
        if spec.idempotency_key is None:
            return None
        sandbox_id = self._keys.get((spec.environment, spec.idempotency_key))
        if sandbox_id is None:
            return None
        record = self.get(sandbox_id)
        if record.spec != spec:
            raise InvalidRequest(
                "idempotency_key: it was used before for a different request; use a new one for each sandbox",
                field="idempotency_key",
            )
        return record

    def select(self, listing: Listing) -> list[SandboxRecord]:
        """Newest first."""
        records: list[SandboxRecord] = list(self._live.values())
        if listing.include_ended or any(s.value in ("terminated", "failed") for s in listing.states):
            records += self._ended.values()
        found = [
            r
            for r in records
            if r.spec.environment == listing.environment
            and (not listing.states or r.life.state in listing.states)
            and all(r.tags.get(k) == v for k, v in listing.tags.items())
        ]
        found.sort(key=lambda r: r.created_at, reverse=True)
        return found[: listing.limit]

    def live(self) -> list[SandboxRecord]:
        return list(self._live.values())

    def restore(self, records: Iterable[SandboxRecord]) -> None:
        """Takes back what the journal kept, oldest first."""
        for record in records:
            spec = record.spec
            if spec.name is not None and not (
                record.ended and self._names.get((spec.environment, spec.name)) in self._live
            ):
                self._names[spec.environment, spec.name] = record.id
            if spec.idempotency_key is not None:
                self._keys[spec.environment, spec.idempotency_key] = record.id
            (self._ended if record.ended else self._live)[record.id] = record

    def _forget(self, sandbox_id: str) -> str:
        record = self._ended.pop(sandbox_id)
        spec = record.spec
        if spec.name is not None and self._names.get((spec.environment, spec.name)) == sandbox_id:
            del self._names[spec.environment, spec.name]
        self.release_key(record)
        return sandbox_id
