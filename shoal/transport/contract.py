"""The transport contract: how the client reaches a cluster.

Terms
    control   create, look up, list, tag, terminate, wait: answered by the cluster's controller.
    data      run, exec, files: spoken with the sandbox's agent over one connection per sandbox and event loop, which the transport
              opens, keeps and renews (`agent`).

Rules for every transport
    - All methods are async and may be called from any event loop; what is bound to a loop (connections) is kept per loop.
    - Errors are of `shoal.model.errors`. `Unavailable` means that nothing happened and the same call may be made again; a transport has
      by then retried for as long as that is sensible. Where an answer was lost its field `sent` is True: it may have happened, and is
      `retryable` only where it does no harm twice. A create is that by its idempotency key: again with the same one.
    - Of a sandbox that ended: control calls answer with its end, `agent` raises `SandboxEnded` with reason and exit code.
    - Who calls is in `shoal.model.access.caller`. A sandbox of an environment that the caller may not see is `SandboxNotFound`, as one that
      never was.

Siblings: `ray` (inside the cluster), `http` (through the API), `fake` (in memory, for tests of the client).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shoal.model.access import MAIN_ENVIRONMENT, Tunnel
from shoal.model.errors import ShoalError
from shoal.model.info import Listing, NodeInfo, Page, SandboxInfo
from shoal.model.settings import SandboxDefaults
from shoal.model.spec import SandboxSpec
from shoal.transport.admin import Admin
from shoal.wire.agent import Agent
from shoal.wire.bytestream import ByteStream


@dataclass(frozen=True, slots=True)
class LogChunk:
    """Saved output of a sandbox's own command, for after its end. `offset` is that of the first byte of `data`."""

    offset: int
    data: bytes
    end: bool


class Transport(ABC):
    """A way to a cluster. See the module for the rules."""

    @abstractmethod
    async def defaults(self) -> SandboxDefaults:
        """What the cluster gives a sandbox whose creator does not say."""

    async def default_environment(self) -> str:
        """The environment that is meant where a caller names none: `main`, or the only one that its token sees."""
        return MAIN_ENVIRONMENT

    @property
    @abstractmethod
    def admin(self) -> Admin:
        """Environments, tokens, audit log and events."""

    @abstractmethod
    async def create(self, spec: SandboxSpec, *, deadline: float, wait: bool = True) -> SandboxInfo:
        """Creates a sandbox and returns it running, within `deadline` seconds (`DeadlineExceeded`, and nothing is left).

        Not `wait`: returns it as soon as it is accepted and on record, `pending` or further; how it ends is then in its state.

        Raises `InvalidRequest` (with `field`), `ImageNotFound`, `AlreadyExists` (name), `CommandNotFound`, `QuotaExceeded`. One that
        is cancelled ends what it was making, for which it may take some seconds.
        """

    @abstractmethod
    async def create_many(
        self, specs: Sequence[SandboxSpec], *, deadline: float, wait: bool = True
    ) -> Sequence[SandboxInfo | ShoalError]:
        """Creates up to 1,000 sandboxes in one call; for each, in the same order, what `create` would have returned or raised."""

    @abstractmethod
    async def get(self, sandbox_id: str) -> SandboxInfo:
        """Its newest state, its end included; `SandboxNotFound` only if it never existed."""

    @abstractmethod
    async def find(self, name: str, environment: str) -> SandboxInfo:
        """The living sandbox of that name, else the last that had it; `SandboxNotFound`."""

    @abstractmethod
    async def set_tags(self, sandbox_id: str, tags: Mapping[str, str]) -> SandboxInfo:
        """Replaces its tags."""

    @abstractmethod
    async def terminate(self, sandbox_id: str) -> SandboxInfo:
        """Ends it and returns once its processes are gone. Of one that has ended: its end."""

    @abstractmethod
    async def wait(self, sandbox_id: str, timeout: float | None) -> SandboxInfo:
        """Its state once it has ended, or after `timeout` seconds, whichever is first."""

    @abstractmethod
    async def agent(self, sandbox_id: str) -> Agent:
        """Its agent over this loop's connection; `SandboxEnded`, `SandboxNotFound`, `Unavailable`."""

    @abstractmethod
    async def channel(self, sandbox_id: str) -> ByteStream:
        """A connection of its own to the agent, admitted, on which the agent's frames follow: for whoever passes them on. Errors as `agent`."""

    @abstractmethod
    async def dial(self, sandbox_id: str, port: int) -> ByteStream:
        """A connection to a port in the sandbox; errors as `agent`, `Unavailable` where nothing listens."""

    @abstractmethod
    async def expose(self, sandbox_id: str, port: int, *, protocol: str, public: bool) -> Tunnel:
        """Opens a tunnel to a port; `protocol` is `http` or `tcp`. Again with the same arguments: the same tunnel, with a fresh token where it
        is private; with others: it is changed. `SandboxEnded`, `FailedPrecondition` before it runs."""

    @abstractmethod
    async def unexpose(self, sandbox_id: str, port: int) -> None:
        """Closes a tunnel; of a port that has none: nothing happens."""

    @abstractmethod
    async def tunnels(self, sandbox_id: str) -> Sequence[Tunnel]:
        """Its tunnels by port, without tokens."""

    @abstractmethod
    async def tunnel_token(self, sandbox_id: str, port: int, expires_in: float) -> Tunnel:
        """The tunnel with a connect token that lasts `expires_in` seconds (7 days at most); `TunnelNotFound`."""

    @abstractmethod
    async def logs(self, sandbox_id: str, fd: int, offset: int) -> LogChunk:
        """Output of its own command as kept after its end (`fd` 1 or 2); `FailedPrecondition` while it lives: read from the agent."""

    @abstractmethod
    async def nodes(self) -> list[NodeInfo]:
        """The nodes of the cluster."""

    @abstractmethod
    async def close(self) -> None:
        """Closes this loop's connections; sandboxes live on. Idempotent."""

    async def page(self, listing: Listing) -> Page:
        """As `list`, but it need not look to the end: for whoever hands pages on."""
        return Page(await self.list(listing))

    @abstractmethod
    async def list(self, listing: Listing) -> list[SandboxInfo]:
        """Sandboxes, newest first."""
