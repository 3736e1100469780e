"""A cluster in memory, for tests of what stands on a transport: it remembers calls and injects one failure.

Its sandboxes have files and a handful of programs (`fake_agent`), an echo on port 7 and a web page on port 8080, and
end when they are terminated or their command ends. It heeds who calls as a cluster does.
"""

from __future__ import annotations

import asyncio
import builtins
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ParamSpec, TypeVar, cast

from shoal.model import verbs
from shoal.model.access import Quota, Tunnel, caller
from shoal.model.errors import (
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidRequest,
    SandboxEnded,
    ShoalError,
    TunnelNotFound,
    Unavailable,
)
from shoal.model.grants import TTL_S, Grant
from shoal.model.ids import MAIN_PROCESS, new_sandbox_id
from shoal.model.info import Listing, LogChunk, NodeInfo, Page, SandboxInfo
from shoal.model.settings import Limits, SandboxDefaults
from shoal.model.spec import SandboxSpec
from shoal.model.spec_model import check_spec
from shoal.model.states import Reason, State
from shoal.model.validate import check_tags
from shoal.model.verbs import Verb
from shoal.model.visibility import no_sandbox, no_sandbox_named
from shoal.transport.contract import Transport
from shoal.transport.fake_admin import FakeAdmin, FakeReplicaSide, sees
from shoal.transport.fake_agent import FakeAgent, FakeProcess
from shoal.transport.fake_streams import Serve, connect, echo, web
from shoal.wire.agent import Agent, Start
from shoal.wire.bytestream import ByteStream

P = ParamSpec("P")
R = TypeVar("R")

_TICK_S = 0.005


