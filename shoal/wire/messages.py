"""The JSON in frames: outgoing requests, and incoming replies, events and errors, which may be hostile."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from shoal.model import errors
from shoal.wire.frames import MAX_REQUEST

_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode
_decode = json.JSONDecoder().decode

_MAX_MESSAGE = 8192
"""Characters of an error message that are kept."""

_AGENT_ERRORS: dict[str, type[errors.ShoalError]] = {
    cls.code: cls
    for cls in (
        errors.InvalidRequest,
        errors.RelativePath,
        errors.IsADirectory,
        errors.NotADirectory,
        errors.PathNotFound,
        errors.ProcessNotFound,
        errors.UserNotFound,
        errors.AlreadyExists,
        errors.FailedPrecondition,
        errors.QuotaExceeded,
        errors.PermissionDenied,
        errors.CommandNotFound,
        errors.CommandNotExecutable,
        errors.Unavailable,
        errors.Internal,
    )
}
"""The errors that an agent may report. Code inside a sandbox must not claim that it ended, or that a token is bad."""

_RELAY_ERRORS: dict[str, type[errors.ShoalError]] = {
    cls.code: cls
    for cls in (
        errors.Unauthenticated,
        errors.PermissionDenied,
        errors.NotFound,
        errors.InvalidRequest,
        errors.QuotaExceeded,
        errors.Unavailable,
    )
}

MAX_HELLO = 8192
"""The largest HELLO, in bytes."""


def encode_request(request: Mapping[str, Any]) -> bytes:
    """A request as the payload of an OPEN; `InvalidRequest` if it is too large for a frame or not valid Unicode."""
    try:
        payload = _encode(request).encode()
    except UnicodeEncodeError:
        raise errors.InvalidRequest(
            "the request holds text that is not valid Unicode (a lone surrogate): decode it as UTF-8 first"
        ) from None
    if len(payload) > MAX_REQUEST:
        large = max(request, key=lambda name: len(_encode(request[name])))
        raise errors.InvalidRequest(
            f"{large}: the request is {len(payload)} bytes long, more than the {MAX_REQUEST} that fit: "
            "pass large values through a file or standard input",
            field=large,
        )
    return payload


def decode_object(payload: bytes, what: str) -> dict[str, Any]:
    """The JSON object in `payload`; `Internal` if it is anything else."""
    try:
        # Deeply nested brackets raise RecursionError, not ValueError.
        value = _decode(str(payload, "utf-8"))
    except (ValueError, RecursionError):
        raise errors.Internal(f"malformed {what} from the sandbox: not JSON") from None
    if type(value) is not dict:
        raise errors.Internal(f"malformed {what} from the sandbox: not a JSON object")
    return value


def decode_reply(payload: bytes) -> dict[str, Any] | errors.ShoalError:
    """The content of a REPLY: its `ok` object or its error; raises `Internal` if it is malformed."""
    reply = decode_object(payload, "reply")
    ok = reply.get("ok")
    if type(ok) is dict:
        return ok
    error = reply.get("error")
    if type(error) is dict:
        return _error(error, _AGENT_ERRORS)
    raise errors.Internal("malformed reply from the sandbox: neither an ok nor an error object")


def encode_hello(token: str, wait_s: float, dial: int | None = None) -> bytes:
    """The client's HELLO. `dial`: the port in the sandbox to connect to, raw."""
    hello = {"v": 1, "token": token, "wait_ms": round(wait_s * 1000)}
    if dial is not None:
        hello["dial"] = dial
    return _encode(hello).encode()


def check_hello(payload: bytes) -> None:
    """Raises the relay's refusal; returns if it admits us."""
    _check_hello(payload, "relay", _RELAY_ERRORS)


def check_dialled(payload: bytes) -> None:
    """Raises the agent's refusal of a dialled connection; returns if raw bytes may follow."""
    _check_hello(payload, "agent", _AGENT_ERRORS)


def _check_hello(payload: bytes, whose: str, known: Mapping[str, type[errors.ShoalError]]) -> None:
    if len(payload) > MAX_HELLO:
        raise errors.Internal(f"malformed hello from the {whose}: {len(payload)} bytes, at most {MAX_HELLO}")
    hello = decode_object(payload, "hello")
    error = hello.get("error")
    if type(error) is dict:
        raise _error(error, known)
    if hello.get("ok") is not True or hello.get("v") != 1:
        raise errors.Internal(f"malformed hello from the {whose}: it speaks another version of the protocol")


def _error(data: dict[str, Any], known: Mapping[str, type[errors.ShoalError]]) -> errors.ShoalError:
    code, message = data.get("code"), data.get("message")
    if type(code) is not str or type(message) is not str:
        return errors.Internal("malformed error from the sandbox: code and message must be strings")
    # Printing or logging lone surrogates would fail.
    message = message[:_MAX_MESSAGE].encode(errors="replace").decode()
    cls = known.get(code)
    if cls is None:
        return errors.Internal(f"{code[:64].encode(errors='replace').decode()}: {message}")
    fields: dict[str, Any] = {}
    for name in ("field", "state"):
        value = data.get(name)
        if type(value) is str and len(value) <= 256:
            fields[name] = value.encode(errors="replace").decode()
    exit_code = data.get("exit_code")
    if type(exit_code) is int and 0 <= exit_code <= 255:
        fields["exit_code"] = exit_code
    return cls(message, **fields)
