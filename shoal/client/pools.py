"""Pools: sandboxes that are kept ready."""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Mapping, Sequence
from typing import TypedDict, Unpack

from shoal.client.arguments import environment_of
from shoal.client.cluster import Client, current
from shoal.client.contexts import Context
from shoal.client.create import spec_for
from shoal.client.create_options import SandboxOptions, spell_out_options
from shoal.client.dual_method import dual_function, dual_method
from shoal.client.html import Listed
from shoal.client.sandbox import CREATE_DEADLINE_S, Sandbox
from shoal.client.secrets import Secret
from shoal.model import verbs
from shoal.model.errors import DeadlineExceeded, InvalidRequest
from shoal.model.options import options_of
from shoal.model.pools import GIVEN_WHEN_TAKEN, NOT_OF_A_POOL, PoolInfo, check_pool_spec, check_size
from shoal.model.spec import SandboxSpec
from shoal.model.validate import check_name, check_number

_LOOK_S = 0.1


class TakeOptions(TypedDict, total=False):
    """What each sandbox taken from a pool may have of its own. What is not given, or None, is the pool's."""

    env: Mapping[str, str] | None
    idempotency_key: str | None
    idle_timeout: float | None
    name: str | None
    owner_lease: float | None
    pty: bool | None
    secrets: Sequence[Secret] | None
    tags: Mapping[str, str] | None
    timeout: float | None
    user: str | None
    workdir: str | os.PathLike[str] | None


_COLUMNS = "name environment spec.image _info.min_ready _info.max_ready"


class Pool(Context):
    """A pool of an environment: sandboxes of one spec that are kept ready. `Pool.create` makes one, which stays until
    it is deleted.

    `Sandbox.create` takes one by itself where it asks for the same image, resources, network, runtime and host name.
    Every method blocks; its `.aio` form is awaited instead. Leaving its `with` block deletes the pool.
    """

    def __init__(self, client: Client, info: PoolInfo) -> None:
        # For `create`, `get` and `list`.
        self._client = client
        self._info = info

    # Making and finding

    @dual_function
    @staticmethod
    @spell_out_options
    async def create(
        pool_name: str,
        *,
        min_ready: int = 1,
        max_ready: int | None = None,
        replace: bool = False,
        client: Client | None = None,
        **options: Unpack[SandboxOptions],
    ) -> Pool:
        """Creates a pool, which keeps sandboxes of these options ready, and returns at once; `wait_ready` waits.

        At least `min_ready` are ready and, as more are taken, up to `max_ready` (None: as many as `min_ready`). The
        same call again gives the same pool; `replace`: in place of another of that name. `command`, `env`, `name` and
        others that are of one sandbox only are given to `take`. What is ready holds the CPU and memory that it
        requests, ends for callers that find no room, and takes nothing of the environment's quota from sandboxes.

        Raises `InvalidRequest` (with the `field` at fault), `AlreadyExists` (name; or `spec`: another pool keeps the
        same), `QuotaExceeded`.
        """
        check_name("name", pool_name)
        most = min_ready if max_ready is None else max_ready
        check_size(min_ready, most)
        client = client or await current()
        spec = await spec_for(client, options)
        check_pool_spec(spec)
        from shoal.model.spec_model import check_spec  # only now, for it loads pydantic

        check_spec(spec, None)
        return Pool(client, await client.transport.ask(verbs.create_pool, pool_name, spec, min_ready, most, replace))

    @dual_function
    @staticmethod
    async def get(name: str, *, environment: str | None = None, client: Client | None = None) -> Pool:
        """The pool of that name; `PoolNotFound`."""
        check_name("name", name)
        client = client or await current()
        return Pool(client, await client.transport.ask(verbs.pool, name, await environment_of(client, environment)))

    @dual_function
    @staticmethod
    async def list(*, environment: str | None = None, client: Client | None = None) -> Sequence[Pool]:
        """The pools of an environment, or (None) all that you may see, by environment and name."""
        if environment is not None:
            check_name("environment", environment)
        client = client or await current()
        found = await client.transport.ask(verbs.pools, environment)
        return Listed((Pool(client, info) for info in found), _COLUMNS)

    # What it is

    @property
    def name(self) -> str:
        """Its name in its environment."""
        return self._info.name

    @property
    def environment(self) -> str:
        """The environment that it belongs to."""
        return self._info.environment

    @property
    def spec(self) -> SandboxSpec:
        """What its sandboxes are."""
        return self._info.spec

    @dual_method
    async def info(self) -> PoolInfo:
        """Its size and what there is of it now; `PoolNotFound` once it is deleted."""
        self._info = await self._client.transport.ask(verbs.pool, self.name, self.environment)
        return self._info

    @dual_method
    async def wait_ready(self, count: int | None = None, *, timeout: float = CREATE_DEADLINE_S) -> None:
        """Waits until so many are ready; None: as many as it keeps at least. `DeadlineExceeded`, with what keeps it
        from that, after `timeout` seconds."""
        check_number("timeout", timeout, 0, math.inf, "seconds")
        end = time.monotonic() + timeout
        while True:
            info = await self.info.aio()
            wanted = info.min_ready if count is None else count
            if info.use.ready >= wanted:
                return
            if time.monotonic() >= end:
                why = "" if info.use.problem is None else f": {info.use.problem}"
                raise DeadlineExceeded(f"{info.use.ready} of {wanted} are ready after {timeout:g} s{why}")
            await asyncio.sleep(_LOOK_S)

    # What it does

    @dual_method
    async def take(self, *command: str, deadline: float = CREATE_DEADLINE_S, **options: Unpack[TakeOptions]) -> Sandbox:
        """A sandbox of this pool, running: at once if one is ready, else as soon as one is made.

        `command`: its own command, at whose end it ends. `env`, `secrets`, `tags`, `name`, `timeout`, `idle_timeout`,
        `owner_lease`, `workdir`, `user` and `pty` are as in `Sandbox.create`, whose errors it raises.
        """
        if fixed := options.keys() - GIVEN_WHEN_TAKEN:
            name = min(fixed)
            raise InvalidRequest(
                f"{name}: it is fixed when a pool's container starts; make a pool of its own, or use Sandbox.create",
                field=name,
            )
        own = {name: value for name, value in options_of(self.spec).items() if name not in NOT_OF_A_POOL}
        given = {name: value for name, value in options.items() if value is not None}
        return await Sandbox.create.aio(*command, deadline=deadline, client=self._client, **{**own, **given})

    @dual_method
    async def resize(self, min_ready: int, max_ready: int | None = None) -> PoolInfo:
        """Changes how many are kept ready (`max_ready` None: as many as `min_ready`); those beyond it end."""
        most = min_ready if max_ready is None else max_ready
        check_size(min_ready, most)
        self._info = await self._client.transport.ask(verbs.resize_pool, self.name, self.environment, min_ready, most)
        return self._info

    @dual_method
    async def delete(self) -> None:
        """Deletes it: what is ready ends, sandboxes that were taken from it live on. `PoolNotFound`."""
        await self._client.transport.ask(verbs.delete_pool, self.name, self.environment)

    _leave = delete

    def __repr__(self) -> str:
        info = self._info
        return f"<Pool {info.id}, {info.use.ready} ready of {info.min_ready} to {info.max_ready}>"
