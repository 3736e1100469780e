"""The JSON of sandboxes, as requests and answers hold it.

What a client sends is checked strictly: unknown members are refused, and a number in quotes is no number. Here are
shapes, and a bound on every length; the cluster checks meanings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import Path, Query
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    create_model,
)

from shoal.model import field_types, ids
from shoal.model.errors import InvalidRequest
from shoal.model.field_types import IdempotencyKey, Name
from shoal.model.info import MemoryState
from shoal.model.invalid import invalid_request
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
    """`SandboxNotFound` for a text that cannot be a sandbox's id."""
    if not ids.SANDBOX.fullmatch(sandbox_id):
        raise no_sandbox(ascii(sandbox_id[:64])[1:-1])
    return sandbox_id


SandboxId = Annotated[
    str,
    AfterValidator(_known_form),
    Path(description="The sandbox's id.", examples=["sb-2fq7c3j5kx6n4a7b"]),
]
"""A path parameter `sandbox_id`."""

EnvironmentQuery = Annotated[
    Name | None, Query(description="The environment; by default the token's, or `main` for a token of all.")
]
Deadline = Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)]


class Sent(Strict):
    """What a client sends."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class Told(BaseModel):
    """What an answer holds. For the OpenAPI document only: answers are written from the cluster's own objects."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class Problem(Told):
    """An error in the form of RFC 9457. Some have further members: `field`, `reason`, `exit_code`, `state`,
    `retry_after`, `sent`, `idempotency_key`."""

    model_config = ConfigDict(
        use_attribute_docstrings=True,
        json_schema_extra={
            "examples": [
                {
                    "type": "urn:shoal:error:sandbox_not_found",
                    "title": "Not Found",
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
    """Whether the same call may succeed later"""
    request_id: str
    """As in `X-Request-Id`: found again in the logs"""
    field: str | None = None
    """The member or parameter at fault, dotted"""


_KEYLESS = {name: asked for name, asked in ASKED.items() if name != "idempotency_key"}


class SandboxCreate(create_model("_SandboxCreate", __base__=Sent, **_KEYLESS)):  # type: ignore[misc]  # its fields are the spec's
    """A sandbox to create. Everything is optional: what is left out is the cluster's default (`GET /v1/defaults`)."""

    def spec(self, defaults: SandboxDefaults, environment: str, key: str | None) -> SandboxSpec:
        """The spec that this asks for, in `environment`."""
        given = {name: getattr(self, name) for name in _KEYLESS}
        return build_spec({**given, "environment": environment, "idempotency_key": key}, defaults)


class BatchItem(SandboxCreate):
    """One sandbox of a batch."""

    idempotency_key: IdempotencyKey | None = None
    """The same key gives the same sandbox"""


def _or_what_is_wrong(data: Any, check: ValidatorFunctionWrapHandler) -> BatchItem | InvalidRequest:
    try:
        item: BatchItem = check(data)
    except InvalidRequest as error:
        return error
    except ValidationError as error:
        return invalid_request(error.errors(include_url=False, include_context=False))
    return item


class Batch(Sent):
    """Up to 1,000 sandboxes to create, each with its own outcome, a wrong item too."""

    sandboxes: Annotated[
        list[Annotated[BatchItem, WrapValidator(_or_what_is_wrong)]],
        Field(min_length=1, max_length=MAX_BATCH, fail_fast=True),
    ]
    wait: bool = True
    """Whether to answer only once they run"""
    deadline: Deadline = 300.0
    """Seconds for that"""


class Renewal(Sent):
    """Up to 1,000 sandboxes whose owner leases are renewed."""

    sandbox_ids: Annotated[
        list[Annotated[str, Field(max_length=64)]], Field(min_length=1, max_length=MAX_BATCH, fail_fast=True)
    ]


class Renewed(Told):
    """Those that were renewed."""

    renewed: Sequence[str]
    """Not those that have ended, have no lease, or that the token may not see"""


class SandboxStart(Sent):
    """How long a start may take."""

    deadline: Deadline = 300.0
    """Seconds, after which it is stopped"""


class Tags(Sent):
    """The new tags, which replace all others."""

    tags: Annotated[field_types.Tags, Field(examples=[{"run": "42", "owner": "ann"}])]


_TOLD = {name: told for name, told in TOLD.items() if name not in HIDDEN}


class Sandbox(create_model("_Sandbox", __base__=Told, **_TOLD)):  # type: ignore[misc]  # its fields are the spec's
    """A sandbox, living or ended. Times in unix seconds."""

    id: str
    state: State
    created_at: float
    started_at: float | None
    ended_at: float | None
    stopped_at: float | None
    """Since when a persistent one is stopped; null: it is not"""
    waiting: str | None
    """Why it waits, while it does: for room, or for a node that is being launched"""
    mounted_images: dict[str, str]
    """The image that was mounted at each path while it ran"""
    mounts_still: Sequence[str]
    """The paths of its volumes and buckets that do not answer, seconds ago; a listing does not tell them"""
    memory_state: MemoryState | None
    """`saved`: it is suspended; `restored`: it went on from memory when it started; null: neither"""
    not_kept: Sequence[str]
    """What memory does not bring back, where it matters"""
    reason: Reason | None
    """Why it ended or stopped"""
    returncode: int | None
    """Null while it runs; then of its own command (negative: the signal that ended it), else by its reason: 124 after
    its `timeout` or `idle_timeout`, 125 if it could not start, 137 where it was killed"""
    message: str | None
    """More about its end or stop"""
    node_id: str | None


class SandboxPage(Told):
    """A page of sandboxes, newest first."""

    sandboxes: Sequence[Sandbox]
    next_cursor: str | None
    """What to pass as `cursor` for the next page; null: this is the last one"""


class BatchResult(Told):
    """One outcome: a sandbox, or the problem."""

    sandbox: Sandbox | None = None
    error: Problem | None = None


class BatchResults(Told):
    """The outcomes, in the order of the requests."""

    results: Sequence[BatchResult]
