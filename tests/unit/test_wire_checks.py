"""What is refused before a byte goes out, and that each refusal names its field."""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

import pytest

from shoal.model import errors
from shoal.model.validate import MAX_ARGV_ITEM, MAX_START_ITEMS
from shoal.wire import checks
from shoal.wire.records import Start


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: checks.argv([]), "argv"),
        (lambda: checks.argv([""]), "argv"),
        (lambda: checks.argv("ls -l"), "argv"),
        (lambda: checks.argv(["ls", 1]), "argv"),  # type: ignore[list-item]
        (lambda: checks.argv(["ls", b"x"]), "argv"),  # type: ignore[list-item]
        (lambda: checks.argv(["ls", "a\0b"]), "argv"),
        (lambda: checks.argv(["ls", "\udcff"]), "argv"),
        (lambda: checks.argv(["echo", "\ud800"]), "argv"),
        (lambda: checks.argv(["x"] * (MAX_START_ITEMS + 1)), "argv"),
        (lambda: checks.argv(["x" * (128 << 10)]), "argv"),
        (lambda: checks.argv(["é" * (64 << 10)]), "argv"),
        (lambda: checks.argv(["x" * 120_000] * 53), "argv"),
        (lambda: checks.env({"": "x"}), "env"),
        (lambda: checks.env({"a=b": "x"}), "env"),
        (lambda: checks.env({"a\0": "x"}), "env"),
        (lambda: checks.env({"a": "x\0"}), "env"),
        (lambda: checks.env({"a": "\ud800"}), "env"),
        (lambda: checks.env({"a": 1}), "env"),  # type: ignore[dict-item]
        (lambda: checks.env({1: "a"}), "env"),  # type: ignore[dict-item]
        (lambda: checks.env(["a=b"]), "env"),  # type: ignore[arg-type]
        (lambda: checks.env({"a": "x" * (128 << 10)}), "env"),
        (lambda: checks.env({f"a{i}": "x" * 120_000 for i in range(53)}), "env"),
        (lambda: checks.directory("relative"), "workdir"),
        (lambda: checks.directory(""), "workdir"),
        (lambda: checks.path(""), "path"),
        (lambda: checks.path("a/b"), "path"),
        (lambda: checks.path("/a\0b"), "path"),
        (lambda: checks.path("/\ud800"), "path"),
        (lambda: checks.path("/" + "x" * 4095), "path"),
        (lambda: checks.path(b"/a"), "path"),  # type: ignore[arg-type]
        (lambda: checks.path(7), "path"),  # type: ignore[arg-type]
        (lambda: checks.path("", "to"), "to"),
        (lambda: checks.user("a\0"), "user"),
        (lambda: checks.user(0), "user"),  # type: ignore[arg-type]
        (lambda: checks.user("u" * 300), "user"),
        (lambda: checks.process_id("x-1"), "id"),
        (lambda: checks.process_id("p-" + "a" * 33), "id"),
        (lambda: checks.process_id("p-1\n"), "id"),
        (lambda: checks.process_id("p-../x"), "id"),
        (lambda: checks.process_id(None), "id"),
        (lambda: checks.whole(-1, "offset", 0, 10), "offset"),
        (lambda: checks.whole(11, "offset", 0, 10), "offset"),
        (lambda: checks.whole(True, "offset", 0, 10), "offset"),
        (lambda: checks.whole(1.0, "offset", 0, 10), "offset"),  # type: ignore[arg-type]
        (lambda: checks.milliseconds(-0.001, "timeout_s"), "timeout_s"),
        (lambda: checks.milliseconds(math.nan, "timeout_s"), "timeout_s"),
        (lambda: checks.milliseconds(math.inf, "timeout_s"), "timeout_s"),
        (lambda: checks.milliseconds(1e12, "timeout_s"), "timeout_s"),
        (lambda: checks.milliseconds("1", "timeout_s"), "timeout_s"),  # type: ignore[arg-type]
        (lambda: checks.milliseconds(True, "timeout_s"), "timeout_s"),
        (lambda: checks.limits({"as": 1}), "limits"),
        (lambda: checks.limits({"nofile": -1}), "limits[nofile]"),
        (lambda: checks.flag(1, "tree"), "tree"),
        (lambda: checks.flag(None, "tree"), "tree"),
        (lambda: checks.mode(0o10000), "mode"),
        (lambda: checks.content("text", "data"), "data"),
    ],
)
def test_refused_with_the_field_named(call: Callable[[], Any], field: str) -> None:
    with pytest.raises(errors.InvalidRequest) as caught:
        call()
    assert caught.value.field == field
    assert len(caught.value.message) < 500


def test_bounds_are_reached_from_within() -> None:
    assert len(checks.argv(["x"] * MAX_START_ITEMS)) == MAX_START_ITEMS
    assert checks.argv(["x" * MAX_ARGV_ITEM]) == ["x" * MAX_ARGV_ITEM]
    assert checks.path("/" + "x" * 4094) == "/" + "x" * 4094
    assert checks.process_id("p-" + "a" * 32) == "p-" + "a" * 32
    assert checks.env({"a": "", "b": None, "é": "ü"}) == {"a": "", "b": None, "é": "ü"}


def test_paths_that_are_not_utf8_travel_as_base64() -> None:
    raw = b"/tmp/\xff\xfe"
    assert checks.path(os.fsdecode(raw)) == {"b64": base64.b64encode(raw).decode()}
    assert checks.path("/tmp/é") == "/tmp/é"
    assert checks.path(PurePosixPath("/tmp/a")) == "/tmp/a"


def test_a_little_time_is_never_none() -> None:
    assert checks.milliseconds(0.0001, "timeout_s") == 1
    assert checks.milliseconds(0, "timeout_s") == 0
    assert checks.milliseconds(1.5, "timeout_s") == 1500


def test_start_sends_only_what_was_said() -> None:
    assert Start("p-1", ["true"]).request("run") == {"op": "run", "id": "p-1", "argv": ["true"]}
    full = Start("p-1", ("a",), {"A": None}, "/w", "u", 0.5, {"nofile": 9}).request("exec")
    assert full == {
        "op": "exec",
        "id": "p-1",
        "argv": ["a"],
        "env": {"A": None},
        "workdir": "/w",
        "user": "u",
        "timeout_ms": 500,
        "limits": {"nofile": 9},
    }
