"""A cluster in memory, for tests of what stands on a transport: it remembers calls and injects one failure.

Its sandboxes have files and a handful of programs (`fake_agent`), and end when they are terminated or their command ends.
"""

from __future__ import annotations

import asyncio
import builtins
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from shoal.model.errors import AlreadyExists, FailedPrecondition, SandboxEnded, SandboxNotFound, ShoalError
from shoal.model.ids import MAIN_PROCESS, new_sandbox_id
from shoal.model.info import Listing, NodeInfo, SandboxInfo
from shoal.model.settings import Limits, SandboxDefaults
from shoal.model.spec import SandboxSpec
from shoal.model.states import Reason, State
from shoal.model.validate import check_spec, check_tags
from shoal.transport.contract import LogChunk, Transport
from shoal.transport.fake_agent import FakeAgent, FakeProcess
from shoal.wire.agent import Agent, Start

_TICK_S = 0.005


class FakeTransport(Transport):
    """A cluster in memory. `calls` holds (name, first argument) of every call to it and to its agents."""

    def __init__(self) -> None:
        self.calls: builtins.list[tuple[str, Any]] = []
        self._faults: dict[str, builtins.list[ShoalError]] = {}
        self._boxes: dict[str, _Box] = {}

    def fail_next(self, call: str, error: ShoalError) -> None:
        """The next call of that name raises `error`; said again, the one after it too."""
        self._faults.setdefault(call, []).append(error)

    def note(self, call: str, argument: Any = None) -> None:
        """Remembers a call, and raises what was injected for it."""
        self.calls.append((call, argument))
        if faults := self._faults.get(call):
            raise faults.pop(0)

    def named(self, call: str) -> builtins.list[Any]:
        """The first arguments of all calls of that name so far."""
        return [argument for name, argument in self.calls if name == call]

    async def defaults(self) -> SandboxDefaults:
        self.note("defaults")
        return SandboxDefaults()

    async def create(self, spec: SandboxSpec, *, deadline: float) -> SandboxInfo:
        self.note("create", spec)
        check_spec(spec, Limits())
        for box in self._boxes.values():
            same = box.info.spec
            if spec.idempotency_key is not None and same.idempotency_key == spec.idempotency_key:
                return box.now()
            if spec.name is not None and (same.name, same.environment) == (spec.name, spec.environment) and box.lives:
                raise AlreadyExists(f"name: {spec.name!r} is taken; choose another, or end its sandbox", field="name")
        box = _Box(self, spec)
        self._boxes[box.info.id] = box
        return box.info

    async def get(self, sandbox_id: str) -> SandboxInfo:
        self.note("get", sandbox_id)
        return self._box(sandbox_id).now()

    async def find(self, name: str, environment: str) -> SandboxInfo:
        self.note("find", name)
        found = [
            b.now() for b in self._boxes.values() if (b.info.spec.name, b.info.spec.environment) == (name, environment)
        ]
        if not found:
            raise SandboxNotFound(f"no sandbox in {environment!r} has the name {name!r}")
        return next((info for info in found if not info.ended), found[-1])

    async def list(self, listing: Listing) -> builtins.list[SandboxInfo]:
        self.note("list", listing)
        found = [
            info
            for info in (box.now() for box in reversed(self._boxes.values()))
            if info.spec.environment == listing.environment
            and listing.tags.items() <= info.tags.items()
            and (listing.include_ended or not info.ended)
        ]
        return found[: listing.limit]

    async def set_tags(self, sandbox_id: str, tags: Mapping[str, str]) -> SandboxInfo:
        self.note("set_tags", sandbox_id)
        check_tags(tags)
        box = self._box(sandbox_id)
        box.info = replace(box.now(), tags=dict(tags))
        return box.info

    async def terminate(self, sandbox_id: str) -> SandboxInfo:
        self.note("terminate", sandbox_id)
        box = self._box(sandbox_id)
        box.end(Reason.TERMINATED, -9)
        return box.info

    async def wait(self, sandbox_id: str, timeout: float | None) -> SandboxInfo:
        self.note("wait", sandbox_id)
        box = self._box(sandbox_id)
        end = None if timeout is None else time.monotonic() + timeout
        while box.lives and (end is None or time.monotonic() < end):  # noqa: ASYNC110  # callers come from many loops
            await asyncio.sleep(_TICK_S)
        return box.info

    async def agent(self, sandbox_id: str) -> Agent:
        self.note("agent", sandbox_id)
        box = self._box(sandbox_id)
        info = box.now()
        if info.ended:
            raise SandboxEnded(
                f"sandbox {sandbox_id} has ended: {info.reason}", reason=info.reason, exit_code=info.returncode
            )
        return box.agent

    async def logs(self, sandbox_id: str, fd: int, offset: int) -> LogChunk:
        self.note("logs", sandbox_id)
        box = self._box(sandbox_id)
        if box.lives:
            raise FailedPrecondition("it lives: its agent has its output", state="running")
        data = box.main.streams[fd] if box.main is not None else b""
        return LogChunk(offset, bytes(data[offset:]), True)

    async def nodes(self) -> builtins.list[NodeInfo]:
        self.note("nodes")
        lives = sum(box.lives for box in self._boxes.values())
        return [
            NodeInfo("node-fake", "127.0.0.1:1", "fake", None, "fake", ("runc",), True, lives, 0, 8.0, 8.0, 8192, 8192)
        ]

    async def close(self) -> None:
        self.note("close")

    def _box(self, sandbox_id: str) -> _Box:
        try:
            return self._boxes[sandbox_id]
        except KeyError:
            raise SandboxNotFound(f"there never was a sandbox {sandbox_id}") from None


class _Box:
    """One sandbox."""

    def __init__(self, cluster: FakeTransport, spec: SandboxSpec) -> None:
        self.agent = FakeAgent(cluster.note)
        self.main: FakeProcess | None = None
        if spec.command:
            self.main = self.agent.start(Start(MAIN_PROCESS, spec.command))
        now = time.time()
        self.info = SandboxInfo(
            new_sandbox_id(), State.RUNNING, spec, now, started_at=now, node_id="node-fake", tags=dict(spec.tags)
        )

    @property
    def lives(self) -> bool:
        return not self.now().ended

    def now(self) -> SandboxInfo:
        """Its info, its end seen to where its command has ended."""
        if self.main is not None and self.main.exit is not None:
            self.end(Reason.COMPLETED, self.main.exit)
        return self.info

    def end(self, reason: Reason, returncode: int) -> None:
        if self.info.ended:
            return
        code = returncode if self.main is not None else None
        self.info = replace(self.info, state=State.TERMINATED, reason=reason, returncode=code, ended_at=time.time())
        for process in self.agent.processes.values():
            process.kill(9)
