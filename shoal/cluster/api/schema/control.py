"""The JSON of the control half: sandboxes, and what administers them.

What a client sends is strict: unknown members are refused, a number in quotes is no number. Meanings are checked by the cluster; here are
shapes, and bounds on every length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import Path, Query
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from shoal.client.arguments import build_spec
from shoal.cluster.api.schema.strict import Strict, at_most
from shoal.model import ids
from shoal.model.access import Quota, Scope
from shoal.model.settings import SandboxDefaults
from shoal.model.spec import SandboxSpec
from shoal.model.states import Reason, State
from shoal.model.validate import (
    KEY,
    MAX_ARGV_BYTES,
    MAX_ARGV_ITEM,
    MAX_ARGV_ITEMS,
    MAX_CORES,
    MAX_KEY,
    MAX_MEMORY,
    MAX_TAGS,
)
from shoal.model.visibility import no_sandbox

MAX_BATCH = 1000
MAX_SECONDS = 365 * 86400.0
_NAME = f"^{ids.NAME.pattern}$"


def _known_form(sandbox_id: str) -> str:
    """What cannot be a sandbox's id is no sandbox, rather than a wrong request."""
    if not ids.SANDBOX.fullmatch(sandbox_id):
        raise no_sandbox(ascii(sandbox_id[:64])[1:-1])
    return sandbox_id


SandboxId = Annotated[
    str,
    AfterValidator(_known_form),
    Path(description="The sandbox's id.", examples=["sb-2fq7c3j5kx6n4a7b"]),
]
"""A path parameter `sandbox_id`; `SandboxNotFound` for what cannot be one."""

EnvironmentName = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=_NAME)]
EnvironmentQuery = Annotated[
    EnvironmentName | None, Query(description="The environment; by default the token's, or `main` for a token of all.")
]
Text = Annotated[str, StringConstraints(min_length=1, max_length=256)]
TagValue = Annotated[str, StringConstraints(max_length=256)]
TagsOf = Annotated[dict[Text, TagValue], Field(max_length=MAX_TAGS), at_most(MAX_TAGS)]
Key = Annotated[str, StringConstraints(min_length=1, max_length=MAX_KEY, pattern=f"^{KEY}$")]
"""An idempotency key."""
Deadline = Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)]
Amount = Annotated[float, Field(gt=0, le=MAX_CORES)]
Mebibytes = Annotated[int, Field(gt=0, le=MAX_MEMORY)]


class _Sent(Strict):
    """What a client sends."""

    model_config = ConfigDict(allow_inf_nan=False, use_attribute_docstrings=True)


