"""What comes from a sandbox: every field's type and bound is checked."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from shoal.model import errors
from shoal.wire import records

ENTRY: dict[str, Any] = {
    "name": "f",
    "path": "/d/f",
    "kind": "file",
    "size": 3,
    "mode": 0o644,
    "uid": 0,
    "gid": 0,
    "mtime_ns": 1_700_000_000_000_000_000,
}
RUN: dict[str, Any] = {"id": "p-1", "exit": 0, "timed_out": False, "truncated": False, "duration_us": 1500}
ROW: dict[str, Any] = {"id": "p-1", "pid": 7, "argv": ["a"], "started_ms": 1, "running": True, "exit": None}


def test_entry() -> None:
    entry = records.entry(ENTRY)
    assert (entry.name, entry.path, entry.kind, entry.target) == ("f", "/d/f", "file", None)
    link = records.entry({**ENTRY, "kind": "link", "target": "../x"})
    assert link.target == "../x"
    assert records.entry({**ENTRY, "name": "/", "path": "/", "kind": "dir"}).name == "/"


def test_entry_deeper_than_one_system_call_can_name() -> None:
    path = "/d" * 4000
    assert records.entry({**ENTRY, "name": "d", "path": path}).path == path


def test_entry_with_a_name_that_is_not_utf8() -> None:
    coded = {"b64": base64.b64encode(b"\xff").decode()}
    path = {"b64": base64.b64encode(b"/d/\xff").decode()}
    entry = records.entry({**ENTRY, "name": coded, "path": path})
    assert entry.name.encode("utf-8", "surrogateescape") == b"\xff"
    assert entry.path.encode("utf-8", "surrogateescape") == b"/d/\xff"


@pytest.mark.parametrize(
    "change",
    [
        {"name": ""},
        {"name": "."},
        {"name": ".."},
        {"name": "../../etc/passwd"},
        {"name": "a/b"},
        {"name": "a\0b"},
        {"name": "\ud800"},
        {"name": 3},
        {"name": None},
        {"name": "x" * 256},
        {"path": "/" + "x" * 40_000},
        {"name": {"b64": "Li4="}},
        {"name": {"b64": base64.b64encode(b"a/b").decode()}},
        {"name": {"b64": base64.b64encode(b"a\0").decode()}},
        {"name": {"b64": "***"}},
        {"name": {"b64": 1}},
        {"name": {"b64": "é"}},
        {"name": {}},
        {"name": "/"},
        {"path": "d/f"},
        {"path": ""},
        {"path": ["/d/f"]},
        {"kind": "socket"},
        {"kind": ["file"]},
        {"kind": {}},
        {"kind": "link", "target": None},
        {"size": -1},
        {"size": "3"},
        {"size": 3.0},
        {"size": True},
        {"size": 1 << 64},
        {"mode": -1},
        {"mode": 1 << 40},
        {"uid": -1},
        {"gid": 1 << 33},
        {"mtime_ns": 1e300},
        {"mtime_ns": None},
    ],
)
def test_malformed_entry_is_internal(change: dict[str, Any]) -> None:
    with pytest.raises(errors.Internal):
        records.entry({**ENTRY, **change})


@pytest.mark.parametrize("value", [None, [], "x", 1])
def test_entry_that_is_no_object(value: object) -> None:
    with pytest.raises(errors.Internal):
        records.entry(value)
    with pytest.raises(errors.Internal):
        records.process(value)


@pytest.mark.parametrize("event", [{}, {"entries": {}}, {"entries": "x"}, {"entries": [1]}])
def test_malformed_entries(event: dict[str, Any]) -> None:
    with pytest.raises(errors.Internal):
        records.entries(event)


def test_run_result() -> None:
    result = records.run_result({**RUN, "exit": -9, "timed_out": True}, "p-1", b"o", b"e")
    assert (result.exit, result.timed_out, result.stdout, result.stderr) == (-9, True, b"o", b"e")
    assert result.duration_s == 0.0015


@pytest.mark.parametrize(
    "change",
    [
        {"id": "p-2"},
        {"exit": None},
        {"exit": 256},
        {"exit": "0"},
        {"exit": False},
        {"timed_out": 0},
        {"truncated": None},
        {"duration_us": -1},
        {"duration_us": 1 << 80},
    ],
)
def test_malformed_run_result(change: dict[str, Any]) -> None:
    with pytest.raises(errors.Internal):
        records.run_result({**RUN, **change}, "p-1", b"", b"")


def test_exit_and_its_malformations() -> None:
    assert records.exit_of({"exit": 3, "timed_out": False, "duration_us": 5}) == records.Exit(3, False, 5e-6)
    for bad in ({"exit": 3}, {"exit": "3", "timed_out": False, "duration_us": 1}, {}):
        with pytest.raises(errors.Internal):
            records.exit_of(bad)


def test_watch_event() -> None:
    assert records.watch_event({"kind": "created", "path": "/a"}, "/") == records.WatchEvent("created", "/a", None)
    moved = records.watch_event({"kind": "moved", "path": "/a", "to": "/b"}, "/")
    assert moved == records.WatchEvent("moved", "/a", "/b")
    assert records.watch_event({"overflow": True}, "/w") == records.WatchEvent("overflow", "/w", None)
    for bad in (
        {},
        {"kind": "eaten", "path": "/a"},
        {"kind": "created"},
        {"kind": "moved", "path": "/a"},
        {"kind": []},
    ):
        with pytest.raises(errors.Internal):
            records.watch_event(bad, "/")


def test_process_row() -> None:
    assert records.process(ROW) == ROW
    assert records.process({**ROW, "running": False, "exit": -15})["exit"] == -15
    for change in (
        {"id": 1},
        {"pid": -1},
        {"argv": "a"},
        {"argv": [1]},
        {"running": 1},
        {"running": False, "exit": "x"},
    ):
        with pytest.raises(errors.Internal):
            records.process({**ROW, **change})
