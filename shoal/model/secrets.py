"""Secrets: named values that a sandbox gets as environment variables or files in memory, and that nothing else tells.

    stored   values by a name in an environment, written through the API and never read back
    inline   values for one sandbox only, which its creator gives with the create

A spec has no values but those of inline secrets, and those only on the way from its creator to the controller, which
encrypts them (`sealed`) before it keeps them anywhere. No message, error or `repr` of this module shows a value.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from shoal.model.errors import InvalidRequest
from shoal.model.validate import MAX_ARGV_ITEM, check_name, text_size

KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,254}")
"""A key: a name of a variable, and of a file."""

MOST_KEYS = 256
MOST_BYTES = 64 << 10
"""Bytes of one secret, keys and values together: what travels in one message of Ray's, and never through its store of
objects, which may be written to disk."""

MOST_USES = 32
MOST_USED_BYTES = 96 << 10
"""Bytes of all secrets of one sandbox together. Ray sends up to 100 KiB beside a call."""

REGISTRY_KEYS = ("REGISTRY_USERNAME", "REGISTRY_PASSWORD")
"""The keys of a secret with the credentials of a registry."""

_RESERVED = ("/proc", "/sys", "/dev", "/.shoal")


@dataclass(frozen=True, slots=True)
class SecretUse:
    """A secret that a sandbox gets: a stored one, by its `name`, or an inline one, without.

    `keys`: of a stored one those that it must have, of an inline one those that it has. `directory`: where they are
    files; None: they are environment variables. `values`: of an inline one, until the controller has sealed it;
    `sealed`: those encrypted; `mark`: the same for the same values, and tells nothing of them.
    """

    name: str | None = None
    keys: tuple[str, ...] = ()
    directory: str | None = None
    values: Mapping[str, str] | None = field(default=None, repr=False)
    mark: str = ""
    sealed: str = field(default="", repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, as it is told and asked for: without what is sealed."""
        found: dict[str, Any] = {} if self.name is None else {"name": self.name}
        if self.values is not None:
            found["values"] = dict(self.values)
        elif self.keys:
            found["keys"] = list(self.keys)
        return found if self.directory is None else {**found, "directory": self.directory}

    def to_row(self) -> dict[str, Any]:
        """JSON-ready, as the store keeps it. `ValueError` before it is sealed."""
        if self.values is not None:
            raise ValueError("a secret is about to be written in clear")
        row = {**asdict(self), "keys": list(self.keys)}
        del row["values"]
        return row

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> SecretUse:
        """The inverse of `to_row`."""
        return cls(**{**row, "keys": tuple(row["keys"])})

    def told(self) -> SecretUse:
        """What may be shown of it."""
        return replace(self, values=None, mark="", sealed="")


@dataclass(frozen=True, slots=True)
class SecretInfo:
    """A stored secret, without its values. Times in unix seconds; `version`: rises with each change; `bytes`: of keys
    and values; `key_id`: which key it is encrypted with."""

    name: str
    environment: str
    keys: tuple[str, ...]
    created_at: float
    updated_at: float
    version: int = 1
    bytes: int = 0
    key_id: str = ""

    @property
    def id(self) -> str:
        """Its name among the secrets of all environments."""
        return f"{self.environment}/{self.name}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "keys": list(self.keys)}


@dataclass(frozen=True, slots=True)
class StoredSecret:
    """A secret as the store keeps it. `sealed`: its values, encrypted."""

    info: SecretInfo
    sealed: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class SecretValues:
    """What a sandbox gets, from the controller to its slot. `files`: by directory. Never kept, and never shown."""

    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    files: Mapping[str, Mapping[str, str]] = field(default_factory=dict, repr=False)


def secret_uses(given: Any, where: str = "secrets") -> tuple[SecretUse, ...]:
    """The secrets that a caller gave: a list of `SecretUse`, of names, or of objects as in JSON; or names in one text,
    with commas between them. Whether they make sense, `check_uses` says. Raises `InvalidRequest`."""
    if isinstance(given, str):
        given = [part.strip() for part in given.split(",")]
    if given is None:
        return ()
    if not isinstance(given, list | tuple):
        raise InvalidRequest(f"{where}: a {type(given).__name__} is no list of secrets; give one", field=where)
    return tuple(secret_use(f"{where}.{at}", each) for at, each in enumerate(given))


