"""Connecting to a cluster."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from shoal.client import cluster_address
from shoal.client.admin import Administration
from shoal.client.contexts import Context
from shoal.client.dual_method import at_exit, dual_function, dual_method
from shoal.model import cluster_file
from shoal.model.errors import InvalidRequest
from shoal.model.info import NodeInfo
from shoal.transport.rollback import Undoing

if TYPE_CHECKING:
    from shoal.model.settings import SandboxDefaults
    from shoal.transport.contract import Transport


class Client(Administration, Context):
    """A connection to a cluster, for any number of threads and event loops. `shoal.connect` makes one.

    As a context manager it is closed at the end; sandboxes live on.
    """

    def __init__(self, transport: Transport) -> None:
        super().__init__(transport)
        self.undoing = Undoing()
        self._defaults: SandboxDefaults | None = None

    @dual_method
    async def nodes(self) -> Sequence[NodeInfo]:
        """The nodes of the cluster: what each has, and what runs on it. Over HTTP: for tokens of all environments."""
        return await self.transport.nodes()

    @dual_method
    async def close(self) -> None:
        """Closes the connections to sandboxes; the sandboxes live on. Again is harmless; a later call opens them again."""
        await self.undoing.settle()
        await self.transport.close()
        if _default.client is self:
            _default.client = None

    _leave = close

    @dual_method
    async def defaults(self) -> SandboxDefaults:
        """What the cluster gives a sandbox whose creator does not say; asked for once."""
        if self._defaults is None:
            self._defaults = await self.transport.defaults()
        return self._defaults


@dual_function
async def connect(address: str | None = None, *, token: str | None = None, ca: str | None = None) -> Client:
    """Connects to a cluster; `Sandbox.create` and its like use the last one connected to.

    `address`: an API's URL (`https://host`, `http://host:port`), or Ray's (`host:port`). Without: the URL in `SHOAL_URL`, the Ray cluster in
    `RAY_ADDRESS` or that this process is in, the one that `shoal up` started on this machine, the default of the user's config file; whichever
    is first. `token`: an API token; without, `SHOAL_TOKEN`, or what the config file has for that URL. `ca`: a file of certificates to trust in
    place of the system's; without, `SHOAL_CA`, or the config file's.

    Raises `FailedPrecondition` where there is none (it names all the ways) or what answers is no API of Shoal's, `Unavailable` where nobody
    answers, `Unauthenticated`, `InvalidRequest`.
    """
    client = Client(await _open(address, token, ca))
    _default.client = client
    return client


async def _open(address: str | None, token: str | None, ca: str | None) -> Transport:
    target = (
        cluster_address.from_environment(token, ca) if address is None else cluster_address.named(address, token, ca)
    )
    cluster = None if isinstance(target, cluster_address.Api) else cluster_file.read(_state_dir())
    if target is None:
        target = (
            cluster_address.RayCluster(None) if cluster or _inside_ray() else cluster_address.from_config(token, ca)
        )
    if target is None:
        raise cluster_address.nothing()
    if isinstance(target, cluster_address.Api):
        from shoal.transport.http import HttpTransport

        return await HttpTransport.open(target.url, target.token, target.ca)
    if token is not None or ca is not None:
        name = "ca" if token is None else "token"
        raise InvalidRequest(
            f"{name}: the cluster that is meant is reached through Ray, which takes none; pass the URL of its API, too",
            field=name,
        )
    return await _open_ray(target.address, cluster)


async def _open_ray(address: str | None, cluster: cluster_file.ClusterFile | None) -> Transport:
    if cluster is not None and address in (None, cluster.ray_address):
        address = cluster.ray_address
        for name, value in cluster_file.ray_environment(cluster).items():
            if name != "RAY_ADDRESS":  # which would decide for whatever else this process starts
                os.environ.setdefault(name, value)
    # Only now: Ray reads its environment when it is imported.
    from shoal.transport.ray import RayTransport

    return await RayTransport.open(address)


def _inside_ray() -> bool:
    """Whether this process is in a Ray cluster already: it has then imported Ray itself."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


async def current() -> Client:
    """The client that calls without one use: the last that was connected, else a new one."""
    return _default.client or await connect.aio()


def use(client: Client | None) -> None:
    """Makes `client` the one that calls without one use."""
    _default.client = client


class _Default:
    client: Client | None = None


_default = _Default()


async def _close_default() -> None:
    if _default.client is not None:
        await _default.client.close.aio()


at_exit(_close_default)


def _state_dir() -> Path:
    # As the settings have it, without the validation library that they need.
    named = os.environ.get("SHOAL_STATE_DIR")
    if named:
        return Path(named)
    from shoal.model.settings import default_state_dir

    return default_state_dir()
