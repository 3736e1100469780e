"""What the API tells, as the model's own objects. What does not fit is a server of another version, and told so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar

from shoal.model.access import AuditEntry, Environment, Quota, SandboxEvent, Scope, TokenInfo, Tunnel
from shoal.model.errors import FailedPrecondition
from shoal.model.info import NodeInfo, SandboxInfo
from shoal.model.sandbox_json import info_from_json

T = TypeVar("T")


def decoded(decode: Callable[[Any], T], data: Any) -> T:
    """`decode(data)`; `FailedPrecondition` where it does not fit."""
    try:
        return decode(data)
    except (KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise FailedPrecondition(
            f"the API's answer makes no sense here ({type(error).__name__}: {error}): it is of another version, or is "
            "no Shoal's",
            state="version",
        ) from None


def many(name: str, decode: Callable[[Any], T], data: Any) -> list[T]:
    """The list that an answer holds under `name`."""
    return decoded(lambda answer: [decode(each) for each in answer[name]], data)


def sandbox(data: Any) -> SandboxInfo:
    return info_from_json(data)


def token(data: Any) -> TokenInfo:
    return TokenInfo(**{**_known(TokenInfo, data), "scope": Scope(data["scope"])})


def quota(data: Any) -> Quota:
    return Quota(**_known(Quota, data))


def environment(data: Any) -> Environment:
    known = _known(Environment, data)
    return Environment(**{**known, "quota": quota(data["quota"]), "usage": quota(data.get("usage") or {})})


def audit_entry(data: Any) -> AuditEntry:
    return AuditEntry(**_known(AuditEntry, data))


def event(data: Any) -> SandboxEvent:
    return SandboxEvent(**_known(SandboxEvent, data))


def tunnel(data: Any) -> Tunnel:
    return Tunnel(**_known(Tunnel, data))


def node(data: Any) -> NodeInfo:
    return NodeInfo(**{**_known(NodeInfo, data), "runtimes": tuple(data["runtimes"])})


def _known(cls: Any, data: dict[str, Any]) -> dict[str, Any]:
    """The members that this version knows; a newer server may tell more."""
    return {field.name: data[field.name] for field in fields(cls) if field.name in data}
