"""The store contract, over SQLite, PostgreSQL and the fake of the controller's tests."""

from __future__ import annotations

import asyncio
import json
import threading
from dataclasses import replace
from typing import Any

import pytest

from shoal.actors.controller.store import Change, HourOfUse, Restored, Store
from shoal.cluster.store import sql
from shoal.model.access import Quota
from shoal.model.errors import FailedPrecondition, Internal
from shoal.model.info import Cordon
from shoal.model.pools import PoolInfo
from shoal.model.secrets import SecretInfo, StoredSecret
from shoal.model.usage import Amounts
from tests.contract.store.conftest import CLUSTER, SQL, StoreLocation
from tests.contract.store.samples import ended, entry, environment, event, living, plain, token
from tests.unit import builders

pytestmark = pytest.mark.anyio


async def reopened(location: StoreLocation, history: int = 100) -> Restored:
    store = location.store()
    try:
        return await store.open(CLUSTER, history)
    finally:
        await store.close()


async def test_a_new_store_is_empty(location: StoreLocation) -> None:
    assert await reopened(location) == Restored(last_event=0, epoch=1)


async def test_all_that_was_written_is_there_when_it_is_opened_again(location: StoreLocation, store: Store) -> None:
    row = living("sb-1", name="ünï", idempotency_key="k", environment="team-a")
    environments = [environment("main"), environment("team-a", sandboxes=3, cpu=1.5, memory=64, creates_per_minute=9)]
    tokens = [
        token("tk-1"),
        token("tk-2", expires_at=9.5, revoked_at=8.0, last_used_at=7.0, created_by="tk-1", environment="*"),
    ]
    pools = [PoolInfo("python", "main", builders.spec(tags={"ü": "x"}), 1, 9, 2.5)]
    cordons = [Cordon("a" * 56, "dïsk", "tk-1", 7.5), Cordon("b" * 56, "drained", "cluster", 8.5, left=True)]
    await store.write(
        Change(
            sandboxes=[row], events=[event(41)], environments=environments, tokens=tokens, cordons=cordons, pools=pools
        )
    )
    await store.close()
    restored = await reopened(location)
    assert restored.sandboxes == [plain(row)]
    assert sorted(restored.environments, key=lambda e: e.name) == environments
    assert sorted(restored.tokens, key=lambda t: t.info.id) == tokens
    assert sorted(restored.cordons, key=lambda c: c.node_id) == cordons
    assert restored.pools == pools
    assert restored.last_event == 41


async def test_what_is_written_replaces_what_has_its_id_or_name(location: StoreLocation, store: Store) -> None:
    await store.write(Change(sandboxes=[living("sb-1")], environments=[environment("a")], tokens=[token("tk-1")]))
    last = ended("sb-1")
    await store.write(
        Change(sandboxes=[last], environments=[environment("a", cpu=2.0)], tokens=[token("tk-1", revoked_at=3.0)])
    )
    assert await store.sandbox("sb-1") == plain(last)
    restored = await reopened(location)
    assert restored.sandboxes == [plain(last)]
    assert [e.quota for e in restored.environments] == [Quota(cpu=2.0)]
    assert [t.info.revoked_at for t in restored.tokens] == [3.0]


async def test_environments_are_removed_in_the_order_of_the_writes(location: StoreLocation, store: Store) -> None:
    await store.write(Change(environments=[environment("a"), environment("b")]))
    await asyncio.gather(
        store.write(Change(removed_environments=["a", "never-was"])),
        store.write(Change(environments=[environment("b", cpu=1.0), environment("c")])),
        store.write(Change(environments=[environment("a", cpu=3.0)])),
        store.write(Change(removed_environments=["c"])),
    )
    restored = await reopened(location)
    assert sorted((e.name, e.quota.cpu) for e in restored.environments) == [("a", 3.0), ("b", 1.0)]


