"""The JSON of pools."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import Path
from pydantic import Field, create_model

from shoal.cluster.api.schema.control import SandboxCreate, Sent, Told
from shoal.model.field_types import Name
from shoal.model.ids import NAME
from shoal.model.options import options_of, spec_of
from shoal.model.pools import GIVEN_WHEN_TAKEN, PoolInfo
from shoal.model.sandbox_json import HIDDEN
from shoal.model.spec import SandboxSpec
from shoal.model.spec_model import ASKED, TOLD

PoolName = Annotated[
    str, Path(description="The pool's name.", max_length=64, pattern=f"^{NAME.pattern}$", examples=["python"])
]

_Size = Annotated[int, Field(ge=0, le=1 << 31)]

_OF_ONE = {name: ASKED[name] for name in sorted(GIVEN_WHEN_TAKEN - {"idempotency_key"} | {"command"})}


class PoolCreate(Sent):
    """A pool to make."""

    name: Annotated[Name, Field(examples=["python"])]
    """Unique in its environment"""
    spec: SandboxCreate = SandboxCreate()
    """As in a create, without what is of one sandbox only: `command`, `env`, `name`, …"""
    min_ready: _Size = 1
    """So many are ready even if none is taken"""
    max_ready: _Size = 1
    """The most that are ready, however many are taken"""
    replace: bool = False
    """Put it in the place of another of that name; what is ready of that ends"""


class PoolSize(Sent):
    """How many a pool keeps ready."""

    environment: Name | None = None
    """The pool's; by default the token's, or `main` for a token of all"""
    min_ready: _Size
    max_ready: _Size


class PoolUse(Told):
    """What there is of a pool now."""

    ready: int
    """To be taken"""
    making: int
    """Being made"""
    in_use: int
    """Living sandboxes of its spec"""
    taken: int
    """Creates that found one ready, since the controller started"""
    missed: int
    """Creates that did not"""
    problem: str | None
    """Why there are fewer ready than there should be"""


_TOLD_SPEC: dict[str, Any] = {name: told for name, told in TOLD.items() if name not in HIDDEN}
_SpecOfAPool = create_model("_SpecOfAPool", __base__=Told, **_TOLD_SPEC)


class Pool(Told):
    """A pool. `created_at` in unix seconds."""

    name: str
    environment: str
    min_ready: int
    max_ready: int
    created_at: float
    spec: _SpecOfAPool
    use: PoolUse


class Pools(Told):
    """The pools that were asked for, by environment and name."""

    pools: Sequence[Pool]


class Taking(create_model("_Taking", __base__=Sent, **_OF_ONE)):  # type: ignore[misc]  # its fields are the spec's
    """What is of one sandbox only. What is left out is the pool's."""

    def spec(self, pool: PoolInfo, key: str) -> SandboxSpec:
        """The spec of the sandbox to take."""
        given = {name: getattr(self, name) for name in self.model_fields_set}
        return spec_of({**options_of(pool.spec), **given, "idempotency_key": key})