def secret_use(where: str, given: Any) -> SecretUse:
    """The same for one."""
    if isinstance(given, SecretUse):
        return given
    if isinstance(given, str):
        return SecretUse(name=given)
    if not isinstance(given, Mapping):
        raise InvalidRequest(
            f"{where}: a {type(given).__name__} is no secret; give Secret.from_name('…') or another", field=where
        )
    if unknown := sorted(map(str, given.keys() - {"name", "keys", "directory", "values"})):
        raise InvalidRequest(f"{where}: there is no member {unknown[0][:80]!r}; remove it", field=where)
    name, keys, directory, values = (given.get(each) for each in ("name", "keys", "directory", "values"))
    keys = () if keys is None else keys
    if not isinstance(keys, list | tuple) or not all(isinstance(key, str) for key in keys):
        raise InvalidRequest(f"{where}: `keys` is no list of names; give one", field=where)
    for member, value in (("name", name), ("directory", directory)):
        if value is not None and not isinstance(value, str):
            raise InvalidRequest(f"{where}: `{member}` is {type(value).__name__}; give a text", field=where)
    if values is not None:
        check_values(where, values)
        keys = sorted(values)
    return SecretUse(name, tuple(keys), directory, values)


def check_uses(where: str, uses: Iterable[SecretUse]) -> None:
    """Raises `InvalidRequest` for the first thing that cannot be."""
    uses = tuple(uses)
    if len(uses) > MOST_USES:
        raise InvalidRequest(f"{where}: {len(uses)} are too many; give at most {MOST_USES}", field=where)
    for at, use in enumerate(uses):
        check_use(f"{where}.{at}", use)


def check_use(where: str, use: SecretUse) -> None:
    """The same for one."""
    inline = use.values is not None or bool(use.sealed)
    if inline is (use.name is not None):
        raise InvalidRequest(f"{where}: give either the name of a stored secret, or values", field=where)
    if use.name is not None:
        check_name(where, use.name)
    if use.values is not None:
        check_values(where, use.values)
    _check_keys(where, use.keys)
    if use.directory is not None:
        _check_directory(where, use.directory)


def check_values(where: str, values: Any) -> int:
    """The bytes of a secret's keys and values. Raises `InvalidRequest` for what is none."""
    if not isinstance(values, Mapping) or not values:
        raise InvalidRequest(f"{where}: its values are no object of texts, or empty; give KEY: value", field=where)
    _check_keys(where, values)
    size = 0
    for key, value in values.items():
        own = len(key) + text_size(where, value, f"the value of {key}")
        if own >= MAX_ARGV_ITEM:
            raise InvalidRequest(f"{where}: the value of {key} is too long; shorten it", field=where)
        size += own
    if size > MOST_BYTES:
        raise InvalidRequest(f"{where}: it has {size:,} bytes, more than {MOST_BYTES:,}; divide it", field=where)
    return size


def _check_keys(where: str, keys: Iterable[Any]) -> None:
    keys = tuple(keys)
    if len(keys) > MOST_KEYS:
        raise InvalidRequest(f"{where}: {len(keys)} keys are too many; use at most {MOST_KEYS}", field=where)
    for key in keys:
        if not isinstance(key, str) or not KEY.fullmatch(key):
            raise InvalidRequest(
                f"{where}: {str(key)[:64]!r} is no key; use letters, digits, underscores, dots and dashes, and no "
                "digit, dot or dash first",
                field=where,
            )


def _check_directory(where: str, directory: str) -> None:
    text_size(where, directory, "its directory")
    parts = directory.split("/")[1:]
    if not directory.startswith("/") or not all(part not in ("", ".", "..") for part in parts) or len(directory) > 1024:
        raise InvalidRequest(
            f"{where}: {directory[:80]!r} is no directory for secrets; give an absolute path such as /run/secrets",
            field=where,
        )
    if any(directory == each or directory.startswith(f"{each}/") for each in _RESERVED):
        raise InvalidRequest(
            f"{where}: {directory[:80]!r} is the system's; give another such as /run/secrets", field=where
        )


def directories(uses: Iterable[SecretUse]) -> tuple[str, ...]:
    """Where secrets are files."""
    return tuple(sorted({use.directory for use in uses if use.directory is not None}))


def packed(values: Mapping[str, str]) -> bytes:
    """Values as bytes: the same for the same values."""
    return json.dumps(dict(values), sort_keys=True).encode()


def unpacked(data: bytes) -> dict[str, str]:
    """The inverse of `packed`."""
    found: dict[str, str] = json.loads(data)
    return found


def gathered(uses: Iterable[SecretUse], values: Iterable[Mapping[str, str]]) -> SecretValues:
    """What the processes of a sandbox get of its secrets, whose values come in the same order: later over earlier."""
    env: dict[str, str] = {}
    files: dict[str, dict[str, str]] = {}
    for use, own in zip(uses, values, strict=True):
        if use.directory is None:
            env |= own
        else:
            files.setdefault(use.directory, {}).update(own)
    return SecretValues(env, files)