async def test_a_cordon_is_replaced_and_removed(location: StoreLocation, store: Store) -> None:
    await store.write(Change(cordons=[Cordon("a", "one", "tk-1", 1.0), Cordon("b", "one", "tk-1", 1.0)]))
    await store.write(Change(cordons=[Cordon("a", "two", "tk-2", 2.0, left=True)], removed_cordons=["b", "never"]))
    assert (await reopened(location)).cordons == [Cordon("a", "two", "tk-2", 2.0, left=True)]


async def test_a_pool_is_replaced_and_removed(location: StoreLocation, store: Store) -> None:
    one, other = (PoolInfo(name, "main", builders.spec(), 1, 2, 1.0) for name in ("a", "b"))
    await store.write(Change(pools=[one, other]))
    await store.write(Change(pools=[replace(one, max_ready=9)], removed_pools=[other.id, "main/never"]))
    assert (await reopened(location)).pools == [replace(one, max_ready=9)]


async def test_a_secret_is_replaced_and_removed(location: StoreLocation, store: Store) -> None:
    one, other = (
        StoredSecret(SecretInfo(name, "main", ("A", "B"), 1.0, 2.0, 1, 9, "k1"), f"1.k1.{name}") for name in ("a", "b")
    )
    await store.write(Change(secrets=[one, other]))
    newer = StoredSecret(replace(one.info, version=2, key_id="k2", updated_at=3.0), "1.k2.a")
    await store.write(Change(secrets=[newer], removed_secrets=[other.info.id, "main/never"]))
    assert (await reopened(location)).secrets == [newer]


async def test_tokens_are_removed_in_the_order_of_the_writes(location: StoreLocation, store: Store) -> None:
    await store.write(Change(tokens=[token("tk-1"), token("tk-2"), token("tk-3")]))
    await asyncio.gather(
        store.write(Change(tokens=[token("tk-4")], removed_tokens=["tk-1", "tk-2", "tk-never"])),
        store.write(Change(tokens=[token("tk-2", name="again")])),
    )
    restored = await reopened(location)
    assert sorted((t.info.id, t.info.name) for t in restored.tokens) == [
        ("tk-2", "again"),
        ("tk-3", "ci"),
        ("tk-4", "ci"),
    ]


async def test_it_opens_with_all_that_live_and_the_newest_that_ended_oldest_first(
    location: StoreLocation, store: Store
) -> None:
    old = [living(f"sb-live-{n}", at=float(n)) for n in range(3)]
    past = [ended(f"sb-past-{n}", at=n + 0.5) for n in range(6)]
    await store.write(Change(sandboxes=[*past, *old]))
    restored = await reopened(location, history=2)
    assert [row["id"] for row in restored.sandboxes] == [
        "sb-live-0",
        "sb-live-1",
        "sb-live-2",
        "sb-past-4",
        "sb-past-5",
    ]
    assert [row["id"] for row in (await reopened(location, history=0)).sandboxes] == [row["id"] for row in old]


async def test_a_sandbox_is_found_by_its_id_and_the_last_of_a_name_by_that(store: Store) -> None:
    await store.write(
        Change(
            sandboxes=[
                ended("sb-1", at=1.0, name="web"),
                ended("sb-2", at=2.0, name="web"),
                living("sb-3", at=3.0, name="web", environment="other"),
            ]
        )
    )
    assert (await store.sandbox("sb-1") or {})["id"] == "sb-1"
    assert await store.sandbox("sb-none") is None
    assert (await store.sandbox_named("web", "main") or {})["id"] == "sb-2"
    assert (await store.sandbox_named("web", "other") or {})["id"] == "sb-3"
    assert await store.sandbox_named("web", "third") is None


async def test_the_last_sandbox_of_a_key_is_found_by_it(store: Store) -> None:
    of_old, of_now = (ended(f"sb-{n}", at=float(n), idempotency_key="k") for n in (1, 2))
    await store.write(Change(sandboxes=[of_now, of_old, living("sb-3", idempotency_key="k", environment="other")]))
    assert await store.sandbox_keyed("k", "main") == plain(of_now)
    assert (await store.sandbox_keyed("k", "other") or {})["id"] == "sb-3"
    assert await store.sandbox_keyed("k", "third") is None
    assert await store.sandbox_keyed("l", "main") is None


