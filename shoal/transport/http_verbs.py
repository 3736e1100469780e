"""Verbs over HTTP: the request for a call, and its answer as the model's own objects."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cache
from typing import Any, NamedTuple, TypeVar, get_args, get_origin, get_type_hints
from urllib.parse import quote

from pydantic import TypeAdapter

from shoal.model.access import Quota, TokenInfo
from shoal.model.builds import BuildOptions
from shoal.model.errors import FailedPrecondition, InvalidRequest
from shoal.model.images import ImageRecord
from shoal.model.info import SandboxInfo
from shoal.model.pools import PoolInfo
from shoal.model.recipe import Recipe
from shoal.model.rollouts import RolloutReport
from shoal.model.sandbox_json import info_from_json, spec_to_json
from shoal.model.secrets import SecretUse
from shoal.model.spec import SandboxSpec
from shoal.model.verbs import Verb
from shoal.model.volumes import VolumeInfo

T = TypeVar("T")


class Request(NamedTuple):
    """What to send. `path`: quoted."""

    path: str
    query: dict[str, Any] | None
    body: Any


def request_for(verb: Verb[..., Any], arguments: Mapping[str, Any]) -> Request:
    """The request for a verb with an address: see `shoal.model.verbs` for where each argument goes."""
    path, rest = verb.path, dict(arguments)
    for name in arguments:
        if f"{{{name}}}" in path:
            path = path.replace(f"{{{name}}}", quote(str(rest.pop(name)), safe=""))
    if verb.method in ("GET", "DELETE"):
        return Request(path, rest or None, None)
    plain = {name: _plain(value) for name, value in rest.items()}
    whole = len(rest) == 1 and isinstance(next(iter(rest.values())), Quota | RolloutReport)
    return Request(path, None, next(iter(plain.values())) if whole else plain or None)


def _plain(value: Any) -> Any:
    if isinstance(value, Quota | BuildOptions | RolloutReport):
        return asdict(value)
    if isinstance(value, Recipe):
        return value.to_dict()
    if isinstance(value, SecretUse):
        return value.to_dict()
    return spec_to_json(value) if isinstance(value, SandboxSpec) else value


def result_of(verb: Verb[..., Any], data: Any) -> Any:
    """A verb's result out of the JSON of its answer; `FailedPrecondition` where it does not fit."""
    return decoded(_decoder(verb), data)


def decoded(decode: Callable[[Any], T], data: Any) -> T:
    """`decode(data)`; `FailedPrecondition` where it does not fit: then the server is of another version."""
    try:
        return decode(data)
    except (KeyError, ValueError, TypeError, AttributeError, IndexError, InvalidRequest) as error:
        raise FailedPrecondition(
            f"the API's answer makes no sense here ({type(error).__name__}: {error}): it is of another version, or is "
            "no Shoal's",
            state="version",
        ) from None


@cache
def _decoder(verb: Verb[..., Any]) -> Callable[[Any], Any]:
    kind = get_type_hints(verb.declaration)["return"]
    if verb.many is None:
        return decoder(kind)
    name, decode = verb.many, decoder(get_args(kind)[0])
    return lambda answer: [decode(each) for each in answer[name]]


@cache
def decoder(kind: Any) -> Callable[[Any], Any]:
    """What makes an object of that type out of JSON. Members that are not known are passed over: a newer server may
    tell more."""
    if kind is SandboxInfo:
        return info_from_json
    if kind is ImageRecord:
        return ImageRecord.from_dict
    if kind is PoolInfo:
        return PoolInfo.from_dict
    if kind is VolumeInfo:
        return VolumeInfo.from_dict
    if get_origin(kind) is tuple:  # a new token with its text
        return lambda made: (decoder(TokenInfo)(made), str(made["token"]))
    return TypeAdapter(kind).validate_python
