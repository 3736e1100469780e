"""The transport contract: how a client reaches a cluster.

Terms
    control   the verbs of `shoal.model.verbs`, answered by the cluster's controller (`ask`).
    data      run, exec, files: spoken with the sandbox's agent over one connection per sandbox and event loop. The
              transport opens, keeps and renews it (`agent`).

Rules for every transport
    - All methods are async and may be called from any event loop. Connections are kept per loop.
    - Errors are of `shoal.model.errors`. `Unavailable` means that nothing happened and that the same call may be made
      again; the transport has then already retried for as long as that makes sense. If an answer was lost, the field
      `sent` is True: the call may have been carried out, and the error is `retryable` only if a second call does no
      harm. A create does none, by its idempotency key.
    - For a sandbox that has ended, verbs answer with its end, and `agent` raises `SandboxEnded` with reason and exit
      code.
    - The caller is in `shoal.model.access.caller`. A sandbox of an environment that the caller may not see raises
      `SandboxNotFound`, as if it had never existed.

Siblings: `ray` (inside the cluster), `http` (through the API).
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from shoal.model import verbs
from shoal.model.access import MAIN_ENVIRONMENT
from shoal.model.errors import ShoalError
from shoal.model.info import Listing, SandboxInfo
from shoal.model.verbs import Verb

if TYPE_CHECKING:
    from shoal.model.settings import SandboxDefaults
    from shoal.model.spec import SandboxSpec
    from shoal.wire.agent import Agent
    from shoal.wire.bytestream import ByteStream

P = ParamSpec("P")
R = TypeVar("R")

_POLL_S = 30.0
"""How long one call of a `wait` may take; longer waits are made of several."""

_DEFAULTS_S = 5.0
"""For how long the cluster's defaults are taken to be what they were: they change as it is started anew. A replica
needs them for each create."""


class Transport(ABC):
    """Reaches one cluster. The module has the rules."""

    _defaults: tuple[float, SandboxDefaults] | None = None  # and when they were asked for

    @abstractmethod
    async def ask(self, verb: Verb[P, R], /, *args: P.args, **options: P.kwargs) -> R:
        """Asks the cluster for a verb with its arguments. Creates go through `create` and `create_many`, which undo
        what is given up."""

    @abstractmethod
    async def create(self, spec: SandboxSpec, *, deadline: float, wait: bool = True) -> SandboxInfo:
        """`verbs.create`. One that is cancelled ends what it was making, for which it may take some seconds."""

    @abstractmethod
    async def create_many(
        self, specs: Sequence[SandboxSpec], *, deadline: float, wait: bool = True
    ) -> Sequence[SandboxInfo | ShoalError]:
        """`verbs.create_many`, of any number of sandboxes; cancelled, as `create`."""

    @abstractmethod
    async def fork(
        self, sandbox_id: str, count: int, *, deadline: float, key: str, memory: bool = False
    ) -> Sequence[SandboxInfo]:
        """`verbs.fork`. One that is cancelled goes on: the same `key` gives the same sandboxes."""

    @abstractmethod
    async def agent(self, sandbox_id: str) -> Agent:
        """Its agent over this loop's connection; `SandboxEnded`, `SandboxNotFound`, `Unavailable`."""

    @abstractmethod
    async def channel(self, sandbox_id: str) -> ByteStream:
        """A separate connection to the agent, admitted, for those that pass the agent's frames on.

        Errors as `agent`.
        """

    @abstractmethod
    async def dial(self, sandbox_id: str, port: int) -> ByteStream:
        """A connection to a port in the sandbox; errors as `agent`, `Unavailable` if nothing listens."""

    @abstractmethod
    async def close(self) -> None:
        """Closes this loop's connections; sandboxes live on. May be called again."""

    @abstractmethod
    def forget(self, sandbox_id: str) -> None:
        """The sandbox has ended: closes this loop's connection to its agent."""

    async def default_environment(self) -> str:
        """The environment for callers that name none: `main`, or the only one that the token sees."""
        return MAIN_ENVIRONMENT

    async def defaults(self) -> SandboxDefaults:
        """`verbs.defaults`, without what only a newer cluster knows; asked at most every few seconds."""
        from shoal.model.settings import SandboxDefaults

        if self._defaults is None or time.monotonic() - self._defaults[0] > _DEFAULTS_S:
            told = await self.ask(verbs.defaults)
            known = {name: value for name, value in told.items() if name in SandboxDefaults.model_fields}
            self._defaults = (time.monotonic(), SandboxDefaults(**known))
        return self._defaults[1]

    async def list(self, listing: Listing) -> list[SandboxInfo]:
        """`verbs.list_sandboxes`, page after page until there are no more or `listing.limit`."""
        page = await self.ask(verbs.list_sandboxes, listing)
        found = [*page.sandboxes]
        while page.reached is not None and len(found) < listing.limit:
            rest = replace(listing, limit=listing.limit - len(found), before=page.reached)
            page = await self.ask(verbs.list_sandboxes, rest)
            found += page.sandboxes
        return found

    async def terminate(self, sandbox_id: str) -> SandboxInfo:
        """`verbs.terminate`, and forgets the sandbox."""
        info = await self.ask(verbs.terminate, sandbox_id)
        self.forget(sandbox_id)
        return info

    async def stop(self, sandbox_id: str) -> SandboxInfo:
        """`verbs.stop`, and forgets the sandbox until it is used again."""
        info = await self.ask(verbs.stop, sandbox_id)
        self.forget(sandbox_id)
        return info

    async def suspend(self, sandbox_id: str) -> SandboxInfo:
        """`verbs.suspend`, and forgets the sandbox until it is used again."""
        info = await self.ask(verbs.suspend, sandbox_id)
        self.forget(sandbox_id)
        return info

    async def wait(self, sandbox_id: str, timeout: float | None) -> SandboxInfo:
        """`verbs.wait` for as long as it takes, at most `timeout` seconds."""
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            left = _POLL_S if end is None else min(_POLL_S, max(0.0, end - time.monotonic()))
            info = await self.ask(verbs.wait, sandbox_id, left)
            if info.ended:
                self.forget(sandbox_id)
                return info
            if end is not None and time.monotonic() >= end:
                return info
