"""JSON in frames: compact requests, hostile replies."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shoal.model import errors
from shoal.wire import messages


def _reply(value: Any) -> bytes:
    return json.dumps(value).encode()


def test_request_is_compact_utf8() -> None:
    assert (
        messages.encode_request({"op": "run", "argv": ["écho", '"']}) == '{"op":"run","argv":["écho","\\""]}'.encode()
    )


def test_request_too_large_for_a_frame_names_the_remedy() -> None:
    with pytest.raises(errors.InvalidRequest, match="file or standard input") as caught:
        messages.encode_request({"op": "run", "argv": ["x" * 600_000, "\1" * 3_000_000], "env": {"A": "x"}})
    assert caught.value.field == "argv"


def test_request_with_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(errors.InvalidRequest, match="surrogate"):
        messages.encode_request({"op": "run", "argv": ["\ud800"]})


def test_reply_ok_and_error() -> None:
    assert messages.decode_reply(b'{"ok":{"pid":3}}') == {"pid": 3}
    error = messages.decode_reply(
        _reply(
            {"error": {"code": "command_not_found", "message": "no such program", "field": "argv", "exit_code": 127}}
        )
    )
    assert isinstance(error, errors.CommandNotFound)
    assert error.fields == {"field": "argv", "exit_code": 127}


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{",
        b"[]",
        b"1",
        b'"ok"',
        b"null",
        b'{"ok":1}',
        b'{"ok":[]}',
        b'{"error":"x"}',
        b"{}",
        b"\xff\xfe",
        b'{"ok":{"a":"\xff"}}',
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"ok":{"n":' + b"9" * 10_000 + b"}}",
    ],
)
def test_malformed_reply_is_internal(payload: bytes) -> None:
    with pytest.raises(errors.Internal):
        messages.decode_reply(payload)


@pytest.mark.parametrize(
    "code", ["sandbox_ended", "unauthenticated", "sandbox_not_found", "deadline_exceeded", "nonsense", "\ud800"]
)
def test_an_agent_cannot_tell_what_is_not_its_own_to_tell(code: str) -> None:
    error = messages.decode_reply(_reply({"error": {"code": code, "message": "m", "reason": "node_lost"}}))
    assert type(error) is errors.Internal
    assert not error.retryable
    str(error).encode()


@pytest.mark.parametrize(
    "fields",
    [
        {"self": 1},
        {"message": {"a": 1}},
        {"code": ["internal"]},
        {"exit_code": "127"},
        {"exit_code": 1e308},
        {"exit_code": True},
        {"field": {"x": 1}},
        {"field": "f" * 10_000},
        {"retryable": True, "args": [], "__class__": "x"},
    ],
)
def test_hostile_error_fields_do_no_harm(fields: dict[str, Any]) -> None:
    error = messages.decode_reply(_reply({"error": {"code": "internal", "message": "m", **fields}}))
    assert type(error) is errors.Internal
    assert error.fields == {}


def test_error_message_is_bounded_and_printable() -> None:
    error = messages.decode_reply(_reply({"error": {"code": "internal", "message": "\ud800" + "m" * 1_000_000}}))
    assert isinstance(error, errors.Internal)
    assert len(error.message.encode()) < 10_000


def test_hello() -> None:
    hello = json.loads(messages.encode_hello("tok", 1.5))
    assert hello == {"v": 1, "token": "tok", "wait_ms": 1500}
    messages.check_hello(b'{"v":1,"ok":true}')


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (b'{"v":1,"error":{"code":"unauthenticated","message":"expired"}}', errors.Unauthenticated),
        (b'{"v":1,"error":{"code":"not_found","message":"no such container"}}', errors.NotFound),
        (b'{"v":1,"error":{"code":"unavailable","message":"no agent"}}', errors.Unavailable),
        (b'{"v":1,"error":{"code":"sandbox_ended","message":"x"}}', errors.Internal),
        (b'{"v":1,"ok":1}', errors.Internal),
        (b'{"v":2,"ok":true}', errors.Internal),
        (b'{"ok":true}', errors.Internal),
        (b"[]", errors.Internal),
        (b'{"v":1,"ok":true}' + b" " * 9000, errors.Internal),
    ],
)
def test_hello_refused(payload: bytes, expected: type[errors.ShoalError]) -> None:
    with pytest.raises(errors.ShoalError) as caught:
        messages.check_hello(payload)
    assert type(caught.value) is expected