async def test_names_from_outside_that_no_database_takes_are_not_found(store: Store) -> None:
    for hostile in ("\0", "a\0b", "\ud800", "'; DROP TABLE sandboxes; --", "x" * 100_000):
        assert await store.sandbox(hostile) is None
        assert await store.sandbox_named(hostile, hostile) is None
        assert await store.sandbox_keyed(hostile, hostile) is None
        assert await store.ended(hostile, (1.0, hostile), 5) == []
        assert await store.events(0, 5, environment=hostile, sandbox_id=hostile) == []
        assert await store.audit(None, 5, environment=hostile) == []


@SQL
async def test_who_ended_it_and_why_and_its_exit_code_are_kept(location: StoreLocation, store: Store) -> None:
    await store.write(
        Change(sandboxes=[ended("sb-1")], events=[event(1)], audit=[entry(action="sandbox.terminate", target="sb-1")])
    )
    row = await store.sandbox("sb-1")
    assert row is not None
    assert (row["end"]["reason"], row["end"]["returncode"]) == ("completed", 3)
    columns = "state, reason, returncode, ended_at, environment"
    assert location.execute(f"SELECT {columns} FROM sandboxes") == [("terminated", "completed", 3, 2.0, "main")]
    [told] = await store.audit(None, 10)
    assert (told.action, told.target, told.token) == ("sandbox.terminate", "sb-1", "tk-1")


