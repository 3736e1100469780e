"""What only a server can do to a store: go away, come back, and lose the answer to a commit."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection

from shoal.actors.controller.store import Change
from shoal.cluster.store import writer
from shoal.cluster.store.sql import SqlStore
from shoal.model.errors import FailedPrecondition, Unavailable
from tests.contract.store.conftest import CLUSTER, StoreLocation, settings_of
from tests.contract.store.cutter import Moment, cutter
from tests.contract.store.samples import entry, event, living
from tests.postgres import Postgres

pytestmark = pytest.mark.anyio


@pytest.fixture
def location(postgres: Postgres, tmp_path: Path) -> Iterator[StoreLocation]:
    with postgres.database() as url:
        yield StoreLocation(settings_of(tmp_path, url), postgres)


def change(number: int) -> Change:
    return Change([living(f"sb-{number}")], [event(number + 1, f"sb-{number}")], [entry(target=f"sb-{number}")])


def there(location: StoreLocation) -> list[int]:
    """The numbers of the changes that are there; none of them half."""
    found = [
        sorted(int(name[3:]) for (name,) in location.execute(f"SELECT {column} FROM {table}"))
        for table, column in (("sandboxes", "id"), ("events", "sandbox_id"), ("audit", "target"))
    ]
    assert found[0] == found[1] == found[2]
    return found[0]


async def test_a_restarted_server_is_found_again(location: StoreLocation, postgres: Postgres) -> None:
    store = location.store()
    try:
        await store.open(CLUSTER, 10)
        await store.write(change(0))
        assert await store.sandbox("sb-0") is not None
        await asyncio.to_thread(postgres.stop)
        try:
            with pytest.raises(Unavailable) as caught:
                await store.write(change(1))
            assert "outcome" not in caught.value.fields, "it is known: nothing was done"
            assert postgres.password not in str(caught.value)
            with pytest.raises(Unavailable):
                await store.sandbox("sb-0")
        finally:
            await asyncio.to_thread(postgres.start)
        await store.write(change(2))
        assert await store.sandbox("sb-2") is not None
        await asyncio.to_thread(postgres.stop)
        await asyncio.to_thread(postgres.start)
        await store.write(change(3))  # its connection had died, and nobody notices
        assert (await store.sandbox("sb-3") or {})["id"] == "sb-3"
        assert there(location) == [0, 2, 3]
    finally:
        await store.close()


@pytest.mark.parametrize("sessions", ["read-write", "any"])
async def test_a_server_that_takes_no_writes_any_more_is_left_for_one_that_does(
    location: StoreLocation, postgres: Postgres, sessions: str
) -> None:
    """As after a fail-over. `any`: the client accepts a read-only session, as through a pooler."""
    url = location.settings["store"]["url"]
    query = "" if sessions == "read-write" else f"?target_session_attrs={sessions}"
    name = url.rpartition("/")[2]
    store = location.store(store={"url": url + query, "retention": 60.0})
    try:
        await store.open(CLUSTER, 10)
        await store.write(change(0))
        postgres.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        postgres.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
        with pytest.raises(Unavailable) as caught:
            await store.write(change(1))
        assert "outcome" not in caught.value.fields, "it is known: nothing was done"
        postgres.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
        await store.write(change(2))
        assert (await store.sandbox("sb-2") or {})["id"] == "sb-2"
        assert there(location) == [0, 2]
    finally:
        await store.close()


def forget_statements(connection: Connection) -> int:
    prepared = connection.exec_driver_sql("SELECT name FROM pg_prepared_statements").scalars().all()
    for name in prepared:
        connection.exec_driver_sql(f'DEALLOCATE "{name}"')
    return len(prepared)


async def test_a_session_that_forgot_its_statements_is_begun_anew(location: StoreLocation) -> None:
    """As behind a pooler, which gives a session's transactions to one server after another."""
    store = location.store()
    try:
        await store.open(CLUSTER, 10)
        for number in range(10):  # the driver prepares what it says often
            await store.write(change(number))
        assert isinstance(store, SqlStore)
        _, writer = store._opened()
        assert await writer.run(forget_statements) > 0
        await store.write(change(10))
        assert there(location) == list(range(11))
    finally:
        await store.close()


