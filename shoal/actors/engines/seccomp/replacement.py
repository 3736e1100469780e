"""Reads an operator's own profile, and finds what is wrong with it before a container would."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from shoal.model.errors import InvalidRequest

FIELD: Final = "node.seccomp_profile"
_MOST_BYTES: Final = 1 << 20
_RULE_LISTS: Final = ("syscalls", "archMap")


def read_replacement(path: Path) -> dict[str, Any]:
    """The profile in `path`: JSON as Docker and OCI runtimes take it, at most 1 MiB. `InvalidRequest` if it cannot be
    read or is none."""
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise _wrong(path, f"cannot be read: {error.strerror}") from None
    if len(content) > _MOST_BYTES:
        raise _wrong(path, "is larger than 1 MiB")
    try:
        profile = json.loads(content)
    except ValueError as error:
        raise _wrong(path, f"is no JSON: {error}") from None
    _check(path, profile)
    return dict(profile)


def _check(path: Path, profile: object) -> None:
    if not isinstance(profile, dict):
        raise _wrong(path, "is no JSON object")
    if not _is_action(profile.get("defaultAction")):
        raise _wrong(path, "has no defaultAction such as SCMP_ACT_ERRNO")
    for name in _RULE_LISTS:
        if not isinstance(profile.get(name, []), list):
            raise _wrong(path, f"{name} is no list")
    for number, rule in enumerate(profile.get("syscalls") or []):
        if not isinstance(rule, dict) or not _is_action(rule.get("action")):
            raise _wrong(path, f"syscalls[{number}] has no action such as SCMP_ACT_ALLOW")
        names = rule.get("names") or [rule.get("name")]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise _wrong(path, f"syscalls[{number}] has no names")


def _is_action(value: object) -> bool:
    return isinstance(value, str) and value.startswith("SCMP_ACT_")


def _wrong(path: Path, what: str) -> InvalidRequest:
    return InvalidRequest(f"{FIELD}: {path} {what}; correct it, or unset it for Shoal's own profile", field=FIELD)
