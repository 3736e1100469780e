"""The options of `shoal.map`, checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shoal.client.create_options import SandboxOptions
from shoal.model.errors import InvalidRequest, ShoalError
from shoal.model.rollouts import check_rollout_name
from shoal.model.validate import MAX_TIMEOUT, check_number

if TYPE_CHECKING:
    from shoal.client.cluster import Client

CREATE_DEADLINE_S = 300.0

OWNER_LEASE_S = 60.0
"""The lease of a map's sandboxes, if none is given: they end this long after their program was killed."""

RESET = ("/tmp", "/var/tmp", "/dev/shm")
"""The directories that a reset empties, if none are given."""

_MOST = 100_000

Errors = type[BaseException] | tuple[type[BaseException], ...]
Spec = Mapping[str, Any] | Callable[[Any], Mapping[str, Any]]


class MapOptions(SandboxOptions, total=False):
    """How `shoal.map` goes about it, and what its sandboxes are to be. `name` is the map's own, not theirs."""

    concurrency: int
    ordered: bool
    retries: int
    retry_on: Errors
    reuse: int
    reset: Sequence[str]
    ahead: int | None
    buffer: int | None
    spec: Spec | None
    progress: bool
    deadline: float
    client: Client | None


@dataclass(frozen=True, slots=True)
class Plan:
    """The options of one map. `sandboxes`: the most at a time. `timeout_s`: None for the cluster's default."""

    concurrency: int
    ahead: int
    buffer: int
    ordered: bool
    retries: int
    retry_on: Errors
    reuse: int
    reset: tuple[str, ...]
    timeout_s: float | None
    deadline_s: float
    name: str | None
    progress: bool
    client: Client | None
    spec_of_item: Callable[[Any], Mapping[str, Any]] | None
    options: Mapping[str, Any]

    @property
    def sandboxes(self) -> int:
        return self.concurrency + self.ahead

    def retries_after(self, error: BaseException) -> bool:
        """Whether an attempt that ended with this error may be repeated in another sandbox."""
        return (isinstance(error, ShoalError) and error.retryable) or isinstance(error, self.retry_on)


def plan_of(
    concurrency: int = 16,
    ordered: bool = False,
    retries: int = 2,
    retry_on: Errors = (),
    reuse: int = 1,
    reset: Sequence[str] = RESET,
    ahead: int | None = None,
    buffer: int | None = None,
    spec: Spec | None = None,
    name: str | None = None,
    progress: bool = False,
    deadline: float = CREATE_DEADLINE_S,
    client: Client | None = None,
    timeout: float | None = None,
    **options: Any,
) -> Plan:
    """The plan for what a caller gave. Raises `InvalidRequest`."""
    check_number("concurrency", concurrency, 0, _MOST, "items", whole=True)
    ahead = max(1, concurrency // 4) if ahead is None else ahead
    buffer = concurrency if buffer is None else buffer
    check_number("ahead", ahead, -1, _MOST, "sandboxes", whole=True)
    check_number("buffer", buffer, -1, _MOST, "outcomes", whole=True)
    check_number("retries", retries, -1, 1000, "attempts", whole=True)
    check_number("reuse", reuse, 0, 1_000_000, "items", whole=True)
    check_number("deadline", deadline, 0, math.inf, "seconds")
    if timeout is not None:
        check_number("timeout", timeout, 0, MAX_TIMEOUT, "seconds")
    check_rollout_name(name)
    of_item = spec if callable(spec) else None
    shared = {**({} if spec is None or of_item else _mapping(spec)), **options}
    _check_errors(retry_on)
    _check_reuse(reuse, reset, of_item)
    for own in ("name", "idempotency_key", "command"):
        if shared.get(own) is not None:
            raise InvalidRequest(f"{own}: it is one sandbox's only, and a map makes many; leave it out", field=own)
    shared.setdefault("owner_lease", None)
    if shared["owner_lease"] is None:
        shared["owner_lease"] = OWNER_LEASE_S
    return Plan(
        concurrency,
        ahead,
        buffer,
        bool(ordered),
        retries,
        retry_on,
        reuse,
        tuple(reset),
        timeout,
        deadline,
        name,
        bool(progress),
        client,
        of_item,
        shared,
    )


def _mapping(spec: Any) -> Mapping[str, Any]:
    if not isinstance(spec, Mapping):
        raise InvalidRequest(
            f"spec: {spec!r:.80} is no dict of a sandbox's options, and no function that returns one", field="spec"
        )
    return spec


def _check_errors(retry_on: Any) -> None:
    classes = retry_on if isinstance(retry_on, tuple) else (retry_on,)
    if not all(isinstance(each, type) and issubclass(each, Exception) for each in classes):
        raise InvalidRequest(f"retry_on: {retry_on!r:.80} is no exception class or tuple of them", field="retry_on")


def _check_reuse(reuse: int, reset: Any, of_item: object) -> None:
    if isinstance(reset, str) or not isinstance(reset, Sequence):
        raise InvalidRequest(f"reset: {reset!r:.80} is no list of directories; give one", field="reset")
    for path in reset:
        if not isinstance(path, str) or not path.startswith("/") or path.strip("/") == "":
            raise InvalidRequest(f"reset: {path!r:.80} is no absolute path of a directory below /", field="reset")
    if reuse > 1 and of_item is not None:
        raise InvalidRequest("reuse: sandboxes that differ by item cannot be reused; leave it out", field="reuse")
