"""The verbs that are about sandboxes: see `shoal.model.verbs` for what each does and raises."""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from shoal.actors.controller.admission import Admission
from shoal.actors.controller.endings import ON_REQUEST, ended_error, paused_error, stopped_error
from shoal.actors.controller.history import History
from shoal.actors.controller.leases import OwnerLeases
from shoal.actors.controller.metrics import Metrics
from shoal.actors.controller.nodes import Nodes
from shoal.actors.controller.phase import RESTING, SETTLED
from shoal.actors.controller.profile import profile_of
from shoal.actors.controller.record import SandboxRecord, secrets_of
from shoal.actors.controller.record_writer import RecordWriter, audited
from shoal.actors.controller.registry import Registry
from shoal.actors.controller.secrets import Secrets
from shoal.actors.controller.supervisor import SandboxSupervisor
from shoal.actors.handles import call
from shoal.model import grants, verbs
from shoal.model.access import INSIDE, Caller
from shoal.model.errors import DeadlineExceeded, FailedPrecondition, Internal, InvalidRequest, ShoalError, Unavailable
from shoal.model.grants import Grant
from shoal.model.info import Listing, LogChunk, Page, SandboxInfo
from shoal.model.profile import CreateProfile
from shoal.model.spec import SandboxSpec
from shoal.model.spec_model import check_spec
from shoal.model.states import State
from shoal.model.validate import check_tags
from shoal.model.verbs import Made
from shoal.model.visibility import check_sees_environment, sees

MAX_MANY = 1000
_LONGEST_WAIT_S = 30.0
_LAST_WORD_S = 10.0
_LOG_S = 10.0


