"""The JSON of the control half: sandboxes, and what administers them.

What a client sends is strict: unknown members are refused, a number in quotes is no number. Meanings are checked by the cluster; here are
shapes, and bounds on every length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import Path, Query
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model

from shoal.model import field_types, ids
from shoal.model.access import Quota, Scope
from shoal.model.field_types import IdempotencyKey, Name
from shoal.model.options import build_spec
from shoal.model.sandbox_json import HIDDEN
from shoal.model.settings import SandboxDefaults
from shoal.model.spec import SandboxSpec
from shoal.model.spec_model import ASKED, TOLD
from shoal.model.states import Reason, State
from shoal.model.strict import Strict
from shoal.model.visibility import no_sandbox

MAX_BATCH = 1000
MAX_SECONDS = 365 * 86400.0


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

EnvironmentQuery = Annotated[
    Name | None, Query(description="The environment; by default the token's, or `main` for a token of all.")
]
Deadline = Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)]


class _Sent(Strict):
    """What a client sends."""

    model_config = ConfigDict(use_attribute_docstrings=True)


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


_KEYLESS = {name: asked for name, asked in ASKED.items() if name != "idempotency_key"}


class SandboxCreate(create_model("_SandboxCreate", __base__=_Sent, **_KEYLESS)):  # type: ignore[misc]  # its fields are the spec's
    """A sandbox as asked for. All is optional: what is left out is the cluster's default (`GET /v1/defaults`)."""

    def spec(self, defaults: SandboxDefaults, environment: str, key: str | None) -> SandboxSpec:
        """The spec that this asks for, in `environment`."""
        given = {name: getattr(self, name) for name in _KEYLESS}
        return build_spec({**given, "environment": environment, "idempotency_key": key}, defaults)


class BatchItem(SandboxCreate):
    """One sandbox of a batch."""

    idempotency_key: IdempotencyKey | None = None
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

    tags: Annotated[field_types.Tags, Field(examples=[{"run": "42", "owner": "ann"}])]


_TOLD = {name: told for name, told in TOLD.items() if name not in HIDDEN}


class Sandbox(create_model("_Sandbox", __base__=_Told, **_TOLD)):  # type: ignore[misc]  # its fields are the spec's
    """A sandbox, living or ended. Times in unix seconds."""

    id: str
    state: State
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

    name: Annotated[Name, Field(examples=["team-a"])]
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
