"""Maps Docker's errors to Shoal's."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import requests
from docker.errors import APIError, DockerException

from shoal.model.errors import (
    FailedPrecondition,
    ImageNotFound,
    Internal,
    InvalidRequest,
    NotFound,
    QuotaExceeded,
    ShoalError,
    Unavailable,
)

MESSAGE_LIMIT = 500
"""A daemon's message can quote a whole log: more than this of it is cut off."""

# Part of the daemon's message (lower case) → the spec's field at fault, and the remedy. The first that matches counts.
_BAD_FIELDS: tuple[tuple[str, str, str], ...] = (
    ("invalid reference format", "image", "write it as [registry/]name[:tag]"),
    ("invalid repository name", "image", "write it as [registry/]name[:tag]"),
    ("minimum memory limit", "memory", "ask for at least 16 MiB"),
    ("memory limit too low", "memory", "ask for more memory"),
    ("oom-killed", "memory", "ask for more memory"),
    ("range of cpus", "cpu", "ask for between 0.01 and the machine's cores"),
    ("could not select device driver", "gpu", "use a node with GPUs and their container toolkit"),
    ("unknown runtime", "runtime", "use one that this node has"),
    ("invalid hostname", "hostname", "use letters, digits and dashes"),
    ("storage-opt", "disk", "ask for none: this storage driver has no quotas"),
)

_UNREACHABLE = (
    "dial tcp",
    "i/o timeout",
    "connection refused",
    "connection reset",
    "tls handshake timeout",
    "timeout exceeded",
    "eof",
    "deadline",
)
_ABSENT = (
    "pull access denied",
    "manifest unknown",
    "not found",
    "no such image",
    "repository does not exist",
    "no matching manifest",
    "unauthorized",
    "denied",
)


@contextmanager
def docker_errors(doing: str) -> Iterator[None]:
    """Raises errors of Docker's SDK as Shoal's. `doing` completes the sentence "could not …"."""
    try:
        yield
    except APIError as error:
        raise from_api(error, doing) from error
    except (requests.exceptions.RequestException, DockerException, OSError) as error:
        release(error)
        raise from_connection(error, doing) from error


def from_api(error: APIError, doing: str) -> ShoalError:
    """An answer of the daemon as one of Shoal's errors."""
    status, said = error.status_code or 0, explanation(error)
    lowered = said.lower()
    if status == 404:
        if "no such image" in lowered:
            return ImageNotFound(f"could not {doing}: {said}")
        return NotFound(f"could not {doing}: {said}")
    # A failed start is answered with 400 or 500, so only the message tells.
    if status in (400, 409, 500):
        for words, field, remedy in _BAD_FIELDS:
            if words in lowered:
                return InvalidRequest(f"{field}: could not {doing}: {said}; {remedy}", field=field)
    if status == 409:
        return FailedPrecondition(f"could not {doing}: {said}")
    if "no space left" in lowered:
        return QuotaExceeded(f"could not {doing}: the machine's disk is full: {said}; remove what is not needed there")
    if status == 503:
        return Unavailable(f"could not {doing}: the engine is busy: {said}")
    return Internal(f"could not {doing}: {said}")


def from_connection(error: Exception, doing: str) -> Unavailable:
    """The error for a daemon that does not answer: why, as far as the causes tell, and what to do."""
    if _caused_by(error, PermissionError):
        why = "this user may not open the engine's socket"
    elif _caused_by(error, FileNotFoundError):
        why = "the engine's socket is not there"
    elif _caused_by(error, ConnectionRefusedError):
        why = "nothing listens at the engine's address"
    elif isinstance(error, requests.exceptions.Timeout) or _caused_by(error, TimeoutError):
        why = "the engine took too long to answer"
    else:
        why = _cut(str(error))
    return Unavailable(f"could not {doing}: {why}; run `shoal doctor` to see what is missing on this machine")


def from_pull(said: str, reference: str) -> ShoalError:
    """Why a pull failed. Called only after the image was looked for on this node."""
    lowered = said.lower()
    here = f"image {reference} is not on this node"
    if "invalid reference" in lowered or "invalid repository name" in lowered:
        return InvalidRequest(
            f"image: {reference!r} is no image reference; write it as [registry/]name[:tag]", field="image"
        )
    if "no such host" in lowered:
        # The name service has answered, so a retry would not help, unlike with a silent registry.
        return ImageNotFound(
            f"{here}, and its registry is not known to this machine's name service: {_cut(said)}; "
            "check the name, or load the image on the node beforehand"
        )
    if any(words in lowered for words in _UNREACHABLE):
        return Unavailable(
            f"{here}, and its registry does not answer: {_cut(said)}; "
            "check the name and this machine's network, or load the image on the node beforehand"
        )
    if any(words in lowered for words in _ABSENT):
        return ImageNotFound(
            f"{here}, and its registry does not give it: {_cut(said)}; check the name, or log this machine in there"
        )
    if "no space left" in lowered:
        return FailedPrecondition(f"{here}, and there is no room for it: {_cut(said)}; free some of the engine's disk")
    return Internal(f"{here}, and pulling it failed: {_cut(said)}")


def explanation(error: APIError) -> str:
    """The daemon's own words, shortened."""
    said = error.explanation or str(error)
    return _cut(said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said))


def _cut(text: str) -> str:
    return text if len(text) <= MESSAGE_LIMIT else text[:MESSAGE_LIMIT] + "…"


def release(error: BaseException) -> None:
    """Releases what the frames of `error` hold. The SDK does not close its socket if nobody answers: it lives as long
    as the traceback, so a daemon that stays away would cost a descriptor with every call."""
    for cause in _causes(error):
        traceback.clear_frames(cause.__traceback__)


def _caused_by(error: BaseException, kind: type[BaseException]) -> bool:
    return any(isinstance(cause, kind) for cause in _causes(error))


def _causes(error: BaseException) -> list[BaseException]:
    """The error and its causes. `requests` and `urllib3` often keep the cause as an argument."""
    pending: list[object] = [error]
    found: list[BaseException] = []
    while pending and len(found) < 64:
        current = pending.pop()
        if isinstance(current, BaseException) and current not in found:
            found.append(current)
            pending += [current.__cause__, current.__context__, *current.args]
    return found
