"""What operators ask of machines: to admit one that joins, to start nothing on one, to empty one and let it go."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial

from shoal.actors.controller.nodes import Node, Nodes
from shoal.actors.controller.record import SandboxRecord
from shoal.actors.controller.record_writer import RecordWriter, audited
from shoal.actors.controller.slots import SlotPool
from shoal.actors.controller.store import Change
from shoal.actors.controller.supervisor import SandboxSupervisor
from shoal.model import tasks, verbs
from shoal.model.access import INSIDE, Caller
from shoal.model.errors import FailedPrecondition, InvalidRequest, NodeNotFound, ShoalError, Unavailable
from shoal.model.info import Cordon, NodeDrain, NodeInfo

log = logging.getLogger("shoal.machines")

MAX_WHY = 256

_CLOCKS_S = 60.0
"""How far a machine's clock may be from the controller's when it joins, and how long asking may take: tokens, which
are valid for ten minutes, are void where clocks differ as much."""

_ADMIT_S = 60.0
_DIAL_S = 3.0
_LOOK_S = 0.2
_LEAVE_S = 30.0
_AGAIN_S = 1.0
_BACK_S = 10.0
_MOVES = 4
"""Disks that are moved at once."""


async def dial(host: str, port: int) -> bool:
    """Whether something accepts connections there."""
    try:
        async with asyncio.timeout(_DIAL_S):
            _, writer = await asyncio.open_connection(host, port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True


class Machines:
    """The machines in the hands of their operators. `reaches`: whether a connection from here arrives."""

    def __init__(
        self,
        nodes: Nodes,
        supervisor: SandboxSupervisor,
        pool: SlotPool,
        writer: RecordWriter,
        reaches: Callable[[str, int], Awaitable[bool]] = dial,
    ) -> None:
        self._nodes = nodes
        self._supervisor = supervisor
        self._pool = pool
        self._writer = writer
        self._reaches = reaches
        self._changing = asyncio.Lock()
        """One change of the cordons at a time: each is in memory once it is on record."""
        self._moves: dict[str, asyncio.Task[None]] = {}
        self._moving = asyncio.Semaphore(_MOVES)

    async def forget_gone(self) -> None:
        """Forgets the cordons of machines that are gone: one that comes back has another id."""
        for node_id in [node_id for node_id in self._nodes.cordons if not self._nodes.listed(node_id)]:
            async with self._changing:
                await self._writer.write(Change(removed_cordons=(node_id,)))
                self._nodes.cordons.pop(node_id, None)

    # -- a machine that joins -----------------------------------------------------------------------

    async def admit(self, machine: str, clock: float) -> NodeInfo:
        """Waits until the node takes part, again if it was drained, or raises what keeps it from that. `clock`: the
        machine's, in unix seconds, when it asked."""
        _check_clock(clock - time.time())
        deadline = time.monotonic() + _ADMIT_S
        dialled, node = False, None
        while time.monotonic() < deadline:
            await self._nodes.refresh(wait_s=_LOOK_S)
            drained = self._nodes.drained(machine)
            if drained is not None:
                await self._take_back(drained, INSIDE)
            node = self._nodes.find(machine)
            if node is not None:
                if not dialled:
                    await self._check_reached(node.address, node.port, "Ray's ports")
                    dialled = True
                if node.info is not None:
                    host, _, port = node.info.address.rpartition(":")
                    await self._check_reached(host, int(port), "its relay's port (`node.relay_port`)")
                    return self._nodes.info(node)
                if node.error is not None and not node.error.retryable:
                    raise node.error
            await asyncio.sleep(_LOOK_S)
        problem = None if node is None else node.error
        raise Unavailable(f"the node did not answer within {_ADMIT_S:g} s" + (f": {problem}" if problem else ""))

    async def _check_reached(self, host: str, port: int, what: str) -> None:
        if not await self._reaches(host, port):
            raise FailedPrecondition(
                f"the head does not reach this machine at {host}:{port}; machines behind NAT cannot join: give an "
                f"address that the head reaches (`--address-ip`), or a VPN's, and open {what} to the cluster",
                state="unreachable",
            )

    # -- cordon and drain ---------------------------------------------------------------------------

    async def cordon(self, node: str, why: str, caller: Caller) -> NodeInfo:
        """From now on no new sandbox starts there."""
        found = self._known(node)
        await self._write(self._cordon(found, why, caller), verbs.cordon, caller)
        return self._nodes.info(found)

    async def cordon_suspects(self) -> None:
        """Cordons nodes on which starts fail again and again, as long as others are left."""
        health = self._pool.stock.health
        for node_id, why in list(health.suspects.items()):
            health.forget(node_id)
            found, cordons = self._nodes.find(node_id), self._nodes.cordons
            left = [node for node in self._nodes.known_nodes() if node.id not in cordons and node.id != node_id]
            if found is None or node_id in cordons:
                continue
            if not any(self._nodes.alive(node.id) for node in left):
                log.error("node %s: %s; it stays in use, as there is no other", node_id[:8], why)
                continue
            log.error("node %s takes no new sandboxes: %s; uncordon it once it is in order", node_id[:8], why)
            await self._write(self._cordon(found, why, INSIDE), verbs.cordon, INSIDE)

    async def uncordon(self, node: str, caller: Caller) -> NodeInfo:
        """New sandboxes may start there again. One that was drained takes part again, while its Ray runs."""
        found = self._nodes.find(node)
        if found is not None:
            await self._take_back(found.id, caller)
            return self._nodes.info(found)
        left = self._nodes.drained(node)
        if left is not None:
            await self._take_back(left, caller)
            await self._nodes.refresh(wait_s=_BACK_S)
        return self._nodes.info(self._known(left or node))

    async def _take_back(self, node_id: str, caller: Caller) -> None:
        async with self._changing:
            if node_id in self._nodes.cordons:
                entry = audited(verbs.uncordon, caller, target=node_id)
                await self._writer.write(Change(removed_cordons=(node_id,), audit=(entry,)))
                del self._nodes.cordons[node_id]
                self._nodes.come_back(node_id)

    async def drain(self, node: str, why: str, force: bool, timeout: float, caller: Caller) -> NodeDrain:
        """Cordons it; once it is empty, it leaves."""
        if not 0 <= timeout <= verbs.LONGEST_WAIT_S:
            raise InvalidRequest(f"timeout: give 0 to {verbs.LONGEST_WAIT_S:g} seconds", field="timeout")
        gone = self._nodes.drained(node)
        if gone is not None:
            return NodeDrain(gone, 0, left=True)
        found = self._known(node)
        if found.is_head:
            raise FailedPrecondition("the head cannot leave its cluster; cordon it, or run `shoal down`", state="head")
        if found.id not in self._nodes.cordons:
            await self._write(self._cordon(found, why, caller), verbs.drain_node, caller)
        if force:
            for record in self._supervisor.on_node(found.id):
                evict = partial(self._supervisor.evict, record, f"its node was drained: {why}", caller)
                tasks.supervise(evict, "evict")
        deadline = time.monotonic() + timeout
        count = await self._wait_until_empty(found.id, deadline)
        if not count:
            count = await self._move_disks(found.id, deadline)
        if count:
            return NodeDrain(found.id, count, left=False)
        self._pool.let_go(found.id)
        await self._nodes.leave(found.id, _LEAVE_S)
        async with self._changing:
            left = replace(self._nodes.cordons[found.id], left=True)
            await self._writer.write(Change(cordons=(left,)))
            self._nodes.cordons[found.id] = left
        return NodeDrain(found.id, 0, left=True)

    async def _move_disks(self, node_id: str, deadline: float) -> int:
        """Moves the stopped persistent sandboxes that have their disks there; those that cannot move keep them there.
        Returns how many are not moved by then: what was begun goes on. `FailedPrecondition` if one fails for good."""
        while True:
            left = self._supervisor.resting_on(node_id) if self._supervisor.persistence.movable(node_id) else []
            for record in left:
                if record.id not in self._moves:
                    move = self._moves[record.id] = tasks.shared(self._move(record), "move sandbox")
                    move.add_done_callback(partial(self._moved, record.id))
            left_s = deadline - time.monotonic()
            if not left or left_s <= 0:
                return len(left)
            done, _ = await asyncio.wait(
                [self._moves[record.id] for record in left], timeout=left_s, return_when=asyncio.FIRST_COMPLETED
            )
            for move in done:
                move.result()
            await asyncio.sleep(0 if done else min(_LOOK_S, left_s))

    def _moved(self, sandbox_id: str, _: asyncio.Task[None]) -> None:
        self._moves.pop(sandbox_id, None)

    async def _move(self, record: SandboxRecord) -> None:
        async with self._moving:
            try:
                await self._supervisor.move(record)
            except ShoalError as error:
                log.warning("%s is not moved from its machine yet: %s", record.id, error)
                if not error.retryable:
                    raise FailedPrecondition(
                        f"the disk of {record.id}, which is stopped, could not be moved to another machine: "
                        f"{error.message}; terminate it, or do what this asks for and drain again",
                        state="not_moved",
                    ) from None
                await asyncio.sleep(_AGAIN_S)

    async def _wait_until_empty(self, node_id: str, deadline: float) -> int:
        """How many sandboxes still live there by then."""
        while True:
            count, left_s = len(self._supervisor.on_node(node_id)), deadline - time.monotonic()
            if not count or left_s <= 0:
                return count
            await asyncio.sleep(min(_LOOK_S, left_s))

    def _known(self, node: str) -> Node:
        found = self._nodes.find(node)
        if found is None:
            raise NodeNotFound(
                f"the cluster has no node {node[:64]!r}; `shoal node ls` shows them, and one that was drained, or has "
                "left, comes back by `shoal join` on it",
                field="node",
            )
        return found

    def _cordon(self, node: Node, why: str, caller: Caller) -> Cordon:
        if not why.strip() or len(why) > MAX_WHY:
            raise InvalidRequest(f"why: give a reason of 1 to {MAX_WHY} characters", field="why")
        return Cordon(node.id, why, caller.token, time.time())

    async def _write(self, cordon: Cordon, verb: verbs.Verb[..., object], caller: Caller) -> None:
        async with self._changing:
            await self._writer.write(Change(cordons=(cordon,), audit=(audited(verb, caller, target=cordon.node_id),)))
            self._nodes.cordons[cordon.node_id] = cordon


def _check_clock(ahead_s: float) -> None:
    if abs(ahead_s) > _CLOCKS_S:
        how = "ahead of" if ahead_s > 0 else "behind"
        raise FailedPrecondition(
            f"this machine's clock is {abs(ahead_s):.0f} s {how} the head's, which makes tokens void; set both by a "
            "time server (`timedatectl set-ntp true`), then join again",
            state="clock",
        )