@dataclass(slots=True)
class Sandboxes:
    """All sandboxes, as far as the caller may see them. `secret`: the cluster's."""

    secret: bytes
    registry: Registry
    history: History
    admission: Admission
    supervisor: SandboxSupervisor
    nodes: Nodes
    writer: RecordWriter
    metrics: Metrics
    leases: OwnerLeases
    secrets: Secrets
    call: Callable[..., Awaitable[Any]] = call
    _looks: weakref.WeakValueDictionary[tuple[str, str | None], asyncio.Lock] = field(
        default_factory=weakref.WeakValueDictionary
    )

    async def create(self, spec: SandboxSpec, deadline_s: float, wait: bool, caller: Caller) -> Made:
        """Creates a sandbox. Returns it running, with a grant for its agent, or (not `wait`) as soon as it is on
        record, without a grant."""
        try:
            spec = self.admission.images.with_command(spec)
            if secrets_of(spec):
                check_sees_environment(caller, spec.environment)
                spec = await self.secrets.admitted(spec)
            record, new, left_s = await self._admitted(spec, deadline_s, caller)
            if wait:
                # Its creator waits a little longer, to be told that the deadline ended it, once that is written.
                await self.supervisor.launched(record, left_s + _LAST_WORD_S if new else left_s)
            else:
                await self.supervisor.accepted(record)
        except ShoalError as error:
            self.metrics.refused(error.code)
            raise
        return record.info, None if record.ended or record.started is None else self.grant_for(record)

    async def create_hidden(self, spec: SandboxSpec, deadline_s: float) -> SandboxInfo:
        """Creates a sandbox of the cluster's own, see `SandboxRecord`, and returns it running."""
        record, _ = self.admission.admit(spec, deadline_s, INSIDE, hidden=True)
        self.supervisor.begin(record, [])
        await self.supervisor.launched(record, deadline_s + _LAST_WORD_S)
        return record.info

    async def create_many(
        self, specs: Sequence[SandboxSpec], deadline_s: float, wait: bool, caller: Caller
    ) -> list[Made | ShoalError]:
        """Creates many. Returns for each, in the same order, what `create` would have returned or raised."""
        if not 1 <= len(specs) <= MAX_MANY:
            raise InvalidRequest(f"sandboxes: {len(specs)} in one call; give 1 to {MAX_MANY}", field="sandboxes")
        creates = (self.create(spec, deadline_s, wait, caller) for spec in specs)
        outcomes = await asyncio.gather(*creates, return_exceptions=True)
        return [_outcome(outcome) for outcome in outcomes]

    async def _admitted(
        self, spec: SandboxSpec, deadline_s: float, caller: Caller
    ) -> tuple[SandboxRecord, bool, float]:
        """The sandbox, whether it is new, and the seconds left of the deadline."""
        self.admission.check_call(spec, deadline_s, caller)
        if not self.history.may_have_forgotten(spec):
            return *self._begin(spec, deadline_s, caller), deadline_s
        check_spec(spec, None)  # no store call for an invalid spec
        end = time.monotonic() + deadline_s
        try:
            async with asyncio.timeout(deadline_s), self._look(spec.environment, spec.idempotency_key):
                forgotten = await self.history.forgotten(spec)
                left_s = max(0.0, end - time.monotonic())
                return *self._begin(spec, left_s, caller, forgotten), left_s
        except TimeoutError:
            raise DeadlineExceeded(
                "the store did not tell in time whether that was created before; "
                "nothing was created. Allow more with deadline=",
                field="deadline",
            ) from None

    def _begin(
        self, spec: SandboxSpec, left_s: float, caller: Caller, forgotten: SandboxRecord | None = None
    ) -> tuple[SandboxRecord, bool]:
        record, new = self.admission.admit(spec, left_s, caller, forgotten)
        if new:
            entry = audited(verbs.create, caller, target=record.id, environment=spec.environment)
            self.supervisor.begin(record, [entry])
        return record, new

    def _look(self, environment: str, key: str | None) -> asyncio.Lock:
        """Held while the store is asked for a key, until the outcome is in the registry, where others then find it."""
        return self._looks.setdefault((environment, key), asyncio.Lock())

    async def give_up(self, keys: Sequence[tuple[str, str]], caller: Caller) -> list[tuple[str, str]]:
        """Ends the sandboxes of creates whose caller has gone. `keys`: (environment, idempotency key). Returns the
        known keys. A sandbox that another create has asked for too lives on, as that one may have been answered. Keys
        of environments that the caller may not see count as unknown."""
        visible = [key for key in keys if sees(caller, key[0])]
        for key in visible:
            async with self._look(*key):  # a create that is asking the store is not in the registry yet
                pass
        known = [(key, record) for key in visible if (record := self.registry.keyed(*key)) is not None]
        mine = [record for _, record in known if record.asked <= 1 and record.created_by == caller.token]
        await asyncio.gather(*(self._give_up(record, caller) for record in mine))
        return [key for key, _ in known]

    async def _give_up(self, record: SandboxRecord, caller: Caller) -> None:
        try:
            await self.supervisor.accepted(record)
        except ShoalError:
            return  # its create failed: nothing was created
        await self.supervisor.terminate(record, "its creator gave up", caller)

    async def get(self, sandbox_id: str, caller: Caller) -> SandboxInfo:
        """The sandbox, living or ended; `SandboxNotFound`."""
        return self._told(await self.history.get(sandbox_id, caller))

    async def profile(self, sandbox_id: str, caller: Caller) -> CreateProfile:
        """Where the time of its create went."""
        return profile_of(await self.history.get(sandbox_id, caller))

    async def find(self, name: str, environment: str, caller: Caller) -> SandboxInfo:
        """The living sandbox of that name, else the last that had the name; `SandboxNotFound`."""
        return self._told(await self.history.find(name, environment, caller))

    def _told(self, record: SandboxRecord) -> SandboxInfo:
        """With what its node tells of its mounts."""
        still = () if record.started is None or record.ended else self.nodes.still(record.started.node_id)
        if not still:
            return record.info
        paths = (each.path for each in record.launch_spec.volumes if (each.volume or each.access) in still)
        return replace(record.info, mounts_still=tuple(paths))

    async def select(self, listing: Listing, caller: Caller) -> Page:
        """Sandboxes in the listing's order; `EnvironmentNotFound`."""
        self.admission.accounts.environment(listing.environment, caller)
        found, reached = await self.history.select(listing, caller)
        return Page([record.info for record in found], reached)

    async def set_tags(self, sandbox_id: str, tags: Mapping[str, str], caller: Caller) -> SandboxInfo:
        """Replaces its tags; `SandboxEnded`."""
        check_tags("tags", tags)
        record = await self.history.get(sandbox_id, caller)
        if record.ended:
            raise ended_error(record)
        entry = audited(verbs.set_tags, caller, target=record.id, environment=record.spec.environment)
        told = ("tags", {"tags": dict(tags), "token": caller.token})
        await self.writer.put(record, told, audit=[entry], change=lambda: {"tags": dict(tags)})
        return record.info

    async def terminate(self, sandbox_id: str, caller: Caller) -> SandboxInfo:
        """Ends it and returns once nothing of it runs any more; its container goes soon after. Idempotent."""
        record = await self.history.get(sandbox_id, caller)
        await self.supervisor.terminate(record, ON_REQUEST, caller)
        return record.info

    def renew(self, sandbox_ids: Sequence[str], caller: Caller) -> list[str]:
        """Renews owner leases; see `shoal.model.verbs`."""
        if not 1 <= len(sandbox_ids) <= MAX_MANY:
            raise InvalidRequest(f"sandbox_ids: {len(sandbox_ids)}; give 1 to {MAX_MANY}", field="sandbox_ids")
        records = (self.registry.get(sandbox_id) for sandbox_id in sandbox_ids)
        return [
            record.id
            for record in records
            if record is not None and sees(caller, record.spec.environment) and self.leases.renew(record)
        ]

    async def wait(self, sandbox_id: str, timeout_s: float, caller: Caller) -> SandboxInfo:
        """The sandbox once it has ended, or after `timeout_s` (at most 30)."""
        record = await self.history.get(sandbox_id, caller)
        try:
            async with asyncio.timeout(min(timeout_s, _LONGEST_WAIT_S)):
                await record.life.reached(SETTLED)
        except TimeoutError:
            pass
        return record.info

    async def grant(self, sandbox_id: str, caller: Caller) -> Grant:
        """The address of its agent, and a token; `SandboxEnded`, `SandboxNotFound`, `FailedPrecondition` before it
        runs."""
        record = await self.history.get(sandbox_id, caller)
        if record.ended:
            raise ended_error(record)
        return self.grant_for(record)

    async def logs(self, sandbox_id: str, fd: int, offset: int, caller: Caller) -> LogChunk:
        """Output of its own command, as kept on its node after its end or stop. `Unavailable` while that does not
        answer; if it is not part of the cluster any more, or the sandbox never ran, there is no output."""
        record = await self.history.get(sandbox_id, caller)
        if not record.ended and record.state is not State.STOPPED:
            raise FailedPrecondition(f"sandbox {sandbox_id} lives: its agent has its output", state=record.state.value)
        node_id = self._node_of_logs(record)
        if node_id is None or not self.nodes.known(node_id):
            return LogChunk(offset, b"", True)
        node = self.nodes.handle(node_id)
        try:
            chunk = await self.call(node, "read_log", sandbox_id, fd, offset, timeout_s=_LOG_S)
        except DeadlineExceeded:
            raise Unavailable(f"the node of {sandbox_id}, which keeps its output, does not answer; ask again") from None
        return LogChunk(*chunk)

    def _node_of_logs(self, record: SandboxRecord) -> str | None:
        if record.home is not None:
            return self.nodes.of_machine(record.home.machine)
        return None if record.started is None else record.started.node_id

    def orphans(self, sandbox_ids: Sequence[str], node_id: str) -> list[str]:
        """Those of `sandbox_ids` that do not live on the node that has a container of them. The node removes them."""
        machine = self.nodes.machine_of(node_id)
        lives_here = {r.id for r in self.registry.live() if _may_live_on(r, node_id, machine)}
        return [sandbox_id for sandbox_id in sandbox_ids if sandbox_id not in lives_here]

    def grant_for(self, record: SandboxRecord) -> Grant:
        """Access to its agent; `FailedPrecondition` where it does not run."""
        if record.state is State.STOPPED:
            raise stopped_error(record)
        if record.state is State.PAUSED:
            raise paused_error(record)
        if record.started is None:
            raise FailedPrecondition(f"sandbox {record.id} does not run yet", state=record.state.value)
        expires = time.time() + grants.TTL_S
        scopes = (grants.SCOPE_FILES,) if record.hidden else grants.CLIENT_SCOPES
        token = grants.sign(self.secret, record.id, record.started.key, scopes, expires)
        address = self.nodes.relay(record.started.node_id, record.started.relay)
        return Grant(record.id, address, token, expires, record.spec.environment)


def _may_live_on(record: SandboxRecord, node_id: str, machine: str | None) -> bool:
    """Whether the container of a living sandbox that a node has may be its own. `machine`: the node's, once known."""
    if record.home is not None:
        return machine is None or record.home.machine == machine
    if record.life.phase in RESTING:
        return False  # it was moved: its files are stored, and no machine has a container of it
    return record.started is None or record.started.node_id == node_id


def _outcome(outcome: Made | BaseException) -> Made | ShoalError:
    if isinstance(outcome, ShoalError) or not isinstance(outcome, BaseException):
        return outcome
    if isinstance(outcome, Exception):
        return Internal(f"create failed in the controller: {outcome!r}")
    raise outcome
