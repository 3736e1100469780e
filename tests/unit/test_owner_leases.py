"""Owner leases: a sandbox ends whose creator renews no more, and the client renews by itself, whatever its program
does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator

import pytest

import shoal
from shoal.actors.controller.leases import SILENCE_S, OwnerLeases
from shoal.actors.controller.record import SandboxRecord
from shoal.actors.messages import SandboxStarted
from shoal.client import leases as client_leases
from shoal.model.access import INSIDE, Caller, Scope
from shoal.model.errors import InvalidRequest, Unavailable
from shoal.model.states import Reason, State
from tests.unit.builders import spec
from tests.unit.client_lab import ClientLab
from tests.unit.controller_world import World

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

LEASE_S = 60.0


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def leased(sandbox_id: str = "sb-1", *, runs: bool = True) -> SandboxRecord:
    record = SandboxRecord(sandbox_id, spec(owner_lease=LEASE_S), 0.0, {})
    record.started = SandboxStarted("c-1", "node", "127.0.0.1:1", 0.0, warm=False) if runs else None
    return record


class TestController:
    def test_it_ends_once_nobody_has_renewed_it_for_so_long(self) -> None:
        clock, record = Clock(), leased()
        leases = OwnerLeases(clock)
        looks = self.looks(leases, clock, [record])
        assert looks(LEASE_S - 1) == []
        assert leases.renew(record)
        assert looks(LEASE_S - 1) == []
        assert looks(1) == [record]
        assert looks(LEASE_S) == [], "each is told once"
        assert not leases.renew(record)

    def test_it_begins_when_it_runs(self) -> None:
        clock, record = Clock(), leased(runs=False)
        leases = OwnerLeases(clock)
        looks = self.looks(leases, clock, [record])
        assert looks(10 * LEASE_S) == []
        assert leases.renew(record)
        record.started = leased().started
        assert looks(LEASE_S - 1) == []
        assert looks(1) == [record]

    def test_a_restarted_controller_grants_it_anew(self) -> None:
        clock, record = Clock(), leased()
        self.looks(OwnerLeases(clock), clock, [record])(LEASE_S - 1)
        looks = self.looks(OwnerLeases(clock), clock, [record])
        assert looks(LEASE_S - 1) == []
        assert looks(2) == [record]

    def test_time_in_which_no_renewal_could_be_heard_does_not_count(self) -> None:
        clock, record = Clock(), leased()
        leases = OwnerLeases(clock)
        looks = self.looks(leases, clock, [record])
        looks(LEASE_S - 2)
        clock.now += 10 * LEASE_S
        assert leases.expired([record]) == []
        assert looks(3) == [record]

    def test_one_without_a_lease_lives_on(self) -> None:
        clock, record = Clock(), SandboxRecord("sb-1", spec(), 0.0, {}, started=leased().started)
        leases = OwnerLeases(clock)
        assert not leases.renew(record)
        assert self.looks(leases, clock, [record])(1e4) == []

    def looks(
        self, leases: OwnerLeases, clock: Clock, living: list[SandboxRecord]
    ) -> Callable[[float], list[SandboxRecord]]:
        """Looks once a second for so many seconds; those that ended."""

        def look(seconds: float) -> list[SandboxRecord]:
            found = leases.expired(living)
            for _ in range(round(seconds)):
                clock.now += 1
                found += leases.expired(living)
            return found

        assert SILENCE_S > 1
        return look

    async def test_the_end_says_so_and_only_those_who_see_it_may_renew_it(self) -> None:
        controller = await World().controller()
        parts = controller.parts
        parts.leases.clock = clock = Clock()
        info, _ = await controller.begin(parts.sandboxes.create(spec(owner_lease=5.0), 60, True, INSIDE))
        other = Caller("tk-1", "dev", Scope.RUN)
        assert parts.sandboxes.renew([info.id, "sb-none"], INSIDE) == [info.id]
        assert parts.sandboxes.renew([info.id], other) == []
        for ids in ([], [info.id] * 1001):
            with pytest.raises(InvalidRequest):
                parts.sandboxes.renew(ids, INSIDE)
        for _ in range(8):
            await controller.begin(parts._end_unowned())
            clock.now += 1
        end = await controller.begin(parts.sandboxes.wait(info.id, 20, INSIDE))
        assert (end.state, end.reason) == (State.TERMINATED, Reason.TERMINATED)
        assert "owner lease" in (end.message or "")
        assert parts.sandboxes.renew([info.id], INSIDE) == []
        await controller.kill()


@pytest.mark.parametrize("value", [4.9, 86401, "soon", True, float("nan")])
def test_its_bounds(value: object) -> None:
    with pytest.raises(InvalidRequest) as caught:
        shoal.Sandbox.create(owner_lease=value, client=ClientLab().client)  # type: ignore[arg-type]
    assert caught.value.field == "owner_lease"


class TestClient:
    @pytest.fixture
    def lab(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[ClientLab]:
        monkeypatch.setattr(client_leases, "_RENEWALS", 500)  # every 10 ms
        monkeypatch.setattr(client_leases, "_AGAIN_S", 0.01)
        lab = ClientLab()
        yield lab
        lab.client.close()

    def renewed(self, lab: ClientLab) -> list[str]:
        return [sandbox_id for ids in lab.fake.named("renew") for sandbox_id in ids]

    def until(self, true: Callable[[], bool]) -> None:
        for _ in range(2000):
            if true():
                return
            time.sleep(0.005)
        raise AssertionError("it never came to be")

    def test_it_renews_while_its_program_does_something_else(self, lab: ClientLab) -> None:
        one = shoal.Sandbox.create(owner_lease=5, client=lab.client)
        two, _ = shoal.Sandbox.create_many([{"owner_lease": 5}, {}], client=lab.client)
        self.until(lambda: self.renewed(lab).count(one.id) > 3 < self.renewed(lab).count(two.id))
        assert set(self.renewed(lab)) == {one.id, two.id}

    def test_it_renews_though_its_program_blocks_its_own_event_loop(self, lab: ClientLab) -> None:
        async def program() -> None:
            made = await shoal.Sandbox.create.aio(owner_lease=5, client=lab.client)
            self.until(lambda: self.renewed(lab).count(made.id) > 3)
            await lab.client.close.aio()

        asyncio.run(program())
        self.stays_quiet(lab)

    def test_it_stops_with_the_client_and_with_the_sandbox(self, lab: ClientLab) -> None:
        sandbox = shoal.Sandbox.create(owner_lease=5, client=lab.client)
        self.until(lambda: sandbox.id in self.renewed(lab))
        sandbox.terminate()
        self.until(lambda: lab.client.leases._task is None)
        self.stays_quiet(lab)
        again = shoal.Sandbox.create(owner_lease=5, client=lab.client)
        self.until(lambda: again.id in self.renewed(lab))
        lab.client.close()
        self.stays_quiet(lab)

    def stays_quiet(self, lab: ClientLab) -> None:
        before = len(self.renewed(lab))
        time.sleep(0.1)
        assert len(self.renewed(lab)) == before

    def test_it_goes_on_after_a_failure(self, lab: ClientLab) -> None:
        lab.fake.fail_next("renew", Unavailable("the controller is being restarted"))
        sandbox = shoal.Sandbox.create(owner_lease=5, client=lab.client)
        self.until(lambda: self.renewed(lab).count(sandbox.id) > 3)
