"""A spec as its creator writes it: flat, by the names of `Sandbox.create`'s options, with `cpu` and `memory` as
(request, limit).

    image, cpu, memory, disk, pids, gpu, command, name, tags, … as in `SandboxSpec`

The client's arguments and the API's JSON have this form. Units as everywhere: cores, MiB, seconds.
"""

from __future__ import annotations

import ast
import functools
import inspect
import os
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from typing import TYPE_CHECKING, Any

from shoal.model import spec as spec_module
from shoal.model.errors import InvalidRequest
from shoal.model.mounts import mounts_of, to_dicts
from shoal.model.secrets import secret_uses
from shoal.model.spec import Resources, SandboxSpec

if TYPE_CHECKING:
    from shoal.model.settings import SandboxDefaults

OPTION_OF = {"regions": "region"}
"""Fields whose option has another name: a user writes one region, or several."""

PLAIN = {OPTION_OF.get(one.name, one.name): one for one in fields(SandboxSpec) if one.name != "resources"}
AMOUNTS = {one.name: one for one in fields(Resources) if not one.name.endswith(("_request", "_limit"))}
PAIRS = tuple(one.name.removesuffix("_request") for one in fields(Resources) if one.name.endswith("_request"))
NAMES = frozenset({*PLAIN, *AMOUNTS, *PAIRS})
"""The names of all options."""


def options_of(spec: SandboxSpec) -> dict[str, Any]:
    """The options that make `spec`, all of them, JSON-ready."""
    r = spec.resources
    options = {name: getattr(spec, one.name) for name, one in PLAIN.items()}
    options |= {name: getattr(r, name) for name in AMOUNTS}
    options |= {name: [getattr(r, f"{name}_request"), getattr(r, f"{name}_limit")] for name in PAIRS}
    lists = {
        "command": list(spec.command),
        "region": list(spec.regions),
        "volumes": to_dicts(spec.volumes),
        "secrets": [use.to_dict() for use in spec.secrets],
    }
    return {**options, **lists, "tags": dict(spec.tags), "env": dict(spec.env)}


def spec_of(options: Mapping[str, Any]) -> SandboxSpec:
    """The spec that `options` make.

    What is not among them gets its default; `KeyError` or `TypeError` where it has none, `ValueError` for what is no
    pair. Values are not checked.
    """
    sizes = {name: options[name] for name in AMOUNTS if name in options}
    for name in PAIRS:
        sizes[f"{name}_request"], sizes[f"{name}_limit"] = options[name]
    plain = {one.name: options[name] for name, one in PLAIN.items() if name in options}
    tuples = {
        "command": tuple(plain.get("command", ())),
        "regions": _regions(plain.get("regions")),
        "volumes": mounts_of(plain.get("volumes", ())),
        "secrets": secret_uses(plain.get("secrets")),
    }
    return SandboxSpec(resources=Resources(**sizes), **{**plain, **tuples})


def build_spec(given: Mapping[str, Any], defaults: SandboxDefaults) -> SandboxSpec:
    """The spec for the options that a caller gave.

    What is not given, or None, gets the cluster's default, else the field's.

    Raises `InvalidRequest` for what is no option, and for shapes that cannot be. Values are checked by `check_spec`.
    """
    if unknown := given.keys() - NAMES:
        name = min(unknown)
        raise InvalidRequest(f"{name}: there is no such option; remove it", field=name)
    options = {name: _plain(name, value) for name, value in given.items() if value is not None}
    if options.get("persistent"):
        options.setdefault("timeout", None)
    for name in NAMES - {*options, *PAIRS}:
        if hasattr(defaults, name):
            options[name] = getattr(defaults, name)
    for name in PAIRS:
        default = getattr(defaults, f"{name}_request"), getattr(defaults, f"{name}_limit")
        options[name] = _pair(name, options.get(name), *default)
    return spec_of(options)


def default_of(field: Field[Any]) -> Any:
    """A dataclass field's default; `MISSING` where it has none."""
    return field.default if field.default_factory is MISSING else field.default_factory()


@functools.cache
def docs() -> Mapping[str, str]:
    """What each option means: the text below its field."""
    below = _texts_below_fields()
    pairs = {name: f"{below[f'{name}_request']}, or `[request, limit]`" for name in PAIRS}
    return {name: text for name, text in {**below, **pairs}.items() if name in NAMES}


def pair_docs() -> Mapping[str, str]:
    """What the two numbers of each pair mean."""
    below = _texts_below_fields()
    return {name: f"{below[f'{name}_request']}; {below[f'{name}_limit']}" for name in PAIRS}


@functools.cache
def _texts_below_fields() -> dict[str, str]:
    found: dict[str, str] = {}
    for node in ast.parse(inspect.getsource(spec_module)).body:
        if isinstance(node, ast.ClassDef) and node.name in (SandboxSpec.__name__, Resources.__name__):
            for one, below in zip(node.body, node.body[1:], strict=False):
                match one, below:
                    case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                        found[OPTION_OF.get(name, name)] = text
    return found


def _plain(name: str, value: Any) -> Any:
    """Values of the kinds that a caller may give, as the kinds that a spec holds."""
    if isinstance(value, os.PathLike) and name == "workdir":
        return os.fspath(value)
    if name == "command":
        if isinstance(value, list | tuple):
            return tuple(value)
        raise InvalidRequest(f"command: {value!r:.80} is no list of words; give one", field="command")
    if name in ("tags", "env"):
        return mapping(name, value)
    if name == "region":
        return _regions(value)
    if name == "secrets":
        return secret_uses(value)
    return mounts_of(value) if name == "volumes" else value


def _regions(value: Any) -> tuple[Any, ...]:
    """A tuple of what may be one region, several, or none."""
    if isinstance(value, str):
        return (value,)
    if value is None or isinstance(value, list | tuple):
        return tuple(value or ())
    raise InvalidRequest(f"region: {value!r:.80} is no region; give a name, or a list of names", field="region")


def mapping(field: str, value: Mapping[str, str] | None) -> dict[str, str]:
    """A plain dict of what a caller gave."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidRequest(f"{field}: {type(value).__name__} is no mapping; give a dict of strings", field=field)
    return dict(value)


def _pair(field: str, value: Any, default_request: Any, default_limit: Any) -> tuple[Any, Any]:
    """Request and limit. One number is the request; the limit is then the default, or the request if higher."""
    if value is None:
        return default_request, default_limit
    if isinstance(value, tuple | list):
        if len(value) != 2:
            raise InvalidRequest(f"{field}: {len(value)} values; give one number, or (request, limit)", field=field)
        return value[0], value[1]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidRequest(f"{field}: {value!r:.80} is no number; give one, or (request, limit)", field=field)
    return value, max(value, default_limit)
