"""The pydantic side of the spec: models of the options, made of the fields of `spec.py`, and the check of a whole spec.

Only for processes that may load pydantic: the client once it is connected, the API, the controller.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pydantic import Field, TypeAdapter, ValidationError, create_model

from shoal.model import field_types
from shoal.model.errors import InvalidRequest
from shoal.model.field_types import Check
from shoal.model.invalid import invalid_request
from shoal.model.options import AMOUNTS, NAMES, OPTION_OF, PAIRS, PLAIN, default_of, docs, options_of, pair_docs
from shoal.model.settings import SandboxDefaults
from shoal.model.spec import Resources, SandboxSpec
from shoal.model.strict import Strict
from shoal.model.validate import check_number, check_text

if TYPE_CHECKING:
    from shoal.model.settings import Limits

_NAMESPACE = {**vars(field_types), "Field": Field}


def _hints(bounds: bool) -> dict[str, Any]:
    return {
        OPTION_OF.get(name, name): hint
        for cls in (SandboxSpec, Resources)
        for name, hint in typing.get_type_hints(cls, localns=_NAMESPACE, include_extras=bounds).items()
    }


_HINTS = _hints(bounds=True)
_PLAIN_HINTS = _hints(bounds=False)


def _pair_type(name: str, hints: dict[str, Any]) -> Any:
    return types.GenericAlias(tuple, (hints[f"{name}_request"], hints[f"{name}_limit"]))


_TYPES = {name: _HINTS[name] for name in (*PLAIN, *AMOUNTS)} | {
    name: typing.Annotated[_pair_type(name, _HINTS), Field(strict=False)] for name in PAIRS
}
"""Each option's type in a whole spec. Not strict: JSON has lists for tuples."""


def _asked() -> Iterator[tuple[str, Any]]:
    """Each option's type and default in a request, where it may be left out."""
    described = docs()
    for name, field in {**PLAIN, **AMOUNTS}.items():
        if name in SandboxDefaults.model_fields or name == "environment":
            yield name, (_TYPES[name] | None, Field(None, description=described[name]))
        else:
            default = default_of(field)
            yield name, (_TYPES[name], Field(default, description=described[name]))
    for name in PAIRS:
        yield name, (_HINTS[f"{name}_request"] | _TYPES[name] | None, Field(None, description=described[name]))


ASKED: dict[str, Any] = dict(_asked())
"""The fields of a model of a request, for `create_model`."""

TOLD: dict[str, Any] = {
    **{name: (_PLAIN_HINTS[name], Field(description=docs()[name])) for name in (*PLAIN, *AMOUNTS)},
    **{name: (_pair_type(name, _PLAIN_HINTS), Field(description=pair_docs()[name])) for name in PAIRS},
}
"""The fields of a model of an answer."""

_REQUIRED: dict[str, Any] = {name: (kind, ...) for name, kind in _TYPES.items()}
_Whole = create_model("_Whole", __base__=Strict, **_REQUIRED)


def _checks(hint: Any) -> Iterator[Check]:
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        for branch in typing.get_args(hint):
            yield from _checks(branch)
    yield from (each for each in getattr(hint, "__metadata__", ()) if isinstance(each, Check))


_CHECKS = {name: checks for name, kind in _TYPES.items() if (checks := tuple(_checks(kind)))}


def parse_option(name: str, text: str) -> Any:
    """The value of an option that is written as text, as on a command line. Raises `InvalidRequest`."""
    try:
        return TypeAdapter(_TYPES[name]).validate_strings(text)
    except ValidationError as error:
        found = [{**each, "loc": (name, *each["loc"])} for each in error.errors(include_url=False)]
        raise invalid_request(found, docs()) from None


def check_spec(spec: SandboxSpec, limits: Limits | None) -> None:
    """Raises `InvalidRequest` for the first thing wrong with `spec`, with its field and the remedy.

    `limits`: None where the cluster's are not known. It does not look at what nodes there are.
    """
    options = {**options_of(spec), "secrets": spec.secrets, "volumes": spec.volumes}
    try:
        _Whole.model_validate(options)
    except ValidationError as error:
        raise invalid_request(error.errors(include_url=False), docs()) from None
    for name, value in options.items():
        if isinstance(value, str) and value:
            check_text(name, value, docs()[name])
        if value is not None and name in _CHECKS:
            for check in _CHECKS[name]:
                check.function(name, value)
    for name in PAIRS:
        request, limit = options[name]
        if request > limit:
            raise InvalidRequest(f"{name}: the request {request} is above the limit {limit}; lower it", field=name)
    _check_persistence(spec)
    if spec.volumes and spec.runtime != "runc":
        raise InvalidRequest(
            f"volumes: the runtime {spec.runtime} cannot mount them; use runc, or copy what is needed", field="volumes"
        )
    if limits is not None:
        if spec.timeout is not None:
            check_number("timeout", spec.timeout, 0, limits.timeout, "seconds")
        if spec.idle_timeout is not None:
            check_number("idle_timeout", spec.idle_timeout, 0, limits.timeout, "seconds")
        check_number("pids", spec.resources.pids, 1, limits.pids, "processes", whole=True)


def _check_persistence(spec: SandboxSpec) -> None:
    if spec.persistent and spec.owner_lease is not None:
        raise InvalidRequest(
            "owner_lease: a persistent sandbox outlives its creator; leave out one of the two", field="owner_lease"
        )
    if not spec.persistent and spec.restart != "no":
        raise InvalidRequest("restart: only a persistent sandbox starts again; add persistent=True", field="restart")
    if not spec.persistent and spec.timeout is None:
        raise InvalidRequest("timeout: only a persistent sandbox has none; give seconds", field="timeout")


assert NAMES == ASKED.keys() == TOLD.keys()
