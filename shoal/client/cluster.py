"""Connecting to a cluster."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from shoal.client import cluster_address
from shoal.client.admin import Administration
from shoal.client.contexts import Context
from shoal.client.dual_method import at_exit, dual_function, dual_method
from shoal.client.html import Listed
from shoal.client.images import ImageCalls
from shoal.client.leases import OwnerLeases
from shoal.model import cluster_file, verbs
from shoal.model.errors import FailedPrecondition, InvalidRequest
from shoal.model.info import NodeInfo
from shoal.model.validate import check_name
from shoal.transport.rollback import Rollback

if TYPE_CHECKING:
    from shoal.model.overview import Overview
    from shoal.model.rollouts import RolloutInfo
    from shoal.model.settings import SandboxDefaults
    from shoal.model.usage import SandboxLoad, UsageRow
    from shoal.transport.contract import Transport

log = logging.getLogger("shoal.client")

_LEFT_OUT = "RAY_DEDUP_LOGS_SKIP_REGEX"


class Client(Administration, ImageCalls, Context):
    """A connection to a cluster, for any number of threads and event loops; `shoal.connect` makes one.

    Leaving its `with` block closes it; sandboxes go on running.
    """

    def __init__(self, transport: Transport) -> None:
        super().__init__(transport)
        self.rollback = Rollback()
        self.leases = OwnerLeases(transport)
        self._defaults: SandboxDefaults | None = None

    @dual_method
    async def nodes(self) -> Sequence[NodeInfo]:
        """The cluster's nodes with their resources and load. Over HTTP this needs a token for all environments."""
        columns = "hostname region alive sandboxes cpu_total cpu_free memory_total memory_free engine"
        return Listed(await self.transport.ask(verbs.nodes), columns)

    @dual_method
    async def overview(self, *, environment: str | None = None, since: float | None = None) -> Overview:
        """The cluster at a glance: how things are now, and how they were in the last hour.

        `environment`: only its sandboxes; None: all that you may see. `since`: of the series, only points after that
        time (unix seconds). `EnvironmentNotFound`.
        """
        return await self.transport.ask(verbs.overview, environment, since)

    @dual_method
    async def loads(self, *, environment: str | None = None) -> Sequence[SandboxLoad]:
        """What sandboxes that run used when their nodes looked last, some seconds ago. `EnvironmentNotFound`."""
        return Listed(
            await self.transport.ask(verbs.loads, environment), "sandbox_id cpu memory disk network_in network_out"
        )

    @dual_method
    async def usage(
        self,
        *,
        by: str = "environment",
        since: float | None = None,
        until: float | None = None,
        environment: str | None = None,
    ) -> Sequence[UsageRow]:
        """What sandboxes used from `since` to `until` (unix seconds, to the hour; None: ever, now), summed.

        `by`: `environment`, `day`, `hour` or `tag:KEY`. `environment`: only its sandboxes; None: all that you may see.
        Half a minute late. Raises `InvalidRequest`, `EnvironmentNotFound`.
        """
        columns = "key sandboxes seconds cpu_seconds memory_seconds network_in network_out"
        return Listed(await self.transport.ask(verbs.usage, by, since, until, environment), columns)

    @dual_method
    async def rollouts(self, *, environment: str | None = None) -> Sequence[RolloutInfo]:
        """The maps that run and the last ones that ended, newest first; None: of all environments that you may see. Of
        those that take longer than a second."""
        if environment is not None:
            check_name("environment", environment)
        columns = "id name environment state done total failed mean started_at"
        return Listed(await self.transport.ask(verbs.rollouts, environment), columns)

    @dual_method
    async def rollout(self, rollout_id: str) -> RolloutInfo:
        """One, with its rewards over items; `RolloutNotFound`."""
        return await self.transport.ask(verbs.rollout, rollout_id)

    @dual_method
    async def close(self) -> None:
        """Closes the connections; sandboxes go on running, those with an `owner_lease` until that is over. May be
        called again; a later call reconnects."""
        await self.leases.close()
        await self.rollback.settle()
        await self.transport.close()
        if _default.client is self:
            _default.client = None

    _leave = close

    @dual_method
    async def defaults(self) -> SandboxDefaults:
        """The cluster's defaults for a new sandbox; fetched once."""
        if self._defaults is None:
            self._defaults = await self.transport.defaults()
        return self._defaults


@dual_function
async def connect(address: str | None = None, *, token: str | None = None, ca: str | None = None) -> Client:
    """Connects to a cluster. `Sandbox.create` and the like use the client that connected last.

    `address`: the URL of an API (`https://host`, `http://host:port`), or a Ray address (`host:port`). Without one, the
    first of these: `SHOAL_URL`; `RAY_ADDRESS`; the Ray cluster that this process is in; the cluster that `shoal up`
    started on this machine; the default in the user's config file. `token`: an API token; default `SHOAL_TOKEN`, else
    the config file's for that URL. `ca`: a certificate file to trust instead of the system's; default `SHOAL_CA`, else
    the config file's.

    Raises `FailedPrecondition` if no cluster is found or the server is not a Shoal API, `Unavailable` if nothing
    answers, `Unauthenticated`, `InvalidRequest`.
    """
    client = Client(await _open(address, token, ca))
    _default.client = client
    return client


