"""One sandbox's life in its slot: starts or adopts its container, watches for what ends it, and ends it.

Its command, its lifetime, its idleness, the loss of its container or a request may end it. The first of them counts.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

from shoal.actors.handles import call
from shoal.actors.messages import ContainerStarted, End, SandboxStarted
from shoal.actors.sandbox.node_calls import (
    AGENT_WAIT_S,
    LONGEST_RETRY_S,
    RETRY_S,
    call_node,
    connect,
    loss_of,
    pauses,
)
from shoal.actors.sandbox.prepared import PreparedContainer, PreparedLost
from shoal.actors.sandbox.stopping import end_command, save_output
from shoal.model import tasks
from shoal.model.errors import NotFound, ProcessNotFound, ShoalError
from shoal.model.ids import MAIN_PROCESS
from shoal.model.secrets import SecretValues
from shoal.model.spec import SandboxSpec
from shoal.model.states import Reason
from shoal.wire.agent import Agent, Start, Terminal

log = logging.getLogger("shoal.sandbox")

_OOM_REPORT_S = 0.25
_RECONNECT_S = 1.0
_WATCH_ATTEMPTS = 5
_RESTART = "restart_container"


class SandboxLifecycle:
    """One sandbox in one slot."""

    def __init__(self, sandbox_id: str, spec: SandboxSpec, node: Any, grace_s: float) -> None:
        self.sandbox_id = sandbox_id
        self._spec = spec
        self._node = node
        self._grace_s = grace_s
        self.prepared: PreparedContainer | None = None
        """What its slot has prepared for it."""
        self.secrets: SecretValues | None = None
        """What its processes get, until they have it."""
        self._started: ContainerStarted | None = None
        self._node_knows = True  # whose the container is
        self._agent: Agent | None = None
        self._sandbox_started: SandboxStarted | None = None
        self._end: asyncio.Future[End] = asyncio.get_running_loop().create_future()
        self._cause: asyncio.Future[tuple[Reason, int | None, str]] = asyncio.get_running_loop().create_future()
        self._tasks: list[asyncio.Task[None]] = []
        self._main_exit: int | None = None
        self._is_removed = False

    # -- start ----------------------------------------------------------------------------------

    async def start(self) -> SandboxStarted:
        """Starts a container, or takes the one that was prepared, tells its agent what the spec says, and starts the
        sandbox's command. If it raises, nothing is left, or the node sweeps what is."""
        return await self._start(("start_container", self.sandbox_id, self._spec), "remove_sandbox")

    async def restart(self) -> SandboxStarted:
        """Starts the container of a persistent sandbox that was stopped, its agent and its command; one that was
        suspended has its command. If it raises, the container is stopped as before; `NotFound` if it is not on this
        node."""
        return await self._start((_RESTART, self.sandbox_id), "undo_restart")

    async def _start(self, call: tuple[Any, ...], undo: str) -> SandboxStarted:
        took, began = list[tuple[str, float]](), time.monotonic()
        try:
            agent = None if self.prepared is None else await self._take(self.prepared)
            if agent is None:
                self._started = await call_node(self._node, *call)
                there = sum(seconds for _, seconds in self._started.took)
                took += [("node", time.monotonic() - began - there), *self._started.took]
                began = time.monotonic()
                agent = await self._connect_configured()
                took.append(("agent", time.monotonic() - began))
            else:
                took.append(("take", time.monotonic() - began))
            self._agent = agent
            spec, began = self._spec, time.monotonic()
            goes_on = call[0] == _RESTART and self._started is not None and self._started.resumed
            if spec.command and not goes_on:
                start = Start(id=MAIN_PROCESS, argv=spec.command)
                await agent.exec(start, pty=Terminal() if spec.pty else None, stdin=True, tail=True)
                took.append(("command", time.monotonic() - began))
                assert self._started is not None
                if self._started.ships:  # nobody waits for it: what is written meanwhile is not lost
                    follow = partial(call_node, self._node, "follow_output", self.sandbox_id)
                    tasks.supervise(follow, "follow output", attempts=_WATCH_ATTEMPTS)
        except BaseException:
            self._close_connection()
            with suppress(ShoalError):  # the first error says more than a failed clean-up
                await asyncio.shield(call_node(self._node, undo, self.sandbox_id))
            raise
        finally:
            self.secrets = None
        assert self._started is not None
        steps = tuple((name, round(seconds, 6)) for name, seconds in took)
        return self._watch(time.time(), self._started.warm, steps)

    async def _take(self, prepared: PreparedContainer) -> Agent | None:
        """The agent of the prepared container; None if that was lost."""
        try:
            taken = await prepared.take(
                self.sandbox_id, self._configure, self._spec.volumes, node_later=self._may_tell_node_later
            )
        except PreparedLost as error:
            log.warning("%s: its prepared container is lost: %s", self.sandbox_id, error)
            return None
        self._started, self._node_knows = taken.started, taken.told
        return taken.agent or await self._connect_configured()

    @property
    def _may_tell_node_later(self) -> bool:
        """Whether its creator need not wait until the node has written down whose the container is: nothing of it needs
        the node before. Its slot holds the container, and tells the node for as long as it takes."""
        return not (self._spec.command or self._spec.volumes)

    async def _tell_node(self) -> None:
        assert self._started is not None
        with suppress(NotFound):  # it is lost: the node tells how to whoever watches it
            await call_node(self._node, "assign_container", self._started.key, self.sandbox_id)

    async def _connect_configured(self) -> Agent:
        """A new connection to its agent, which is told what the spec says."""
        assert self._started is not None
        agent = await connect(self._started, AGENT_WAIT_S)
        try:
            await self._configure(agent)
        except BaseException:
            agent.connection.close()
            raise
        return agent

    async def _configure(self, agent: Agent) -> None:
        spec, secrets = self._spec, self.secrets
        if spec.is_as_prepared:
            return
        if secrets is None:
            await agent.configure(env=spec.env, workdir=spec.workdir, user=spec.user)
        else:
            env = {**secrets.env, **spec.env}
            await agent.configure(env=env, workdir=spec.workdir, user=spec.user, secrets=secrets.files)

    async def hold(self, started_at: float) -> SandboxStarted:
        """Takes the prepared container as it is: the sandbox has it, and may have used it. If it is lost, so is the
        sandbox."""
        assert self.prepared is not None
        self._started, self._node_knows = self.prepared.give(), False
        return self._watch(started_at, warm=True)

    async def adopt(self, started_at: float, key: str | None = None) -> SandboxStarted:
        """Adopts a container that another slot started; `NotFound` if it is not on this node. `key`: the container's,
        of which that slot may not have told the node whose it is."""
        try:
            self._started = await call_node(self._node, "container_of", self.sandbox_id)
        except NotFound:
            if key is None:
                raise
            self._started = await call_node(self._node, "assign_container", key, self.sandbox_id)
        return self._watch(started_at, warm=False)

    def _watch(self, started_at: float, warm: bool, took: tuple[tuple[str, float], ...] = ()) -> SandboxStarted:
        assert self._started is not None
        held = self._started
        self._sandbox_started = SandboxStarted(
            held.key, held.node_id, held.relay, started_at, warm, held.machine, took, held.resumed
        )
        lifetime = self._spec.timeout
        self._tasks = [
            self._supervise(self._watch_container, "watch container"),
            self._supervise(self._watch_agent, "watch agent"),
            tasks.supervise(self._finish, "end sandbox"),
        ]
        if not self._node_knows:
            self._tasks.append(self._supervise(self._tell_node, "tell node"))
        if lifetime is not None:
            watch = partial(self._watch_deadline, started_at + lifetime)
            self._tasks.append(self._supervise(watch, "watch deadline"))
        return self._sandbox_started

    def _supervise(self, watch: Callable[[], Awaitable[None]], name: str) -> asyncio.Task[None]:
        """Runs a watch. A sandbox that cannot be watched ends: or else nobody would notice its end."""
        return tasks.supervise(watch, name, attempts=_WATCH_ATTEMPTS, failed=self._unwatched)

    def _unwatched(self, error: Exception) -> None:
        self.give_up(Reason.EVICTED, None, f"a defect of Shoal's: it could not be watched any more ({error!r})")

    # -- what may end it ----------------------------------------------------------------------------

    def give_up(self, reason: Reason, returncode: int | None, message: str) -> None:
        """Ends the sandbox for `reason`, unless it is already ending for another."""
        if not self._cause.done():
            self._cause.set_result((reason, returncode, message))

    async def ended(self) -> End:
        """Waits for its end, by which its container is gone."""
        return await asyncio.shield(self._end)

    @property
    def end(self) -> End | None:
        return self._end.result() if self._end.done() else None

    @property
    def key(self) -> str | None:
        """Its container, from the moment in which it takes one that was prepared: its node may remove what no slot
        knows of."""
        if self._started is not None:
            return self._started.key
        return None if self.prepared is None else self.prepared.key

    @property
    def started(self) -> SandboxStarted | None:
        return self._sandbox_started

    async def _watch_container(self) -> None:
        assert self._started is not None
        prepared = self.prepared
        if prepared is not None and prepared.key == self._started.key:
            loss = await prepared.loss()  # it has been watched since it was made
        else:
            loss = await loss_of(self._node, self._started.key)
        self._is_removed = loss.reason is Reason.TERMINATED
        self.give_up(loss.reason, loss.exit_code, loss.message)

    async def _watch_deadline(self, deadline: float) -> None:
        await asyncio.sleep(max(0.0, deadline - time.time()))
        self.give_up(Reason.TIMEOUT, None, f"its lifetime of {self._spec.timeout:g} s was over; raise timeout=")

    async def _watch_agent(self) -> None:
        """Asks the agent for the command's end and for idleness, over a connection that is renewed when the relay
        restarts."""
        spec = self._spec
        if not spec.command and spec.idle_timeout is None:
            self._close_connection()  # nothing to ask: saves a connection per idle sandbox
            return
        while True:
            try:
                agent = self._agent = self._agent or await self._reconnect()
                async with asyncio.TaskGroup() as group:
                    if spec.command:
                        group.create_task(self._watch_command(agent))
                    if spec.idle_timeout is not None:
                        group.create_task(self._watch_idleness(agent, spec.idle_timeout))
                return
            except* (ShoalError, OSError):
                self._close_connection()
                await asyncio.sleep(RETRY_S)
            except* Exception:
                self._close_connection()
                raise

    async def _watch_command(self, agent: Agent) -> None:
        try:
            exit_ = await agent.wait(MAIN_PROCESS)
        except ProcessNotFound:
            self.give_up(Reason.COMPLETED, None, "its command ended; how is not known")
            return
        self._main_exit = exit_.exit
        if exit_.exit == -9:
            # Perhaps the kernel killed it for its memory. The node is about to report that, which says more.
            await asyncio.sleep(_OOM_REPORT_S)
        self.give_up(Reason.COMPLETED, exit_.exit, f"its command ended with {exit_.exit}")

    async def _watch_idleness(self, agent: Agent, after_s: float) -> None:
        await agent.idle(after_s)
        self.give_up(Reason.IDLE_TIMEOUT, None, f"nobody used it for {after_s:g} s; raise idle_timeout=")

    # -- the end ------------------------------------------------------------------------------------

    async def _finish(self) -> None:
        reason, returncode, message = await asyncio.shield(self._cause)
        if self._spec.command and reason is not Reason.EVICTED:  # then the agent is gone
            await self._end_command()
        if returncode is None:
            returncode = self._main_exit
        self._close_connection()
        keep = self._spec.persistent and reason is not Reason.TERMINATED
        if not self._is_removed:
            await self._let_go("stop_container" if keep else "remove_container")
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()
        self._end.set_result(End(reason, returncode, message, time.time(), keep))

    async def _end_command(self) -> None:
        """Best effort: the agent is in the hands of the sandbox, and its container is removed whatever it answers."""
        try:
            agent = self._agent or await self._reconnect()
            if self._main_exit is None:
                self._main_exit = await end_command(agent, self._grace_s)
            await save_output(agent, self._node, self.sandbox_id)
        except (ShoalError, OSError):
            pass
        except Exception as error:  # noqa: BLE001 - a defect of ours must not leave a sandbox half ended
            log.warning("%s: ending its command: %r", self.sandbox_id, error)

    async def _let_go(self, method: str) -> None:
        """Removes or stops its container. Retries until that succeeds: a half-ended sandbox would hold its slot and its
        quota for ever."""
        assert self._started is not None
        for pause in pauses():
            try:
                await call(self._node, method, self._started.key)
                return
            except NotFound:  # it is gone
                return
            except ShoalError as error:
                if pause == LONGEST_RETRY_S:
                    log.warning("%s: %s: %s", self.sandbox_id, method, error)
                await asyncio.sleep(pause)

    # -- calls to node and agent --------------------------------------------------------------------

    async def _reconnect(self) -> Agent:
        self._started = await call_node(self._node, "container_of", self.sandbox_id)
        return await connect(self._started, _RECONNECT_S)

    def _close_connection(self) -> None:
        if self._agent is not None:
            self._agent.connection.close()
            self._agent = None
