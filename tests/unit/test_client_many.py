"""Many sandboxes in one call: all or none, whatever fails or is given up in the middle; and creates whose answer is
lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

import shoal
from shoal.client import create
from shoal.client.cluster import Client
from shoal.model.info import Listing, SandboxInfo
from shoal.model.spec import SandboxSpec
from tests.fakes.cluster import FakeTransport

pytestmark = pytest.mark.anyio


class Troubled(FakeTransport):
    """A cluster in memory whose `trouble` comes at the second call of `create_many`, or at the first of `create`: an
    error instead of it, or one in the place of its answer (`sent`). What hangs does so once it has begun.
    """

    def __init__(self, trouble: shoal.ShoalError | None = None) -> None:
        super().__init__()
        self.trouble = trouble
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()
        self.deadlines: list[float] = []
        self.takes_s = 0.0
        self.ends_hang = False

    async def create(self, spec: SandboxSpec, *, deadline: float, wait: bool = True) -> SandboxInfo:
        info = await super().create(spec, deadline=deadline, wait=wait)
        trouble, self.trouble = self.trouble, None
        if trouble is not None:
            raise trouble
        return info

    async def create_many(
        self, specs: Sequence[SandboxSpec], *, deadline: float, wait: bool = True
    ) -> Sequence[SandboxInfo | shoal.ShoalError]:
        self.deadlines.append(deadline)
        await asyncio.sleep(self.takes_s)
        if len(self.deadlines) == 2:
            self.begun.set()
            if self.trouble is None:
                await self.go_on.wait()
            elif not self.trouble.fields.get("sent"):
                raise self.trouble
        made = await super().create_many(specs, deadline=deadline, wait=wait)
        if len(self.deadlines) == 2 and self.trouble is not None:
            raise self.trouble
        return made

    async def terminate(self, sandbox_id: str) -> SandboxInfo:
        if self.ends_hang:
            self.begun.set()
            await self.go_on.wait()
        return await super().terminate(sandbox_id)

    async def living(self) -> int:
        return len(await self.list(Listing(limit=1000)))


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(create, "BATCH", 4)


def lost() -> shoal.Unavailable:
    return shoal.Unavailable("the connection broke; it may have happened", sent=True)


@pytest.mark.parametrize("trouble", [shoal.Unavailable("away"), shoal.QuotaExceeded("too many"), lost()], ids=repr)
async def test_none_stays_where_a_later_part_fails(trouble: shoal.ShoalError) -> None:
    fake = Troubled(trouble)
    with pytest.raises(type(trouble)) as caught:
        await shoal.Sandbox.create_many.aio(10, client=Client(fake))
    assert caught.value is trouble
    assert caught.value.retryable is (trouble.message == "away")
    assert await fake.living() == 0
    assert len(await fake.list(Listing(include_ended=True))) in (4, 8)  # and the third part was never begun


async def test_none_stays_where_it_is_given_up_in_a_later_part() -> None:
    fake = Troubled()
    making = asyncio.create_task(shoal.Sandbox.create_many.aio(6, return_errors=True, client=Client(fake)))
    await fake.begun.wait()
    assert await fake.living() == 4
    making.cancel()
    with pytest.raises(asyncio.CancelledError):
        await making
    assert await fake.living() == 0


async def test_none_stays_where_it_is_given_up_while_the_others_are_ended() -> None:
    fake = Troubled()
    fake.ends_hang = True
    making = asyncio.create_task(shoal.Sandbox.create_many.aio([{"name": "a"}, {"name": "a"}, {}], client=Client(fake)))
    await fake.begun.wait()
    making.cancel()
    fake.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await making
    assert await fake.living() == 0


async def test_of_a_part_that_failed_each_has_the_error() -> None:
    fake = Troubled(shoal.QuotaExceeded("too many"))
    outcomes = await shoal.Sandbox.create_many.aio(10, return_errors=True, client=Client(fake))
    assert [isinstance(each, shoal.Sandbox) for each in outcomes] == [True] * 4 + [False] * 4 + [True] * 2
    assert outcomes[4] is fake.trouble
    assert await fake.living() == 6


async def test_a_key_that_not_every_way_to_a_cluster_takes_is_refused_before_anything_is_made() -> None:
    fake = FakeTransport()
    wanted: list[create.CreateOptions] = [{}, {"idempotency_key": "clé"}]
    with pytest.raises(shoal.InvalidRequest) as caught:
        await shoal.Sandbox.create_many.aio(wanted, client=Client(fake))
    assert caught.value.field == "idempotency_key"
    assert fake.named("create_many") == []
    first, second = await shoal.Sandbox.create_many.aio(wanted, return_errors=True, client=Client(fake))
    assert isinstance(second, shoal.InvalidRequest)
    assert [info.id for info in await fake.list(Listing())] == [getattr(first, "id", None)]


async def test_each_bad_one_has_an_outcome() -> None:
    fake = Troubled()
    wanted: list[Any] = [{"nonsense": 1}, {}, 5, {"cpu": "much"}, {"timeout": -1}]
    outcomes = await shoal.Sandbox.create_many.aio(wanted, return_errors=True, client=Client(fake))
    assert [getattr(each, "field", "none") for each in outcomes] == ["nonsense", "none", "wanted", "cpu", "timeout"]
    assert await fake.living() == 1
    with pytest.raises(shoal.InvalidRequest) as caught:
        await shoal.Sandbox.create_many.aio(wanted, client=Client(fake))
    assert caught.value.field == "nonsense"
    assert await fake.living() == 1


async def test_a_call_that_fails_as_a_whole_raises() -> None:
    fake = FakeTransport()
    fake.fail_next("create_many", shoal.PermissionDenied("you may not"))
    with pytest.raises(shoal.PermissionDenied):
        await shoal.Sandbox.create_many.aio(10, return_errors=True, client=Client(fake))
    assert len(fake.named("create_many")) == 1


async def test_all_parts_have_one_deadline() -> None:
    fake = Troubled()
    fake.go_on.set()
    fake.takes_s = 0.05
    await shoal.Sandbox.create_many.aio(10, deadline=30, client=Client(fake))
    first, second, third = fake.deadlines
    assert 30 >= first > second > third
    late = Troubled()
    late.takes_s = 0.05
    with pytest.raises(shoal.DeadlineExceeded):
        await shoal.Sandbox.create_many.aio(10, deadline=0.05, client=Client(late))
    assert len(late.deadlines) == 1
    assert await late.living() == 0


# Answers that are lost


async def test_a_lost_create_tells_the_key_with_which_nothing_is_made_twice() -> None:
    fake = Troubled(lost())
    client = Client(fake)
    with pytest.raises(shoal.Unavailable) as caught:
        await shoal.Sandbox.create.aio(client=client)
    key = caught.value.fields["idempotency_key"]
    assert not caught.value.retryable
    assert f"idempotency_key='{key}'" in caught.value.message
    again = await shoal.Sandbox.create.aio(idempotency_key=key, client=client)
    assert [info.id for info in await fake.list(Listing())] == [again.id]


async def test_with_a_key_of_the_caller_s_the_same_call_may_be_made_again() -> None:
    fake = Troubled(lost())
    client = Client(fake)
    with pytest.raises(shoal.Unavailable) as caught:
        await shoal.Sandbox.create.aio(idempotency_key="mine", client=client)
    assert caught.value.retryable
    await shoal.Sandbox.create.aio(idempotency_key="mine", client=client)
    assert await fake.living() == 1


async def test_what_was_never_sent_may_be_asked_for_again() -> None:
    fake = FakeTransport()
    fake.fail_next("create", shoal.Unavailable("nobody is there"))
    with pytest.raises(shoal.Unavailable) as caught:
        await shoal.Sandbox.create.aio(client=Client(fake))
    assert caught.value.retryable
    assert "idempotency_key" not in caught.value.fields


async def test_many_whose_answer_is_lost_are_there_once_with_the_key() -> None:
    fake = Troubled(lost())
    client = Client(fake)
    outcomes = await shoal.Sandbox.create_many.aio(6, return_errors=True, client=client)
    error = outcomes[5]
    assert isinstance(error, shoal.Unavailable)
    assert not error.retryable
    key = error.fields["idempotency_key"]
    assert len(await shoal.Sandbox.create_many.aio(6, idempotency_key=key, client=client)) == 6
    assert await fake.living() == 6