class _Told(BaseModel):
    """What an answer holds. For the document only: answers are written from what the cluster says, without a detour."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class Problem(_Told):
    """An error, as RFC 9457 has it. Errors have further members of their own: `field`, `reason`, `exit_code`, `state`, `retry_after`,
    `sent`, `idempotency_key`."""

    model_config = ConfigDict(
        use_attribute_docstrings=True,
        json_schema_extra={
            "examples": [
                {
                    "type": "urn:shoal:error:sandbox_not_found",
                    "title": "There is no such thing",
                    "status": 404,
                    "detail": "there is no sandbox sb-2fq7c3j5kx6n4a7b; `shoal ls --all` lists those that were",
                    "code": "sandbox_not_found",
                    "retryable": False,
                    "request_id": "9d1f0c2e7b5a4d3c8e6f",
                }
            ]
        },
    )

    type: str
    """`urn:shoal:error:<code>`"""
    title: str
    status: int
    detail: str
    """What is wrong, and what to do about it"""
    code: str
    """Stable, for programs"""
    retryable: bool
    """Whether the very same call may succeed later"""
    request_id: str
    """As in `X-Request-Id`: found again in the logs"""
    field: str | None = None
    """The member or parameter at fault, dotted"""


class SandboxCreate(_Sent):
    """A sandbox as asked for. All is optional: what is left out is the cluster's default (`GET /v1/defaults`)."""

    image: Annotated[str, Field(min_length=1, max_length=512, examples=["python:3.12"])] | None = None
    """A reference such as `shoal/base` or `python:3.12`"""
    command: Annotated[
        list[Annotated[str, Field(max_length=MAX_ARGV_ITEM)]],
        Field(max_length=MAX_ARGV_ITEMS, fail_fast=True, examples=[["sleep", "60"]]),
    ] = []  # noqa: RUF012  # pydantic copies it, and so below
    """Its own command; it ends with it. None: it lives until it is ended"""
    name: Annotated[str, Field(min_length=1, max_length=64, pattern=_NAME, examples=["web"])] | None = None
    """Unique among the living of its environment"""
    tags: Annotated[TagsOf, Field(examples=[{"run": "42"}])] = {}  # noqa: RUF012
    env: Annotated[
        dict[str, Annotated[str, Field(max_length=MAX_ARGV_BYTES)]],
        Field(max_length=MAX_ARGV_ITEMS),
        at_most(MAX_ARGV_ITEMS),
    ] = {}  # noqa: RUF012
    """Environment variables. They are not told again"""
    workdir: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    """An absolute path; made where it is missing"""
    user: Annotated[str, Field(max_length=256)] = ""
    """A name, `uid` or `uid:gid`"""
    cpu: Amount | Annotated[list[Amount], Field(min_length=2, max_length=2, fail_fast=True)] | None = None
    """Cores: one number, of which it is sure, or `[request, limit]`"""
    memory: Mebibytes | Annotated[list[Mebibytes], Field(min_length=2, max_length=2, fail_fast=True)] | None = None
    """MiB: one number, of which it is sure, or `[request, limit]`"""
    disk: Annotated[int, Field(gt=0, le=MAX_MEMORY * 64)] | None = None
    """MiB that it may write to its root filesystem"""
    gpu: Annotated[int, Field(ge=0, le=64)] = 0
    """Whole devices"""
    pids: Annotated[int, Field(gt=1, le=1 << 22)] | None = None
    """Processes and threads at once"""
    timeout: Annotated[float, Field(gt=0, le=MAX_SECONDS)] | None = None
    """Seconds from its start to its end"""
    idle_timeout: Annotated[float, Field(gt=0, le=MAX_SECONDS)] | None = None
    """Seconds without anything to do after which it ends; none: no such limit"""
    pty: bool = False
    """Whether its own command has a terminal"""
    network: Literal["default", "none"] = "default"
    region: Text | None = None
    runtime: Literal["runc", "runsc"] = "runc"
    environment: EnvironmentName | None = None
    """By default the token's, or `main` for a token of all"""

    def spec(self, defaults: SandboxDefaults, environment: str, key: str | None) -> SandboxSpec:
        """The spec that this asks for, in `environment`."""
        values = {name: getattr(self, name) for name in _SPEC_FIELDS}
        return build_spec(tuple(self.command), defaults, environment=environment, idempotency_key=key, **values)


_SPEC_FIELDS = tuple(name for name in SandboxCreate.model_fields if name not in ("command", "environment"))


class BatchItem(SandboxCreate):
    """One sandbox of a batch."""

    idempotency_key: Key | None = None
    """The same key gives the same sandbox"""


class Batch(_Sent):
    """Up to 1,000 sandboxes at once, each with an outcome of its own."""

    sandboxes: Annotated[list[BatchItem], Field(min_length=1, max_length=MAX_BATCH, fail_fast=True)]
    wait: bool = True
    """Whether to answer only once they run"""
    deadline: Deadline = 300.0
    """Seconds for that"""


class Tags(_Sent):
    """Tags, in the place of those before."""

    tags: Annotated[TagsOf, Field(examples=[{"run": "42", "owner": "ann"}])]


class Sandbox(_Told):
    """A sandbox, living or ended. Times in unix seconds."""

    id: str
    state: State
    image: str
    command: list[str]
    name: str | None
    tags: dict[str, str]
    workdir: str | None
    user: str
    cpu: list[float]
    """Cores: request and limit"""
    memory: list[int]
    """MiB: request and limit"""
    disk: int
    gpu: int
    pids: int
    timeout: float
    idle_timeout: float | None
    pty: bool
    network: str
    region: str | None
    runtime: str
    environment: str
    created_at: float
    started_at: float | None
    ended_at: float | None
    reason: Reason | None
    """Why it ended"""
    returncode: int | None
    """Of its own command; negative: the signal that ended it"""
    message: str | None
    """More about its end"""
    node_id: str | None


