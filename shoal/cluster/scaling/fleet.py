"""All regions as one: lists that are never partial, and a record of how launches went.

A region whose API fails keeps its last known machines in the list: what is missing from it is taken for terminated. So
does a machine that was just launched, which a cloud may not list at first. One that was just terminated, which a cloud
may list for a while, is listed as ending; one that runs on after that is listed again, and terminated again.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from shoal.cluster.scaling.backoff import Outcome
from shoal.cluster.scaling.contract import (
    CloudError,
    Launched,
    Machine,
    MachineState,
    Misconfigured,
    Notice,
    Order,
    Region,
    RegionDown,
)
from shoal.cluster.scaling.spec import region_of

_OUTCOMES = 200
"""How many are kept, for whoever asks late."""


@dataclass(frozen=True, slots=True)
class RegionState:
    """A region as it was last listed. `failed`: why it cannot be listed now."""

    machines: tuple[Machine, ...] = ()
    failed: str | None = None


@dataclass(frozen=True, slots=True)
class FleetState:
    """What is known of all machines. `launching`: machines by type that are being asked for; `fresh`, `ended`: until
    when a cloud may not know that machines were launched or terminated, by a clock that never goes back."""

    regions: Mapping[str, RegionState] = field(default_factory=dict)
    launching: Mapping[str, int] = field(default_factory=dict)
    outcomes: tuple[Outcome, ...] = ()
    notices: tuple[Notice, ...] = ()
    fresh: Mapping[str, float] = field(default_factory=dict)
    ended: Mapping[str, float] = field(default_factory=dict)

    def machines(self) -> list[Machine]:
        """Of all regions."""
        return [machine for region in self.regions.values() for machine in region.machines]


class Fleet:
    """`state`: what an earlier one knew; `changed`: called with each new state, before the call that made it returns.

    Its methods may be called from several threads.
    """

    def __init__(
        self,
        regions: Iterable[Region],
        state: FleetState | None = None,
        changed: Callable[[FleetState], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        state = state or FleetState()
        self._regions = {region.name: region for region in regions}
        self._known = dict(state.regions)
        # What an earlier one was launching, the lists show.
        self._launching: Counter[str] = Counter()
        self._outcomes = deque(state.outcomes, _OUTCOMES)
        self._notices: dict[str, Sequence[Notice]] = {}
        self._fresh = dict(state.fresh)
        self._ended = dict(state.ended)
        self._due: dict[str, float] = {}
        self._published: FleetState | None = None
        self._changed = changed
        self._clock = clock
        self._lock = threading.Lock()
        self._workers = ThreadPoolExecutor(max(4, len(self._regions)), thread_name_prefix="region")

    def state(self) -> FleetState:
        """What is known now."""
        with self._lock:
            return self._state()

    def refresh(self) -> list[Machine]:
        """All machines that are not gone, those that are ending included, by the newest lists. Raises nothing."""
        now = self._clock()
        due = {name: region for name, region in self._regions.items() if now >= self._due.get(name, now)}
        self._due.update({name: now + region.each_s for name, region in due.items()})
        looks = {name: self._workers.submit(_look, region) for name, region in due.items()}
        answers = {name: look.result() for name, look in looks.items()}
        with self._lock:
            now = self._clock()
            self._fresh = {machine_id: until for machine_id, until in self._fresh.items() if until > now}
            self._ended = {machine_id: until for machine_id, until in self._ended.items() if until > now}
            for name, answer in answers.items():
                before = self._known.get(name, RegionState())
                if isinstance(answer, CloudError):
                    self._known[name] = replace(before, failed=f"{answer.kind}: {answer}")
                    self._note(name, 0, answer)
                else:
                    machines, self._notices[name] = answer
                    self._known[name] = RegionState(tuple(self._settled(name, machines, before)))
            self._publish()
            return self._state().machines()

    def launch(self, order: Order) -> Launched:
        """Launches in the region of the order's type. As `Region.launch`; how it went is recorded."""
        region = self._regions.get(region_of(order.type))
        if region is None:
            raise Misconfigured(f"there is no region {region_of(order.type)}")
        with self._lock:
            self._launching[order.type] += order.count
            self._publish()
        launched = Launched(error=RegionDown("the launch was cut short"))
        try:
            launched = _launch(region, order)
        except CloudError as error:
            launched = Launched(error=error)
            raise
        finally:
            with self._lock:
                self._launching[order.type] -= order.count
                self._add(region.name, launched)
                self._note(order.type, len(launched), launched.error)
                self._publish()
        return launched

    def terminate(self, machine_ids: Sequence[str]) -> None:
        """Takes machines away; raises the first `CloudError` after having tried all."""
        first: CloudError | None = None
        for name, known in self.state().regions.items():
            ids = [machine.id for machine in known.machines if machine.id in machine_ids]
            if not ids or name not in self._regions:
                continue
            try:
                self._regions[name].terminate(ids)
            except CloudError as error:
                first = first or error
                continue
            with self._lock:
                self._end(name, ids)
                self._publish()
        if first is not None:
            raise first

    def _settled(self, name: str, listed: Sequence[Machine], before: RegionState) -> Iterable[Machine]:
        """What a region's list means."""
        elsewhere = {machine.id for other, known in self._known.items() if other != name for machine in known.machines}
        seen: set[str] = set()
        for machine in listed:
            # A machine is in one region, and once, whatever the cloud says.
            if machine.id not in elsewhere and machine.id not in seen:
                seen.add(machine.id)
                self._fresh.pop(machine.id, None)  # from now on it may be missed
                yield replace(machine, state=MachineState.TERMINATING) if machine.id in self._ended else machine
        for machine in before.machines:
            if machine.id in self._fresh and machine.id not in seen:
                yield machine

    def _add(self, name: str, launched: Sequence[Machine]) -> None:
        before = self._known.get(name, RegionState())
        known = {machine.id for machine in before.machines}
        new = [machine for machine in launched if machine.id not in known]
        self._fresh.update(dict.fromkeys((machine.id for machine in new), self._settled_at(name)))
        self._known[name] = replace(before, machines=(*before.machines, *new))

    def _end(self, name: str, machine_ids: Sequence[str]) -> None:
        for machine_id in machine_ids:
            self._ended[machine_id] = self._settled_at(name)
            self._fresh.pop(machine_id, None)
        known = self._known[name]
        self._known[name] = replace(
            known,
            machines=tuple(
                replace(machine, state=MachineState.TERMINATING) if machine.id in machine_ids else machine
                for machine in known.machines
            ),
        )

    def _settled_at(self, name: str) -> float:
        return self._clock() + self._regions[name].settles_s

    def _note(self, name: str, launched: int, error: CloudError | None) -> None:
        number = self._outcomes[-1].number + 1 if self._outcomes else 1
        kind, message = (None, "") if error is None else (error.kind, str(error)[:300])
        self._outcomes.append(Outcome(number, name, self._clock(), launched, kind, message))

    def _state(self) -> FleetState:
        return FleetState(
            regions=dict(self._known),
            launching=dict(+self._launching),
            outcomes=tuple(self._outcomes),
            notices=tuple(each for notices in self._notices.values() for each in notices),
            fresh=dict(self._fresh),
            ended=dict(self._ended),
        )

    def _publish(self) -> None:
        state = self._state()
        if state != self._published:
            self._published = state
            self._changed(state)


def _launch(region: Region, order: Order) -> Launched:
    try:
        return region.launch(order)
    except RegionDown:
        # Whether it was carried out is not known. The same token makes sure that it is not done twice.
        return region.launch(order)


def _look(region: Region) -> tuple[Sequence[Machine], Sequence[Notice]] | CloudError:
    try:
        machines = region.machines()
    except CloudError as error:
        return error
    try:
        return machines, region.notices()
    except CloudError:
        return machines, ()  # asked again with the next list