async def test_ended_sandboxes_come_newest_first_in_pages(store: Store) -> None:
    rows = [ended(f"sb-{n}", at=float(n // 2), environment="ab"[n % 2]) for n in range(10)]
    await store.write(Change(sandboxes=[*rows, living("sb-live", at=50.0, environment="a")]))
    seen: list[str] = []
    before: tuple[float, str] | None = None
    while page := await store.ended(None, before, 3):
        assert len(page) <= 3
        seen += [row["id"] for row in page]
        before = (page[-1]["created_at"], page[-1]["id"])
    assert seen == [f"sb-{n}" for n in reversed(range(10))]
    assert [row["id"] for row in await store.ended("a", (3.0, "sb-7"), 10)] == ["sb-6", "sb-4", "sb-2", "sb-0"]
    assert await store.ended(None, None, 0) == []


@SQL
async def test_rows_are_taken_apart_beside_the_loop(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: set[int] = set()

    def loads(text: str) -> Any:
        threads.add(threading.get_ident())
        return json.JSONDecoder().decode(text)

    await store.write(Change(sandboxes=[ended("sb-1", name="n")], events=[event(1)]))
    monkeypatch.setattr(json, "loads", loads)
    assert len(await store.ended(None, None, 10)) == len(await store.events(0, 10)) == 1
    assert await store.sandbox("sb-1") == await store.sandbox_named("n", "main")
    assert threads
    assert threading.get_ident() not in threads


async def test_events_come_oldest_first_after_an_id(store: Store) -> None:
    await store.write(Change(events=[event(n, f"sb-{n % 2}", environment="ab"[n % 2]) for n in (3, 1, 2, 4)]))
    assert await store.events(0, 10) == [event(n, f"sb-{n % 2}", environment="ab"[n % 2]) for n in (1, 2, 3, 4)]
    assert [e.id for e in await store.events(1, 2)] == [2, 3]
    assert [e.id for e in await store.events(0, 10, environment="a")] == [2, 4]
    assert [e.id for e in await store.events(1, 10, sandbox_id="sb-1")] == [3]
    assert await store.events(4, 10) == []


async def test_an_event_that_is_written_again_is_kept_once(store: Store) -> None:
    await store.write(Change(events=[event(1), event(2)]))
    await store.write(Change(events=[event(2, at=9.0)]))
    assert [(e.id, e.at) for e in await store.events(0, 10)] == [(1, 1.0), (2, 9.0)]


async def test_ids_of_events_go_on_after_all_of_them_expired(location: StoreLocation, store: Store) -> None:
    await store.write(Change(events=[event(7), event(8)]))
    await store.write(Change(events=[event(5)]))
    assert await store.expire(100.0) == 3
    assert await store.events(0, 10) == []
    assert (await reopened(location)).last_event == 8


async def test_audit_entries_get_rising_ids_and_come_newest_first(store: Store) -> None:
    for n in range(5):
        await store.write(
            Change(audit=[entry(float(n), environment="ab"[n % 2], request_id=f"r{n}", address="10.0.0.1")])
        )
    found = await store.audit(None, 3)
    assert [e.request_id for e in found] == ["r4", "r3", "r2"]
    assert [e.request_id for e in await store.audit(found[-1].id, 10)] == ["r1", "r0"]
    assert [e.request_id for e in await store.audit(None, 10, environment="b")] == ["r3", "r1"]
    newest = found[0].id
    await store.expire(100.0)
    await store.write(Change(audit=[entry()]))
    assert (await store.audit(None, 1))[0].id > newest


async def test_it_knows_of_environments_that_were_deleted_until_that_is_forgotten(store: Store) -> None:
    await store.write(
        Change(
            audit=[
                entry(5.0, action="environment.delete", environment="gone"),
                entry(9.0, action="environment.create", environment="here"),
                entry(9.0, action="environment.delete", environment="here", outcome="failed_precondition"),
            ]
        )
    )
    assert [await store.was_deleted(name) for name in ("gone", "here", "never", "\0")] == [True, False, False, False]
    await store.expire(6.0)
    assert not await store.was_deleted("gone")


async def test_what_a_hostile_client_sends_gets_into_the_audit_log(store: Store) -> None:
    await store.write(Change(audit=[entry(target="a\0b", request_id="\ud800", address="x" * 10_000, token="ü")]))
    [found] = await store.audit(None, 10)
    assert (found.target, found.request_id, found.token) == ("a\ufffdb", "?", "ü")


async def test_text_of_any_kind_is_kept_in_a_row(store: Store) -> None:
    row = living("sb-1", env={"A": "\0 \ud800 ü \U0001f41f ' \" \\ %s :x"})
    await store.write(Change(sandboxes=[row]))
    assert await store.sandbox("sb-1") == plain(row)


async def test_expiry_forgets_what_ended_before_and_nothing_that_lives(location: StoreLocation, store: Store) -> None:
    await store.write(
        Change(
            sandboxes=[living("sb-live"), ended("sb-old", ended_at=9.0), ended("sb-new", ended_at=10.0)],
            events=[event(1, at=9.0), event(2, at=10.0)],
            audit=[entry(9.0), entry(10.0)],
            tokens=[
                token("tk-for-ever"),
                token("tk-valid", expires_at=20.0),
                token("tk-expired", expires_at=9.0),
                token("tk-revoked", revoked_at=9.0, expires_at=20.0),
                token("tk-just-revoked", revoked_at=10.0),
            ],
            environments=[environment("main")],
        )
    )
    assert await store.expire(10.0) == 5
    assert await store.expire(10.0) == 0
    restored = await reopened(location)
    assert sorted(row["id"] for row in restored.sandboxes) == ["sb-live", "sb-new"]
    assert sorted(t.info.id for t in restored.tokens) == ["tk-for-ever", "tk-just-revoked", "tk-valid"]
    assert len(restored.environments) == 1


async def test_sums_of_use_replace_those_of_the_same_hour_and_are_added_up(store: Store) -> None:
    def use(hour: int, environment: str, tag: str = "", value: str = "", seconds: float = 1.0) -> HourOfUse:
        return HourOfUse(hour, environment, tag, value, Amounts(1, seconds, 0.5, 2.0, 3.0, 1 << 40, 7))

    first = [use(48, "a"), use(48, "b"), use(49, "a", seconds=9.0), use(72, "a"), use(49, "a", "job", "x\0 'ü")]
    await store.write(Change(usage=first))
    await store.write(Change(usage=[use(49, "a", seconds=4.0), use(48, "b", "job", "y", 2.0)]))
    assert sorted(each.hour for each in await store.hours_of_use(49)) == [49, 49, 72]

    async def told(by: str, tag: str | None = None, environment: str | None = None) -> list[tuple[str, int, float]]:
        rows = await store.usage(by, tag, 48, 60, environment, 10)
        return [(row.key, row.sandboxes, row.seconds) for row in rows]

    assert await told("environment") == [("a", 2, 5.0), ("b", 1, 1.0)]
    assert await told("hour", environment="a") == [("1970-01-03T00", 1, 1.0), ("1970-01-03T01", 1, 4.0)]
    assert await told("day") == [("1970-01-03", 3, 6.0)]
    assert await told("tag", "job") == [("y", 1, 2.0), ("x\ufffd 'ü", 1, 1.0)]
    assert await told("tag", "none") == []
    [row] = await store.usage("environment", None, 49, 49, None, 10)
    assert (row.network_in, row.cpu_seconds) == (1 << 40, 0.5)
    assert await store.expire_usage(72) == 5
    assert [each.hour for each in await store.hours_of_use(0)] == [72]


async def test_much_that_expired_goes_while_others_write(store: Store) -> None:
    await store.write(Change(events=[event(n) for n in range(1, 6001)]))
    expiry = asyncio.create_task(store.expire(5.0))
    await asyncio.gather(*(store.write(Change(events=[event(10_000 + n, at=50.0)])) for n in range(20)))
    assert await expiry == 6000
    assert len(await store.events(0, 100)) == 20


@SQL
async def test_expiry_holds_up_a_write_for_a_part_of_it_only(location: StoreLocation, store: Store) -> None:
    await store.write(Change(sandboxes=[ended(f"sb-{n}") for n in range(1500)]))
    expiry = asyncio.create_task(store.expire(100.0))
    await asyncio.sleep(0)
    await store.write(Change(sandboxes=[living("sb-live")]))
    [(left,)] = location.execute("SELECT count(*) FROM sandboxes WHERE ended_at IS NOT NULL")
    assert left > 0
    assert await expiry == 1500


@SQL
async def test_it_opens_with_no_more_of_the_past_than_memory_has_room_for(
    location: StoreLocation, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql, "RESTORED_BYTES", 1_000_000)
    past = [ended(f"sb-{n:04}", at=float(n), tags={"a": "x" * 5000}) for n in range(1000)]
    await store.write(Change(sandboxes=[living("sb-live", at=0.5), *past]))
    restored = await reopened(location, history=10_000)
    kept = [row["id"] for row in restored.sandboxes]
    assert kept[0] == "sb-live"
    assert 150 < len(kept) < 400
    assert kept[1:] == [row["id"] for row in past[-len(kept) + 1 :]]
    assert not restored.complete
    assert (await reopened(location, history=5)).complete is False


async def test_a_change_is_written_as_it_was_when_it_was_handed_in(store: Store) -> None:
    row = living("sb-1")
    writing = asyncio.ensure_future(store.write(Change(sandboxes=[row])))
    await asyncio.sleep(0)
    row["state"] = "failed"
    await writing
    assert (await store.sandbox("sb-1") or {})["state"] == "pending"


async def test_what_cannot_be_held_harms_nobody_else(store: Store) -> None:
    bad = ended("sb-bad")
    bad["end"]["returncode"] = 1 << 80
    outcomes = await asyncio.gather(
        store.write(Change(sandboxes=[living("sb-1")])),
        store.write(Change(sandboxes=[living("sb-2"), bad], events=[event(1)])),
        store.write(Change(sandboxes=[living("sb-3")])),
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in outcomes] == [type(None), Internal, type(None)]
    assert await store.sandbox("sb-1") is not None
    assert await store.sandbox("sb-3") is not None
    assert await store.sandbox("sb-2") is None
    assert await store.events(0, 10) == []


async def test_a_caller_that_gives_up_takes_nothing_back(store: Store) -> None:
    first = asyncio.ensure_future(store.write(Change(sandboxes=[living("sb-1")])))
    second = asyncio.ensure_future(store.write(Change(sandboxes=[living("sb-2")])))
    await asyncio.sleep(0)
    first.cancel()
    await second
    await asyncio.gather(first, return_exceptions=True)
    assert first.cancelled()
    assert await store.sandbox("sb-1") is not None


async def test_an_overtaken_controller_writes_nothing_more(location: StoreLocation, store: Store) -> None:
    await store.write(Change(sandboxes=[living("sb-1")]))
    second = location.store()
    await second.open(CLUSTER, 10)
    try:
        with pytest.raises(FailedPrecondition) as caught:
            await store.write(Change(sandboxes=[living("sb-2")], events=[event(1)]))
        assert caught.value.state == "overtaken"
        with pytest.raises(FailedPrecondition) as caught:
            await store.expire(1e12)
        assert caught.value.state == "overtaken"
        await second.write(Change(sandboxes=[living("sb-3")]))
        assert [await second.sandbox(f"sb-{n}") is not None for n in (1, 2, 3)] == [True, False, True]
        assert await second.events(0, 10) == []
    finally:
        await second.close()


async def test_of_many_that_open_an_empty_store_at_once_one_may_write(location: StoreLocation) -> None:
    stores = [location.store() for _ in range(4)]
    try:
        await asyncio.gather(*(store.open(CLUSTER, 10) for store in stores))
        changes = [store.write(Change(sandboxes=[living(f"sb-{n}")])) for n, store in enumerate(stores)]
        outcomes = await asyncio.gather(*changes, return_exceptions=True)
        assert sorted(str(type(outcome).__name__) for outcome in outcomes) == ["FailedPrecondition"] * 3 + ["NoneType"]
    finally:
        for store in stores:
            await store.close()


async def test_it_may_be_opened_again(store: Store) -> None:
    await store.write(Change(sandboxes=[living("sb-1")]))
    assert len((await store.open(CLUSTER, 10)).sandboxes) == 1
    await store.write(Change(sandboxes=[living("sb-2")]))
    await store.close()
    await store.close()
    with pytest.raises(FailedPrecondition, match="not open"):
        await store.write(Change())
    assert len((await store.open(CLUSTER, 10)).sandboxes) == 2


async def test_the_store_of_another_cluster_is_left_alone(location: StoreLocation, store: Store) -> None:
    await store.write(Change(sandboxes=[living("sb-1")]))
    another = "another"
    if (
        location.postgres is None and location.disk is None
    ):  # each has a file of its own, but for one that was put in another's place
        location.execute("UPDATE meta SET cluster = 'other'")
        another = CLUSTER
    other = location.store()
    try:
        with pytest.raises(FailedPrecondition, match="database of its own"):
            await other.open(another, 10)
    finally:
        await other.close()
    await store.write(Change(sandboxes=[living("sb-2")]))  # it is the first one's still


@SQL
async def test_a_store_of_a_newer_version_is_left_alone(location: StoreLocation, store: Store) -> None:
    location.execute("UPDATE alembic_version SET version_num = '9999'")
    other = location.store()
    try:
        with pytest.raises(FailedPrecondition, match="newer version"):
            await other.open(CLUSTER, 10)
    finally:
        await other.close()


async def test_ten_thousand_sandboxes_are_written_and_restored(location: StoreLocation, store: Store) -> None:
    rows = [ended(f"sb-{n:05}", at=float(n), ended_at=n + 0.5, env={"K": "v" * 300}) for n in range(10_000)]
    await store.write(Change(sandboxes=rows))
    restored = await reopened(location, history=10_000)
    assert len(restored.sandboxes) == 10_000


@SQL
async def test_the_loop_goes_on_while_it_writes(store: Store) -> None:
    rows = [living(f"sb-{n}") for n in range(3000)]
    writing = asyncio.ensure_future(store.write(Change(sandboxes=rows)))
    await asyncio.sleep(0)  # the rows are made here, the rest happens elsewhere
    turns = 0
    while not writing.done():
        turns += 1
        await asyncio.sleep(0.001)
    await writing
    assert turns > 3
