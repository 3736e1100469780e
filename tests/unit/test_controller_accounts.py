"""Environments, quotas and tokens: who may have what, and what is refused without a trace."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from typing import Any

import pytest

from shoal.actors.controller import accounts as accounts_module
from shoal.actors.controller.quotas import Usage, check_quota
from shoal.model.access import ANY_ENVIRONMENT, INSIDE, AuditEntry, Caller, Quota, Scope, matches, split
from shoal.model.errors import (
    AlreadyExists,
    EnvironmentNotFound,
    FailedPrecondition,
    InvalidRequest,
    PermissionDenied,
    QuotaExceeded,
    SandboxNotFound,
    ShoalError,
    TokenNotFound,
    Unavailable,
)
from shoal.model.info import Listing
from shoal.model.spec import SandboxSpec
from tests.unit.builders import resources, spec
from tests.unit.controller_world import Controller, World

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(30)]

DEV_ADMIN = Caller("tk-dev", "dev", Scope.ADMIN)
DEV_RUN = Caller("tk-run", "dev", Scope.RUN)


class TestUsage:
    def test_comes_back_to_nothing(self) -> None:
        usage = Usage()
        for _ in range(1000):
            usage.add(spec(resources=resources(cpu_limit=0.1)), 0)
        for _ in range(1000):
            usage.remove(spec(resources=resources(cpu_limit=0.1)), 0)
        assert (usage.sandboxes, usage.cpu, usage.memory) == (0, 0.0, 0)

    def test_creates_per_minute_say_exactly_when(self) -> None:
        usage = Usage()
        for at in (0.0, 10.0, 20.0):
            usage.accept(at)
        quota = Quota(creates_per_minute=3)
        with pytest.raises(QuotaExceeded) as caught:
            check_quota(quota, usage, spec(), 25.0)
        assert caught.value.field == "creates_per_minute"
        assert caught.value.retry_after == 35.0
        assert caught.value.fields["used"] == caught.value.fields["allowed"] == 3
        with pytest.raises(QuotaExceeded):
            check_quota(quota, usage, spec(), 59.999)
        check_quota(quota, usage, spec(), 25.0 + caught.value.retry_after)

    def test_a_lowered_rate_waits_for_enough_to_be_old(self) -> None:
        usage = Usage()
        for at in range(10):
            usage.accept(float(at))
        assert usage.room_in(2, 10.0) == 8 + 60.0 - 10.0
        assert usage.room_in(0, 10.0) > 0

    @pytest.mark.parametrize(
        ("quota", "field", "used", "allowed"),
        [
            (Quota(sandboxes=1), "sandboxes", 1, 1),
            (Quota(cpu=1.5), "cpu", 1.0, 1.5),
            (Quota(memory=2047), "memory", 1024, 2047),
        ],
    )
    def test_each_bound_names_itself(self, quota: Quota, field: str, used: float, allowed: float) -> None:
        usage = Usage()
        usage.add(spec(), 0)
        with pytest.raises(QuotaExceeded) as caught:
            check_quota(quota, usage, spec(), 0.0)
        told = caught.value.fields
        assert (told["field"], told["quota"], told["used"], told["allowed"]) == (field, field, used, allowed)
        assert caught.value.retry_after == 1.0

    def test_what_just_fits_fits(self) -> None:
        usage = Usage()
        for _ in range(9):
            usage.add(spec(resources=resources(cpu_limit=0.1)), 0)
        check_quota(Quota(sandboxes=10, cpu=1.0, memory=10240), usage, spec(resources=resources(cpu_limit=0.1)), 0.0)


async def make(controller: Controller, wanted: SandboxSpec, caller: Caller = INSIDE) -> str:
    info, _ = await controller.begin(controller.parts.sandboxes.create(wanted, 30, True, caller))
    return info.id


class TestEnvironments:
    async def test_quotas_hold_for_a_crowd_and_count_what_is_only_on_its_way(self) -> None:
        world = World(capacity=2)
        controller = await world.controller()
        await controller.parts.accounts.create_environment("dev", Quota(sandboxes=3), INSIDE)
        many = [spec(environment="dev") for _ in range(10)]
        made = await controller.begin(controller.parts.sandboxes.create_many(many, 30, False, INSIDE))
        refused = [outcome for outcome in made if isinstance(outcome, ShoalError)]
        assert len(refused) == 7
        assert {type(error) for error in refused} == {QuotaExceeded}
        assert controller.parts.accounts.environment("dev", INSIDE).usage.sandboxes == 3
        await controller.kill()
        again = await world.controller()
        assert again.parts.accounts.environment("dev", INSIDE).usage == Quota(3, 3.0, 3072, 3, 0, 0)
        with pytest.raises(QuotaExceeded):
            await make(again, spec(environment="dev"))
        await again.kill()

    async def test_the_same_create_again_is_no_second_one(self) -> None:
        controller = await World().controller()
        await controller.parts.accounts.set_quota("main", Quota(sandboxes=1, creates_per_minute=1), INSIDE)
        wanted = spec(idempotency_key="k")
        assert len({await make(controller, wanted) for _ in range(20)}) == 1
        await controller.kill()

    async def test_each_environment_has_its_own_names_and_keys(self) -> None:
        controller = await World().controller()
        await controller.parts.accounts.create_environment("dev", Quota(), INSIDE)
        one = await make(controller, spec(name="n", idempotency_key="k"))
        other = await make(controller, spec(name="n", idempotency_key="k", environment="dev"))
        assert one != other
        await controller.kill()

    async def test_one_that_is_not_there(self) -> None:
        controller = await World().controller()
        for caller, wanted in ((INSIDE, "nope"), (DEV_RUN, "nope"), (DEV_RUN, "main")):
            with pytest.raises(EnvironmentNotFound) as caught:
                await make(controller, spec(environment=wanted), caller)
            assert caught.value.field == "environment"
        await controller.kill()

    async def test_is_deleted_only_when_nothing_lives_in_it_and_takes_its_tokens_along(self) -> None:
        world = World()
        controller = await world.controller()
        accounts, sandboxes = controller.parts.accounts, controller.parts.sandboxes
        await accounts.create_environment("dev", Quota(), INSIDE)
        with pytest.raises(AlreadyExists):
            await accounts.create_environment("dev", Quota(), INSIDE)
        info, _ = await accounts.create_token("ci", "dev", Scope.RUN, None, INSIDE)
        made = await make(controller, spec(environment="dev"))
        with pytest.raises(FailedPrecondition) as caught:
            await accounts.delete_environment("dev", INSIDE)
        assert caught.value.state == "in_use"
        with pytest.raises(InvalidRequest):
            await accounts.delete_environment("main", INSIDE)
        await controller.begin(sandboxes.terminate(made, INSIDE))
        world.disk.full = True
        with pytest.raises(Unavailable):
            await accounts.delete_environment("dev", INSIDE)
        world.disk.full = False
        await accounts.delete_environment("dev", INSIDE)
        stored = accounts.stored_token(info.id)
        assert stored is not None
        assert stored.info.revoked_at is not None
        await controller.kill()
        again = await world.controller()
        assert [e.name for e in again.parts.accounts.environments(INSIDE)] == ["main"]
        ending = again.parts.sandboxes.wait(made, 20, INSIDE)  # the full disk may have kept its end off the record
        assert (await ending).ended, "its history stays"
        await again.kill()

    async def test_the_past_of_one_that_was_deleted_is_nobody_else_s(self) -> None:
        world = World()
        controller = await world.controller()
        await controller.parts.accounts.create_environment("dev", Quota(), INSIDE)
        await controller.parts.accounts.delete_environment("dev", INSIDE)
        for _ in range(2):  # before and after a restart
            with pytest.raises(AlreadyExists) as caught:
                await controller.parts.accounts.create_environment("dev", Quota(), INSIDE)
            assert caught.value.fields["field"] == "name"
            assert "dev" not in world.disk.environments
            await controller.kill()
            controller = await world.controller()
        world.disk.audit.clear()  # once it is forgotten
        await controller.parts.accounts.create_environment("dev", Quota(), INSIDE)
        await controller.kill()

    @pytest.mark.parametrize(
        ("bad", "field"),
        [
            (Quota(sandboxes=-1), "sandboxes"),
            (Quota(cpu=float("nan")), "cpu"),
            (Quota(memory=1.5), "memory"),  # type: ignore[arg-type]
        ],
    )
    async def test_senseless_quotas_are_refused(self, bad: Quota, field: str) -> None:
        controller = await World().controller()
        with pytest.raises(InvalidRequest) as caught:
            await controller.parts.accounts.set_quota("main", bad, INSIDE)
        assert caught.value.field == field
        await controller.kill()


class TestStrangers:
    """Nobody sees anything of an environment that is not theirs."""

    async def test_a_sandbox_of_another_environment_is_as_one_that_never_was(self) -> None:
        controller = await World().controller()
        parts = controller.parts
        await parts.accounts.create_environment("dev", Quota(), INSIDE)
        made = await make(controller, spec(name="n"))

        async def refused(work: object) -> str:
            with pytest.raises(SandboxNotFound) as caught:
                await work  # type: ignore[misc]
            return str(caught.value).replace(made, "sb-never")

        for ended in (False, True):
            if ended:
                await controller.begin(parts.sandboxes.terminate(made, INSIDE))
            for call in (
                lambda i: parts.sandboxes.get(i, DEV_RUN),
                lambda i: parts.sandboxes.grant(i, DEV_RUN),
                lambda i: parts.sandboxes.terminate(i, DEV_RUN),
                lambda i: parts.sandboxes.wait(i, 0, DEV_RUN),
                lambda i: parts.sandboxes.logs(i, 1, 0, DEV_RUN),
                lambda i: parts.sandboxes.set_tags(i, {}, DEV_RUN),
                lambda i: parts.event_feed.events(0, i, None, 0, DEV_RUN),
            ):
                assert await refused(call(made)) == await refused(call("sb-never"))
        there = await refused(parts.sandboxes.find("n", "main", DEV_RUN))
        nowhere = await refused(parts.sandboxes.find("x", "main", DEV_RUN))
        assert there == nowhere.replace("'x'", "'n'")
        with pytest.raises(EnvironmentNotFound):
            await parts.sandboxes.select(Listing("main"), DEV_RUN)
        assert await parts.event_feed.events(0, None, None, 0, DEV_RUN) == []
        assert await parts.event_feed.audit(None, 10, DEV_ADMIN) == [
            e for e in await parts.event_feed.audit(None, 10, INSIDE) if e.environment == "dev"
        ]
        await controller.kill()

    async def test_environments_and_tokens(self) -> None:
        controller = await World().controller()
        accounts = controller.parts.accounts
        await accounts.create_environment("dev", Quota(), INSIDE)
        mine, _ = await accounts.create_token("mine", "dev", Scope.RUN, None, DEV_ADMIN)
        other, _ = await accounts.create_token("other", "main", Scope.RUN, None, INSIDE)
        assert mine.created_by == "tk-dev"
        assert [t.id for t in accounts.tokens(DEV_ADMIN)] == [mine.id]
        assert [e.name for e in accounts.environments(DEV_ADMIN)] == ["dev"]
        for name in ("main", "nope"):
            with pytest.raises(EnvironmentNotFound):
                accounts.environment(name, DEV_ADMIN)
            with pytest.raises(EnvironmentNotFound):
                await accounts.set_quota(name, Quota(), DEV_ADMIN)
            with pytest.raises(EnvironmentNotFound):
                await accounts.delete_environment(name, DEV_ADMIN)
        with pytest.raises(TokenNotFound):
            await accounts.revoke_token(other.id, DEV_ADMIN)
        await controller.kill()


class TestTokens:
    async def test_the_secret_is_shown_once_and_kept_nowhere(self) -> None:
        world = World()
        controller = await world.controller()
        info, text = await controller.parts.accounts.create_token("ci", "main", Scope.RUN, 60, INSIDE)
        found = split(text)
        assert found is not None
        token_id, secret = found
        assert token_id == info.id
        stored = controller.parts.accounts.stored_token(token_id)
        assert stored is not None
        assert matches(stored, secret)
        assert stored.info.valid(info.created_at + 59)
        assert not stored.info.valid(info.created_at + 60)
        kept = json.dumps([world.disk.sandboxes, [asdict(t) for t in world.disk.tokens.values()]], default=str)
        assert secret not in kept + repr(world.disk.audit)
        await controller.kill()
        again = await world.controller()
        assert again.parts.accounts.stored_token(token_id) == stored
        await again.kill()

    @pytest.mark.parametrize(
        ("caller", "environment", "scope"),
        [
            (DEV_ADMIN, "*", Scope.READ),
            (DEV_ADMIN, "main", Scope.READ),
            (DEV_ADMIN, "nope", Scope.READ),
        ],
    )
    async def test_nobody_gives_more_than_they_have(self, caller: Caller, environment: str, scope: Scope) -> None:
        controller = await World().controller()
        await controller.parts.accounts.create_environment("dev", Quota(), INSIDE)
        with pytest.raises(PermissionDenied):
            await controller.parts.accounts.create_token("t", environment, scope, None, caller)
        await controller.kill()

    async def test_revoked_is_revoked_through_restarts(self) -> None:
        world = World()
        controller = await world.controller()
        info, _ = await controller.parts.accounts.create_token("ci", "main", Scope.RUN, None, INSIDE)
        revoked = await controller.parts.accounts.revoke_token(info.id, INSIDE)
        assert await controller.parts.accounts.revoke_token(info.id, INSIDE) == revoked
        assert [e.action for e in world.disk.audit] == ["token.create", "token.revoke"]
        await controller.kill()
        again = await world.controller()
        assert not again.parts.accounts.tokens(INSIDE)[0].valid(info.created_at)
        with pytest.raises(TokenNotFound):
            await again.parts.accounts.revoke_token("tk-nope", INSIDE)
        await again.kill()

    async def test_of_those_that_are_void_only_the_newest_are_kept_beside_the_others(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(accounts_module, "MAX_TOKENS", 5)
        world = World()
        controller = await world.controller()
        accounts = controller.parts.accounts
        await accounts.create_environment("dev", Quota(), INSIDE)
        other, _ = await accounts.create_token("other", "main", Scope.READ, None, INSIDE)
        good = [(await accounts.create_token("good", "dev", Scope.READ, None, INSIDE))[0] for _ in range(2)]
        made = []
        for _ in range(20):
            info, _ = await accounts.create_token("ci", "dev", Scope.READ, None, DEV_ADMIN)
            await accounts.revoke_token(info.id, DEV_ADMIN)
            made.append(info)
        left = {info.id for info in [*good, *made[-3:]]}
        assert {info.id for info in accounts.tokens(DEV_ADMIN)} == left
        assert set(world.disk.tokens) == left | {other.id}
        assert accounts.stored_token(made[0].id) is None
        more = [(await accounts.create_token("good", "dev", Scope.READ, None, INSIDE))[0] for _ in range(3)]
        with pytest.raises(QuotaExceeded):
            await accounts.create_token("good", "dev", Scope.READ, None, INSIDE)
        assert {info.id for info in accounts.tokens(DEV_ADMIN)} == {info.id for info in [*good, *more]}
        await controller.kill()

    async def test_use_is_noted_to_the_minute(self) -> None:
        world = World()
        controller = await world.controller()
        info, _ = await controller.parts.accounts.create_token("ci", "main", Scope.RUN, None, INSIDE)
        writes = world.disk.writes
        for at in (600.0, 610.0, 659.0):
            await controller.parts.event_feed.report([], {info.id: at, "tk-gone": at})
        assert world.disk.writes == writes + 1
        assert world.disk.tokens[info.id].info.last_used_at == 600.0
        await controller.kill()


async def test_what_replicas_report_is_entered_once() -> None:
    world = World()
    controller = await world.controller()
    made = await make(controller, spec(), Caller("tk-1"))
    seen = [
        AuditEntry(1.0, "sandbox.create", "ok", "tk-1", "main", made),  # entered by the create itself
        AuditEntry(2.0, "sandbox.create", "quota_exceeded", "tk-1", "main"),
        AuditEntry(3.0, "exec", "ok", "tk-1", "main", made, "r-1", "10.0.0.1", id=99),
    ]
    await controller.parts.event_feed.report(seen, {})
    entries = await controller.parts.event_feed.audit(None, 10, INSIDE)
    assert [(e.action, e.outcome, e.target) for e in entries] == [
        ("exec", "ok", made),
        ("sandbox.create", "quota_exceeded", None),
        ("sandbox.create", "ok", made),
    ]
    assert (entries[0].request_id, entries[0].address) == ("r-1", "10.0.0.1")
    await controller.kill()


@pytest.mark.parametrize("value", [-1, 1 << 63, True, "1", 1.0])
async def test_what_is_no_id_is_refused(value: Any) -> None:
    controller = await World().controller()
    following = controller.parts.event_feed
    with pytest.raises(InvalidRequest) as caught:
        await following.audit(value, 10, INSIDE)
    assert caught.value.field == "before"
    with pytest.raises(InvalidRequest) as caught:
        await following.events(value, None, None, 0, INSIDE)
    assert caught.value.field == "after"
    await controller.kill()


async def test_what_callers_of_all_environments_do_is_seen_in_the_sandbox_s_own() -> None:
    world = World()
    controller = await world.controller()
    await controller.parts.accounts.create_environment("dev", Quota(), INSIDE)
    made = await make(controller, spec(environment="dev"))
    seen = [
        AuditEntry(1.0, "exec", "ok", "tk-ops", ANY_ENVIRONMENT, made),
        AuditEntry(2.0, "exec", "sandbox_not_found", "tk-ops", ANY_ENVIRONMENT, "sb-never"),
        AuditEntry(3.0, "events", "permission_denied", "tk-ops", ANY_ENVIRONMENT),
        AuditEntry(4.0, "exec", "sandbox_not_found", "tk-main", "main", made),  # a stranger's
    ]
    await controller.parts.event_feed.report(seen, {})
    entries = await controller.parts.event_feed.audit(None, 4, INSIDE)
    assert [(e.token, e.environment) for e in entries] == [
        ("tk-main", "main"),
        ("tk-ops", ANY_ENVIRONMENT),
        ("tk-ops", ANY_ENVIRONMENT),
        ("tk-ops", "dev"),
    ]
    theirs = await controller.parts.event_feed.audit(None, 100, DEV_ADMIN)
    assert ("exec", "tk-ops", made) in [(e.action, e.token, e.target) for e in theirs]
    await controller.kill()


class TestAtOnce:
    """Changes that meet while the store is being written."""

    async def test_of_two_environments_of_a_name_one_is_made(self) -> None:
        world = World()
        controller = await world.controller()
        accounts = controller.parts.accounts
        made = await asyncio.gather(
            accounts.create_environment("dev", Quota(sandboxes=1), INSIDE),
            accounts.create_environment("dev", Quota(sandboxes=2), INSIDE),
            return_exceptions=True,
        )
        assert sorted(type(each).__name__ for each in made) == ["AlreadyExists", "Environment"]
        await controller.kill()

    async def test_no_token_outlives_an_environment_that_is_deleted_meanwhile(self) -> None:
        world = World()
        controller = await world.controller()
        accounts = controller.parts.accounts
        await accounts.create_environment("dev", Quota(), INSIDE)
        made, deleted = await asyncio.gather(
            accounts.create_token("ci", "dev", Scope.RUN, None, INSIDE),
            accounts.delete_environment("dev", INSIDE),
            return_exceptions=True,
        )
        assert deleted is None
        assert not isinstance(made, BaseException)
        stored = accounts.stored_token(made[0].id)
        assert stored is not None
        assert stored.info.revoked_at is not None
        assert world.disk.tokens[made[0].id] == stored
        await controller.kill()

    async def test_of_an_environment_that_is_deleted_meanwhile_none_of_its_name_is_made(self) -> None:
        controller = await World().controller()
        accounts = controller.parts.accounts
        await accounts.create_environment("dev", Quota(), INSIDE)
        deleted, made = await asyncio.gather(
            accounts.delete_environment("dev", INSIDE),
            accounts.create_environment("dev", Quota(), INSIDE),
            return_exceptions=True,
        )
        assert deleted is None
        assert isinstance(made, AlreadyExists)
        await controller.kill()

    async def test_a_quota_brings_no_deleted_environment_back(self) -> None:
        world = World()
        controller = await world.controller()
        accounts = controller.parts.accounts
        await accounts.create_environment("dev", Quota(), INSIDE)
        _, deleted = await asyncio.gather(
            accounts.set_quota("dev", Quota(sandboxes=1), INSIDE),
            accounts.delete_environment("dev", INSIDE),
            return_exceptions=True,
        )
        assert deleted is None
        with pytest.raises(EnvironmentNotFound):
            accounts.environment("dev", INSIDE)
        assert "dev" not in world.disk.environments
        await controller.kill()

    async def test_a_use_noted_meanwhile_makes_no_revoked_token_good_again(self) -> None:
        world = World()
        controller = await world.controller()
        accounts = controller.parts.accounts
        info, _ = await accounts.create_token("ci", "main", Scope.RUN, None, INSIDE)
        revoking = asyncio.ensure_future(accounts.revoke_token(info.id, INSIDE))
        await asyncio.sleep(0)  # it writes
        await controller.parts.event_feed.report([], {info.id: info.created_at + 1000})
        await revoking
        assert world.disk.tokens[info.id].info.revoked_at is not None
        await controller.kill()

    async def test_a_token_whose_end_is_not_on_record_is_good(self) -> None:
        world = World()
        controller = await world.controller()
        accounts = controller.parts.accounts
        info, _ = await accounts.create_token("ci", "main", Scope.RUN, None, INSIDE)
        world.disk.full = True
        with pytest.raises(Unavailable):
            await accounts.revoke_token(info.id, INSIDE)
        stored = accounts.stored_token(info.id)
        assert stored is not None
        assert stored.info.revoked_at is None
        world.disk.full = False
        await controller.kill()