async def _open(address: str | None, token: str | None, ca: str | None) -> Transport:
    target = (
        cluster_address.from_environment(token, ca) if address is None else cluster_address.named(address, token, ca)
    )
    cluster = None if isinstance(target, cluster_address.Api) else cluster_file.read(state_dir())
    if target is None:
        target = (
            cluster_address.RayCluster(None) if cluster or _inside_ray() else cluster_address.from_config(token, ca)
        )
    if target is None:
        raise cluster_address.nothing(is_joined=_is_node())
    if isinstance(target, cluster_address.Api):
        from shoal.transport.http import HttpTransport

        return await HttpTransport.open(target.url, target.token, target.ca)
    if token is not None or ca is not None:
        name = "ca" if token is None else "token"
        raise InvalidRequest(
            f"{name}: this cluster is reached through Ray, which takes none; pass the URL of its API as well",
            field=name,
        )
    if address is not None and _inside_ray():
        await _check_same(address)
    return await _open_ray(target.address, cluster)


async def _check_same(address: str) -> None:
    """Ray has one connection in a process, and passes over the address of another cluster."""
    import ray  # which is loaded: this process is connected by it

    here = str(ray.get_runtime_context().gcs_address)
    host, _, port = address.rpartition(":")
    if address == here or not host or not port.isdecimal():
        return  # one of Ray's words, such as `auto`, has no port
    hosts = set()
    with suppress(OSError, UnicodeError):
        found = await asyncio.get_running_loop().getaddrinfo(host.strip("[]"), None)
        hosts = {str(each[4][0]) for each in found}
    at, _, port_here = here.rpartition(":")
    if port == port_here and (at.strip("[]") in hosts or any(ip_address(each).is_loopback for each in hosts)):
        return
    raise FailedPrecondition(
        f"address: this process is connected to Ray at {here} already, and Ray has one connection in a process; use "
        f"the HTTP API of the cluster at {address}, or another process",
        state="connected",
        field="address",
    )


async def _open_ray(address: str | None, cluster: cluster_file.ClusterFile | None) -> Transport:
    if cluster is not None and address in (None, cluster.ray_address):
        wanted = cluster_file.ray_environment(cluster)
        del wanted["RAY_ADDRESS"]  # other libraries in this process would follow it
        late = [name for name in cluster_file.READ_ON_IMPORT if name in wanted and name not in os.environ]
        if cluster_file.LOOPBACK_VARIABLE in {*wanted} - {*late} and not _takes_loopback():
            late.append(cluster_file.LOOPBACK_VARIABLE)  # set since: Ray would dial another address, for minutes
        if late and "ray" in sys.modules and not _inside_ray():
            return await _without_ray(cluster, ", ".join(f"{name}={wanted[name]}" for name in late))
        address = cluster.ray_address
        for name, value in wanted.items():
            os.environ.setdefault(name, value)
    # Imported only now: Ray reads its environment on import.
    with _without_its_warnings():
        from shoal.transport.ray import RayTransport

    return await RayTransport.open(address)


@contextmanager
def _without_its_warnings() -> Iterator[None]:
    """What Ray's machines warn of, it prints to the standard output of every program that it connects, in between what
    the program writes itself. It leaves out what matches this variable, which it reads on import."""
    if _LEFT_OUT in os.environ:
        yield
        return
    os.environ[_LEFT_OUT] = "worker processes have been started on node|has been marked dead"
    try:
        yield
    finally:
        del os.environ[_LEFT_OUT]  # programs that this one starts may wish to read them


async def _without_ray(cluster: cluster_file.ClusterFile, variables: str) -> Transport:
    """The way to this machine's cluster where Ray was imported without the variables that it reads on import."""
    remedy = f"import ray after `shoal.connect()`, or set {variables} before"
    if not cluster.api_url:
        raise FailedPrecondition(f"ray was imported before it could join this machine's cluster; {remedy}", state="ray")
    log.warning("ray was imported before it could join this cluster, whose slower HTTP API is used instead; %s", remedy)
    from shoal.transport.http import HttpTransport

    api = cluster_address.api(cluster.api_url, None, None)
    return await HttpTransport.open(api.url, api.token, api.ca)


def _inside_ray() -> bool:
    """Whether this process is connected to a Ray cluster."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def _takes_loopback() -> bool:
    """Whether Ray, where it is imported, was so with the variable that has it dial 127.0.0.1 itself. Inside a cluster
    it tells that cluster's address, which is as good: it does not connect again."""
    ray = sys.modules.get("ray")
    return ray is None or bool(ray.is_initialized()) or ray.util.get_node_ip_address() in ("127.0.0.1", "::1")


async def current() -> Client:
    """The default client: the one that connected last, or else a new one."""
    return _default.client or await connect.aio()


def use(client: Client | None) -> None:
    """Makes `client` the default client."""
    _default.client = client


class _Default:
    client: Client | None = None


_default = _Default()


async def _close_default() -> None:
    if _default.client is not None:
        await _default.client.close.aio()


at_exit(_close_default)


def _is_node() -> bool:
    """Whether this machine has joined another one's cluster, as far as this account may see."""
    return os.path.exists(state_dir() / cluster_file.JOINED_FILE)


def state_dir() -> Path:
    """Where this machine's cluster keeps its state."""
    # As in the settings, without importing the validation library.
    named = os.environ.get("SHOAL_STATE_DIR")
    if named:
        return Path(named)
    from shoal.model.settings import default_state_dir

    return default_state_dir()
