"""The controller is killed during a burst of creates that nobody waits for. It forgets nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import pytest

import shoal
from shoal.model import verbs
from shoal.model.access import Quota, Scope
from shoal.model.info import SandboxInfo
from shoal.model.spec import Resources, SandboxSpec
from tests.cluster import Cluster
from tests.processes import actor_pid, kill

pytestmark = [pytest.mark.engine, pytest.mark.anyio, pytest.mark.timeout(180)]

DEADLINE_S = 90.0


def wanted(key: str) -> SandboxSpec:
    resources = Resources(0.0625, 0.5, 32, 128, 1024, 64)
    return SandboxSpec("shoal/base", resources, tags={"of": "burst"}, idempotency_key=key)


@pytest.mark.long
@pytest.mark.parametrize("killed_after_s", [0.05, 1.5])
async def test_a_burst_that_nobody_waits_for_survives_the_controller(cluster: Cluster, killed_after_s: float) -> None:
    transport = cluster.client.transport
    began = time.monotonic()
    specs = [wanted(f"{killed_after_s}-{number}") for number in range(12)]
    bursts = [
        asyncio.create_task(transport.create_many(specs[first : first + 3], deadline=DEADLINE_S, wait=False))
        for first in range(0, 12, 3)
    ]
    await asyncio.sleep(killed_after_s)  # where in the burst it falls
    kill(await asyncio.to_thread(actor_pid, "controller"))
    accepted = infos([outcome for burst in bursts for outcome in await burst])
    try:
        assert len({info.id for info in accepted}) == 12
        settled = [await settle(cluster, info.id, began + DEADLINE_S) for info in accepted]
        for info in settled:
            assert info.state == "running" or (info.state == "failed" and info.reason is not None), info
        again = infos(await transport.create_many(specs, deadline=DEADLINE_S))
        assert {i.id for i in again if i.id in {s.id for s in settled if s.state == "running"}} == {
            s.id for s in settled if s.state == "running"
        }, "the same keys give the same sandboxes"
        living = await shoal.Sandbox.list.aio(tags={"of": "burst"})
        assert len(living) == 12, "none is doubled"
        ran = await asyncio.gather(*(sandbox.run.aio("echo on") for sandbox in living))
        assert [result.stdout for result in ran] == ["on\n"] * 12
    finally:
        await asyncio.gather(
            *(sandbox.terminate.aio() for sandbox in await shoal.Sandbox.list.aio(tags={"of": "burst"}))
        )


async def test_what_it_knew_is_known_after_a_kill(cluster: Cluster) -> None:
    transport = cluster.client.transport
    admin = transport
    await admin.ask(verbs.create_environment, "kept", Quota(sandboxes=5))
    try:
        token, text = await admin.ask(verbs.create_token, "ci", "kept", Scope.RUN, 3600)
        sandbox = await shoal.Sandbox.create.aio("sh", "-c", "exit 7", environment="kept", tags={"a": "b"})
        await sandbox.wait.aio(timeout=20)
        ended = await shoal.Sandbox.create.aio(environment="kept")
        await ended.terminate.aio()
        await transport.ask(verbs.wait, ended.id, 20.0)  # until its end is on record, too
        before = await admin.ask(verbs.events, 0, environment="kept")
        kill(await asyncio.to_thread(actor_pid, "controller"))

        info = await transport.ask(verbs.get, sandbox.id)
        assert (info.reason, info.returncode, info.tags) == ("completed", 7, {"a": "b"})
        environment = await admin.ask(verbs.environment, "kept")
        assert environment.quota == Quota(sandboxes=5)
        assert token in await admin.ask(verbs.tokens)
        assert text.startswith(f"shoal_{token.id}_")
        assert await admin.ask(verbs.events, 0, environment="kept") == before
        last = [event for event in before if event.sandbox_id == ended.id][-1]
        assert (last.kind, last.data["reason"], last.data["token"]) == ("terminated", "terminated", "cluster")
        done = [(entry.action, entry.target) for entry in await admin.ask(verbs.audit, None, 100)]
        for did in (
            ("environment.create", "kept"),
            ("token.create", token.id),
            ("sandbox.create", ended.id),
            ("sandbox.terminate", ended.id),
        ):
            assert did in done
        assert (await admin.ask(verbs.revoke_token, token.id)).revoked_at is not None
    finally:
        await admin.ask(verbs.delete_environment, "kept")


def infos(outcomes: Sequence[SandboxInfo | shoal.ShoalError]) -> list[SandboxInfo]:
    for outcome in outcomes:
        if isinstance(outcome, shoal.ShoalError):
            raise outcome
    return [outcome for outcome in outcomes if isinstance(outcome, SandboxInfo)]


async def settle(cluster: Cluster, sandbox_id: str, limit: float) -> SandboxInfo:
    """Its state once it runs or has ended."""
    transport = cluster.client.transport
    while True:
        last = await transport.ask(verbs.last_event)
        info = await transport.ask(verbs.get, sandbox_id)
        if info.ended or info.state == "running":
            return info
        left = limit - time.monotonic()
        assert left > 0, f"{sandbox_id} is {info.state} beyond its deadline"
        await transport.ask(verbs.events, last, sandbox_id=sandbox_id, wait_s=min(left, 20))