class FakeTransport(Transport):
    """A cluster in memory. `calls` holds (name, first argument) of every call to it and to its agents.

    `start_s`: seconds for which a new sandbox is pending. `ports`: what answers on a sandbox's ports; `serve_channel`:
    what is at the other end of a channel, an echo unless a test says better. `replica_side` is what an API in front of
    it is given.
    """

    def __init__(self, environments: Sequence[str] = ("main", "dev")) -> None:
        self.calls: builtins.list[tuple[str, Any]] = []
        self.start_s = 0.0
        self.ports: dict[int, Serve] = {7: echo, 8080: web}
        self.serve_channel: Serve = echo
        self._faults: dict[str, builtins.list[ShoalError]] = {}
        self._boxes: dict[str, _Box] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._admin = FakeAdmin(self.note, self._usage, environments)
        self.replica_side = FakeReplicaSide(self._admin)

    @property
    def admin(self) -> FakeAdmin:
        return self._admin

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

    async def ask(self, verb: Verb[P, R], /, *args: P.args, **options: P.kwargs) -> R:
        if verb is verbs.defaults:
            return cast(R, (await self.defaults()).model_dump())
        part = next(each for each in (self, self._admin, self.replica_side) if hasattr(each, verb.name))
        return cast(R, await getattr(part, verb.name)(*args, **options))

    async def list_sandboxes(self, listing: Listing) -> Page:
        return Page(await self.list(listing))

    def forget(self, sandbox_id: str) -> None:
        pass  # the agents of those that ended refuse by themselves

    async def defaults(self) -> SandboxDefaults:
        self.note("defaults")
        return SandboxDefaults()

    async def create(self, spec: SandboxSpec, *, deadline: float, wait: bool = True) -> SandboxInfo:
        self.note("create", spec)
        return await self._create(spec, deadline, wait)

    async def create_many(
        self, specs: Sequence[SandboxSpec], *, deadline: float, wait: bool = True
    ) -> Sequence[SandboxInfo | ShoalError]:
        self.note("create_many", specs)

        async def one(spec: SandboxSpec) -> SandboxInfo | ShoalError:
            try:
                return await self._create(spec, deadline, wait)
            except ShoalError as error:
                return error

        return await asyncio.gather(*map(one, specs))

    async def _create(self, spec: SandboxSpec, deadline: float, wait: bool) -> SandboxInfo:
        check_spec(spec, Limits())
        self._admin.check(spec.environment)
        box = self._known(spec)
        if box is None:
            box = _Box(self, spec)
            self._boxes[box.info.id] = box
        end = time.monotonic() + deadline
        while wait and box.now().state is State.PENDING:  # callers come from many loops
            if time.monotonic() >= end:
                box.end(Reason.TERMINATED, -9)
                raise DeadlineExceeded(f"the sandbox did not run within {deadline:g} s; give it a later deadline")
            await asyncio.sleep(_TICK_S)
        return box.now()

    def _known(self, spec: SandboxSpec) -> _Box | None:
        """What the same request made before; `AlreadyExists` where another one has its name."""
        for box in self._boxes.values():
            same = box.info.spec
            if same.environment != spec.environment:
                continue
            if spec.idempotency_key is not None and same.idempotency_key == spec.idempotency_key:
                return box
            if spec.name is not None and same.name == spec.name and box.lives:
                raise AlreadyExists(f"name: {spec.name!r} is taken; choose another, or end its sandbox", field="name")
        return None

    async def get(self, sandbox_id: str) -> SandboxInfo:
        self.note("get", sandbox_id)
        return self._box(sandbox_id).now()

    async def find(self, name: str, environment: str) -> SandboxInfo:
        self.note("find", name)
        self._admin.check(environment)
        found = [
            b.now() for b in self._boxes.values() if (b.info.spec.name, b.info.spec.environment) == (name, environment)
        ]
        if not found:
            raise no_sandbox_named(name, environment)
        return next((info for info in found if not info.ended), found[-1])

    async def list(self, listing: Listing) -> builtins.list[SandboxInfo]:
        self.note("list", listing)
        self._admin.check(listing.environment)
        infos = sorted((box.now() for box in self._boxes.values()), key=_age, reverse=True)
        return [info for info in infos if _fits(info, listing)][: listing.limit]

    async def set_tags(self, sandbox_id: str, tags: Mapping[str, str]) -> SandboxInfo:
        self.note("set_tags", sandbox_id)
        check_tags("tags", tags)
        box = self._box(sandbox_id)
        box.info = replace(box.now(), tags=dict(tags))
        self._admin.happen(box.info.spec.environment, sandbox_id, "tags", tags=dict(tags))
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
        return self._living(sandbox_id).agent

    def _living(self, sandbox_id: str) -> _Box:
        box = self._box(sandbox_id)
        info = box.now()
        if info.ended:
            raise SandboxEnded(
                f"sandbox {sandbox_id} has ended: {info.reason}", reason=info.reason, exit_code=info.returncode
            )
        return box

    async def grant(self, sandbox_id: str) -> Grant:
        self.note("grant", sandbox_id)
        self._living(sandbox_id)
        return Grant(sandbox_id, "127.0.0.1:1", "token", time.time() + TTL_S)

    async def channel(self, sandbox_id: str) -> ByteStream:
        self.note("channel", sandbox_id)
        self._living(sandbox_id)
        return connect(self.serve_channel, self._tasks)

    async def dial(self, sandbox_id: str, port: int) -> ByteStream:
        self.note("dial", port)
        self._living(sandbox_id)
        if port not in self.ports:
            raise Unavailable(
                f"nothing listens on port {port} in sandbox {sandbox_id}; start a server there", port=port
            )
        return connect(self.ports[port], self._tasks)

    async def expose(self, sandbox_id: str, port: int, protocol: str, public: bool) -> Tunnel:
        self.note("expose", port)
        box = self._living(sandbox_id)
        if box.info.state is State.PENDING:
            raise FailedPrecondition("the sandbox does not run yet; wait for it", state="pending")
        if protocol not in ("http", "tcp"):
            raise InvalidRequest(f"protocol: {protocol!r} is neither http nor tcp", field="protocol")
        url = f"http://127.0.0.1:1/t/{sandbox_id}/{port}/" if protocol == "http" else None
        address = "127.0.0.1:1" if protocol == "tcp" else None
        tunnel = Tunnel(sandbox_id, port, protocol, public, url, address)
        if box.tunnels.get(port) != tunnel:
            box.tunnels[port] = tunnel
            self._admin.happen(box.info.spec.environment, sandbox_id, "exposed", port=port)
        return tunnel if public else await self.tunnel_token(sandbox_id, port, 3600)

    async def unexpose(self, sandbox_id: str, port: int) -> None:
        self.note("unexpose", port)
        box = self._box(sandbox_id)
        if box.tunnels.pop(port, None) is not None:
            self._admin.happen(box.info.spec.environment, sandbox_id, "unexposed", port=port)

    async def tunnels(self, sandbox_id: str) -> Sequence[Tunnel]:
        self.note("tunnels", sandbox_id)
        box = self._box(sandbox_id)
        return [box.tunnels[port] for port in sorted(box.tunnels)]

    async def tunnel_token(self, sandbox_id: str, port: int, expires_in: float) -> Tunnel:
        self.note("tunnel_token", port)
        tunnel = self._box(sandbox_id).tunnels.get(port)
        if tunnel is None:
            raise TunnelNotFound(f"sandbox {sandbox_id} has no tunnel to port {port}; expose it first")
        expires = time.time() + expires_in
        return replace(tunnel, token=f"fake-{sandbox_id}-{port}-{expires:.0f}", expires_at=expires)

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
        box = self._boxes.get(sandbox_id)
        if box is None or not sees(box.info.spec.environment):
            raise no_sandbox(sandbox_id)
        return box

    def _usage(self, environment: str) -> Quota:
        specs = [b.info.spec for b in self._boxes.values() if b.lives and b.info.spec.environment == environment]
        return Quota(
            sandboxes=len(specs),
            cpu=sum(spec.resources.cpu_limit for spec in specs),
            memory=sum(spec.resources.memory_limit for spec in specs),
            creates_per_minute=0,
        )


