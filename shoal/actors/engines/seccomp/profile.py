"""Puts the lists together to a profile in the form that OCI runtimes and Docker read. Pure."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterable
from typing import Any, Final

from shoal.actors.engines.seccomp.bounds import Bound, Condition, bounds
from shoal.actors.engines.seccomp.syscalls import ABSENT, ALLOWED, Group
from shoal.model.errors import InvalidRequest

# 32-bit programs run too: the kernel ends a program whose table is not listed. So it does with the x32 table, which
# nobody uses, and which would double the time that a container's start spends on the filter.
_ARCHITECTURES: Final = {
    "x86_64": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
    "aarch64": ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
}


def build(machine: str, kernel: tuple[int, int]) -> dict[str, Any]:
    """The profile for a machine (`x86_64` or `aarch64`, as `os.uname` calls it) with this version of the kernel.

    What no rule allows is refused with `EPERM`. `InvalidRequest` for another kind of machine.
    """
    architectures = _ARCHITECTURES.get(machine)
    if architectures is None:
        raise InvalidRequest(
            f"node.seccomp_profile: Shoal has none for {machine} machines; name a file with one",
            field="node.seccomp_profile",
        )
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": architectures,
        "syscalls": [
            {"names": _names(ALLOWED), **_answer(None)},
            *map(_rule, bounds(kernel)),
            {"names": _names(ABSENT), **_answer(errno.ENOSYS)},
        ],
    }


def to_json(profile: dict[str, Any]) -> str:
    """The profile as an engine takes it: on one line, since every answer about a container repeats it."""
    return json.dumps(profile, separators=(",", ":"))


def _names(groups: Iterable[Group]) -> list[str]:
    return [call for group in groups for call in group.calls]


def _rule(bound: Bound) -> dict[str, Any]:
    rule: dict[str, Any] = {"names": list(bound.calls), **_answer(bound.error)}
    if bound.conditions:
        rule["args"] = [_argument(condition) for condition in bound.conditions]
    return rule


def _answer(error: int | None) -> dict[str, Any]:
    if error is None:
        return {"action": "SCMP_ACT_ALLOW"}
    return {"action": "SCMP_ACT_ERRNO", "errnoRet": error}


def _argument(condition: Condition) -> dict[str, Any]:
    if condition.mask is None:
        return {"index": condition.index, "value": condition.value, "op": "SCMP_CMP_EQ"}
    return {
        "index": condition.index,
        "value": condition.mask,
        "valueTwo": condition.value,
        "op": "SCMP_CMP_MASKED_EQ",
    }
