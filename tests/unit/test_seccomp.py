"""The profile of system calls: what it says about each call, read as a filter would; and an operator's in its place."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from shoal.actors.engines.seccomp import profile_json
from shoal.actors.engines.seccomp.bounds import FAULT_SIGNALS, REFUSED_REQUESTS, all_but
from shoal.actors.engines.seccomp.profile import build
from shoal.actors.engines.seccomp.syscalls import ABSENT, ALLOWED, REFUSED
from shoal.model.errors import InvalidRequest

EPERM, ENOSYS = 1, 38
PROFILE = build("x86_64", (6, 1))


def allowed(call: str, *arguments: int, profile: dict[str, Any] = PROFILE) -> bool:
    """Whether a rule allows the call. Rules are joined by "or", the conditions of one by "and"."""
    return any(
        call in rule["names"] and all(_holds(condition, arguments) for condition in rule.get("args", ()))
        for rule in profile["syscalls"]
        if rule["action"] == "SCMP_ACT_ALLOW"
    )


def _holds(condition: dict[str, Any], arguments: tuple[int, ...]) -> bool:
    value = arguments[condition["index"]]
    if condition["op"] == "SCMP_CMP_EQ":
        return bool(value == condition["value"])
    assert condition["op"] == "SCMP_CMP_MASKED_EQ"
    return bool(value & condition["value"] == condition["valueTwo"])


def test_no_call_is_both_allowed_and_refused() -> None:
    listed = [call for groups in (ALLOWED, REFUSED, ABSENT) for group in groups for call in group.calls]
    assert len(listed) == len(set(listed))
    assert not [call for group in (*REFUSED, *ABSENT) for call in group.calls if allowed(call)]


def test_what_is_not_allowed_is_refused_and_what_programs_look_for_seems_absent() -> None:
    assert (PROFILE["defaultAction"], PROFILE.get("defaultErrnoRet", EPERM)) == ("SCMP_ACT_ERRNO", EPERM)
    answers = {call: rule["errnoRet"] for rule in PROFILE["syscalls"] if "errnoRet" in rule for call in rule["names"]}
    assert answers["clone3"] == answers["socketcall"] == ENOSYS


@pytest.mark.parametrize(
    ("arguments", "right"),
    [
        ((1, 1, 0), True),
        ((2, 1, 6), True),
        ((10, 2, 17), True),
        ((16, 3, 0), True),
        ((16, 3, 15), False),
        ((40, 1, 0), False),
        ((38, 5, 0), False),
        ((2, 1, 256), False),
        ((1 << 32 | 40, 1, 0), False),
        ((1 << 32 | 2, 1, 0), False),
    ],
)
def test_sockets_are_of_few_kinds(arguments: tuple[int, ...], right: bool) -> None:
    assert allowed("socket", *arguments) is right


def test_no_signal_looks_like_a_fault_of_its_receiver() -> None:
    for signal in range(1, 65):
        right = signal not in FAULT_SIGNALS
        assert allowed("rt_sigqueueinfo", 1, signal, 2) is right
        assert allowed("rt_tgsigqueueinfo", 1, 1, signal) is right
        assert allowed("pidfd_send_signal", 3, signal, 2) is right
        assert allowed("pidfd_send_signal", 3, signal, 0)
        assert allowed("fcntl", 3, 10, signal) is right
        assert not allowed("fcntl", 3, 1 << 32 | 10, 11)
    assert all(allowed("fcntl", 3, command, 11) for command in (*range(10), *range(11, 41), *range(1024, 1050)))


def test_namespaces_personalities_and_tracing_are_bounded() -> None:
    assert allowed("clone", 0x3D0F00, 0)
    assert not any(allowed(call, 1 << bit | 0x11) for call in ("clone", "unshare") for bit in (17, *range(25, 31)))
    assert allowed("unshare", 0x400)
    assert not allowed("unshare", 0x80)
    assert allowed("personality", 0xFFFFFFFF)
    assert not allowed("personality", 0x400000)
    assert allowed("ptrace", 0)
    assert not allowed("ptrace", 0, profile=build("x86_64", (4, 4)))


def test_requests_are_allowed_but_for_some() -> None:
    for request in REFUSED_REQUESTS:
        for above in (0, 0x4008_0000, 1 << 32):
            assert not allowed("ioctl", 0, request | above)
    rest = [random.getrandbits(32) for _ in range(2000)] + [r ^ 1 << bit for r in REFUSED_REQUESTS for bit in range(16)]
    for request in rest:
        assert allowed("ioctl", 0, request) is (request & 0xFFFF not in REFUSED_REQUESTS)


def test_all_but_some_numbers() -> None:
    for values in ((0,), (3, 5), (0, 1, 2, 3), tuple(range(15))):
        pairs = list(all_but(values, 4))
        for number in range(16):
            assert any(number & mask == value for value, mask in pairs) is (number not in values)


def test_each_machine_has_its_tables_and_an_unknown_one_is_told() -> None:
    assert "SCMP_ARCH_X86" in PROFILE["architectures"]
    assert "SCMP_ARCH_AARCH64" in build("aarch64", (6, 1))["architectures"]
    with pytest.raises(InvalidRequest) as caught:
        build("riscv64", (6, 1))
    assert caught.value.field == "node.seccomp_profile"


def test_an_operators_profile_takes_its_place(tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    own = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["reboot"], "action": "SCMP_ACT_ERRNO"}]}
    path.write_text(json.dumps(own, indent=2))
    assert json.loads(profile_json(path)) == own
    assert json.loads(profile_json()) != own


@pytest.mark.parametrize(
    "content",
    [
        None,
        "",
        "[]",
        "{}",
        '{"defaultAction": 1}',
        '{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": {}}',
        '{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [1]}',
        '{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["read"]}]}',
        '{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"action": "SCMP_ACT_ALLOW"}]}',
        " " * (1 << 20) + "{}",
    ],
)
def test_a_file_that_is_no_profile_is_an_error_that_names_the_setting(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "own.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InvalidRequest) as caught:
        profile_json(path)
    assert caught.value.field == "node.seccomp_profile"