class _Box:
    """One sandbox."""

    def __init__(self, cluster: FakeTransport, spec: SandboxSpec) -> None:
        self.agent = FakeAgent(cluster.note)
        self.main: FakeProcess | None = None
        self.tunnels: dict[int, Tunnel] = {}
        if spec.command:
            self.main = self.agent.start(Start(MAIN_PROCESS, spec.command))
        self._admin = cluster.admin
        self._runs_at = time.monotonic() + cluster.start_s
        self.info = SandboxInfo(new_sandbox_id(), State.PENDING, spec, time.time(), tags=dict(spec.tags))
        self._happen("created", token=caller.get().token)
        self.now()

    @property
    def lives(self) -> bool:
        return not self.now().ended

    def now(self) -> SandboxInfo:
        """Its info, its start and its end seen to where it is time for them."""
        if self.info.state is State.PENDING and time.monotonic() >= self._runs_at:
            self.info = replace(self.info, state=State.RUNNING, started_at=time.time(), node_id="node-fake")
            self._happen("running", node_id="node-fake")
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
        self._happen("terminated", reason=reason.value, returncode=code)

    def _happen(self, kind: str, **data: Any) -> None:
        self._admin.happen(self.info.spec.environment, self.info.id, kind, **data)


def _age(info: SandboxInfo) -> tuple[float, str]:
    return info.created_at, info.id


def _fits(info: SandboxInfo, listing: Listing) -> bool:
    wanted = info.state in listing.states if listing.states else listing.include_ended or not info.ended
    return (
        wanted
        and info.spec.environment == listing.environment
        and listing.tags.items() <= info.tags.items()
        and listing.region in (None, info.spec.region)
        and (listing.before is None or _age(info) < listing.before)
    )