class SandboxPage(_Told):
    """A page of sandboxes, newest first."""

    sandboxes: Sequence[Sandbox]
    next_cursor: str | None
    """What to pass as `cursor` for the next page; null: this is the last one"""


class BatchResult(_Told):
    """One outcome: a sandbox, or the problem."""

    sandbox: Sandbox | None = None
    error: Problem | None = None


class BatchResults(_Told):
    """The outcomes, in the order of the requests."""

    results: Sequence[BatchResult]


class QuotaModel(_Sent):
    """The most that an environment's living sandboxes may have together; null: no bound."""

    sandboxes: Annotated[int, Field(ge=0, le=1 << 31)] | None = None
    cpu: Annotated[float, Field(ge=0, le=1e9)] | None = None
    """Cores, by their limits"""
    memory: Annotated[int, Field(ge=0, le=1 << 53)] | None = None
    """MiB, by their limits"""
    creates_per_minute: Annotated[int, Field(ge=0, le=1 << 31)] | None = None

    def quota(self) -> Quota:
        return Quota(self.sandboxes, self.cpu, self.memory, self.creates_per_minute)


class EnvironmentCreate(_Sent):
    """A new environment."""

    name: Annotated[str, Field(min_length=1, max_length=64, pattern=_NAME, examples=["team-a"])]
    quota: QuotaModel = QuotaModel()


class EnvironmentModel(_Told):
    """An environment, what it may use and what it uses."""

    name: str
    quota: QuotaModel
    created_at: float
    usage: QuotaModel


class Environments(_Told):
    """The environments that the token may see, by name."""

    environments: Sequence[EnvironmentModel]


class TokenCreate(_Sent):
    """A new token."""

    name: Annotated[str, Field(min_length=1, max_length=256, examples=["ann's laptop"])]
    """For people: what it is for"""
    environment: Annotated[str, Field(min_length=1, max_length=64, pattern=rf"^(\*|{ids.NAME.pattern})$")] | None = None
    """What it is good for; `*`: all of them. By default the one of the token that asks, or `main`"""
    scope: Annotated[Scope, Field(strict=False)] = Scope.RUN
    expires_in: Annotated[float, Field(gt=0, le=100 * MAX_SECONDS)] | None = None
    """Seconds for which it is good; none: until it is revoked"""


class Token(_Told):
    """A token without its secret. Times in unix seconds."""

    id: str
    name: str
    environment: str
    scope: Scope
    created_at: float
    expires_at: float | None
    revoked_at: float | None
    last_used_at: float | None
    created_by: str | None


class NewToken(Token):
    """A new token."""

    token: str
    """What to send as bearer token. Told this once"""


class Tokens(_Told):
    """The tokens that the token may see, newest first."""

    tokens: Sequence[Token]


class Entry(_Told):
    """What somebody did, or was refused."""

    id: int
    at: float
    action: str
    outcome: str
    """`ok`, or an error's code"""
    token: str
    environment: str
    target: str | None
    request_id: str | None
    address: str | None


class Audit(_Told):
    """Entries of the audit log, newest first."""

    entries: Sequence[Entry]


class EventModel(_Told):
    """One change in a sandbox's life."""

    id: int
    at: float
    environment: str
    sandbox_id: str
    kind: str
    data: dict[str, Any]


class Events(_Told):
    """Events, oldest first."""

    events: Sequence[EventModel]


class Node(_Told):
    """One node: what it has, what runs on it. Memory in MiB, CPU in cores."""

    id: str
    address: str
    hostname: str
    region: str | None
    engine: str
    runtimes: Sequence[str]
    alive: bool
    sandboxes: int
    warm: int
    cpu_total: float
    cpu_free: float
    memory_total: int
    memory_free: int


class Nodes(_Told):
    """The nodes of the cluster."""

    nodes: Sequence[Node]


class Health(_Told):
    """This replica answers."""

    status: Literal["ok"]
    version: str