async def test_a_server_that_crashes_under_load_has_all_that_was_acknowledged_and_no_more(
    location: StoreLocation, postgres: Postgres
) -> None:
    store = location.store()
    done: list[int] = []
    refused: list[int] = []
    news: asyncio.Queue[int] = asyncio.Queue()
    stopping = asyncio.Event()

    async def write(first: int) -> None:
        for number in range(first, 1_000_000, 50):
            if stopping.is_set():
                return
            try:
                await store.write(change(number))
            except Unavailable:
                refused.append(number)
                await asyncio.sleep(0.05)
            else:
                done.append(number)
                news.put_nowait(number)

    async def more(count: int) -> None:
        for _ in range(count):
            await news.get()

    try:
        await store.open(CLUSTER, 10)
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            for first in range(50):
                group.create_task(write(first))
            for _ in range(3):
                await more(200)
                await asyncio.to_thread(postgres.stop, "immediate")
                await asyncio.to_thread(postgres.start)
            await more(200)
            stopping.set()
        assert refused
        assert there(location) == sorted(done)
    finally:
        await store.close()


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_commit_whose_answer_is_lost_happens_once(
    location: StoreLocation, postgres: Postgres, moment: Moment
) -> None:
    async with cutter(postgres.port) as way:
        store = dataclasses.replace(location, settings=_through(location, postgres, way.port)).store()
        try:
            await store.open(CLUSTER, 10)
            way.arm(moment)
            await store.write(change(0))
            assert way.cuts == 1
            await store.write(change(1))
        finally:
            await store.close()
    assert there(location) == [0, 1]
    assert location.execute("SELECT writes FROM meta") == [(2,)]


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_lost_answer_is_looked_for_until_the_server_is_back(
    location: StoreLocation, postgres: Postgres, moment: Moment
) -> None:
    async with cutter(postgres.port) as way:
        store = dataclasses.replace(location, settings=_through(location, postgres, way.port)).store()
        try:
            await store.open(CLUSTER, 10)
            way.arm(moment, shut=True)
            writing = asyncio.ensure_future(store.write(change(0)))
            await asyncio.wait_for(way.cut.wait(), 10)
            assert not (await asyncio.wait([writing], timeout=0.5))[0]
            way.open = True
            await writing
        finally:
            await store.close()
    assert there(location) == [0]


async def test_whoever_cannot_be_told_whether_it_took_place_is_told_so(
    location: StoreLocation, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "DOUBT_S", 0.3)
    async with cutter(postgres.port) as way:
        store = dataclasses.replace(location, settings=_through(location, postgres, way.port)).store()
        try:
            await store.open(CLUSTER, 10)
            way.arm("after", shut=True)
            with pytest.raises(Unavailable) as caught:
                await store.write(change(0))
            assert caught.value.fields["outcome"] == "unknown"
            way.open = True
            await store.write(Change(change(0).sandboxes, change(0).events))  # again: it makes no difference
        finally:
            await store.close()
    assert there(location) == [0]


async def test_a_lost_answer_of_one_who_was_overtaken_meanwhile_is_not_made_up(
    location: StoreLocation, postgres: Postgres
) -> None:
    async with cutter(postgres.port) as way:
        store = dataclasses.replace(location, settings=_through(location, postgres, way.port)).store()
        second = location.store()
        try:
            await store.open(CLUSTER, 10)
            way.arm("after", shut=True)
            writing = asyncio.ensure_future(store.write(change(0)))
            await asyncio.wait_for(way.cut.wait(), 10)
            restored = await second.open(CLUSTER, 10)
            way.open = True
            with pytest.raises(FailedPrecondition) as caught:
                await writing
            assert caught.value.state == "overtaken"
            assert [row["id"] for row in restored.sandboxes] == ["sb-0"]
        finally:
            await second.close()
            await store.close()


async def test_a_database_in_use_by_something_else_is_left_alone(location: StoreLocation) -> None:
    location.execute("CREATE TABLE events (id integer)")
    store = location.store()
    try:
        with pytest.raises(FailedPrecondition, match=r"another program \(events\)"):
            await store.open(CLUSTER, 10)
    finally:
        await store.close()


async def test_no_error_names_the_password(location: StoreLocation, postgres: Postgres) -> None:
    location.execute("CREATE ROLE guest LOGIN PASSWORD 'hunter2'")
    host = f"127.0.0.1:{postgres.port}"
    name = location.settings["store"]["url"].rpartition("/")[2]
    try:
        for url, expected in (
            (f"postgresql://guest:wrong-hunter2@{host}/{name}", Unavailable),
            (f"postgresql://guest@{host}/{name}?password=wrong-hunter2", Unavailable),
            (f"postgresql://guest:hunter2@{host}/nowhere", Unavailable),
            (f"postgresql://guest:hunter2@{host}/{name}", FailedPrecondition),  # may not make tables
            ("postgresql://guest:hunter2@127.0.0.1:1/nowhere", Unavailable),
        ):
            store = location.store(store={"url": url, "retention": 1.0})
            try:
                with pytest.raises(expected) as caught:
                    await store.open(CLUSTER, 10)
            finally:
                await store.close()
            assert "hunter2" not in repr(caught.value)
            assert caught.value.__cause__ is None
    finally:
        location.execute("DROP ROLE guest")


def _through(location: StoreLocation, postgres: Postgres, port: int) -> dict[str, object]:
    name = location.settings["store"]["url"].rpartition("/")[2]
    return {**location.settings, "store": {"url": f"{postgres.url(name, port)}?sslmode=disable", "retention": 60.0}}
