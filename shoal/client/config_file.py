"""`config.toml`: the APIs that this user has logged in to, with their tokens.

    <XDG_CONFIG_HOME or ~/.config>/shoal/config.toml     0600; SHOAL_CONFIG names another file

    default = "https://shoal.example.org"

    [servers."https://shoal.example.org"]
    token = "shoal_tk-…"
    ca = "/etc/ssl/own-ca.pem"

URLs are written as `shoal.transport.http_server.normal_url` returns them.
"""

from __future__ import annotations

import os
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tomli_w

from shoal.model.cluster_file import write_private
from shoal.model.errors import FailedPrecondition

_MAX_SIZE = 1 << 20


@dataclass(frozen=True, slots=True)
class ServerEntry:
    """The entry of one API. `ca`: the path of a certificate file."""

    token: str | None = None
    ca: str | None = None


@dataclass(frozen=True, slots=True)
class Config:
    """The file's content. `default`: the URL to use when none is given."""

    default: str | None = None
    servers: Mapping[str, ServerEntry] = field(default_factory=dict)


def path() -> Path:
    """The path of the file, whether it exists or not."""
    named = os.environ.get("SHOAL_CONFIG")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "shoal" / "config.toml"


def read() -> Config:
    """The file's content; an empty `Config` if there is no file.

    `FailedPrecondition` if the file is malformed, or if other users can read it: it holds tokens.
    """
    file = path()
    try:
        with file.open("rb") as opened:
            mode = os.fstat(opened.fileno()).st_mode
            data = opened.read(_MAX_SIZE + 1)
    except FileNotFoundError:
        return Config()
    except OSError as error:
        raise _wrong(f"it cannot be read ({error.strerror})", "fix that, or name another in SHOAL_CONFIG") from None
    if stat.S_IMODE(mode) & 0o077:
        raise _wrong("other users can read it, and it holds tokens", f"run `chmod 600 {file}`")
    try:
        if len(data) > _MAX_SIZE:
            raise ValueError(f"it is longer than {_MAX_SIZE} bytes")
        return _decode(tomllib.loads(data.decode("utf-8")))
    except (ValueError, TypeError) as error:
        raise _wrong(str(error), "fix it, or remove it and run `shoal login` again") from None


def put(url: str, token: str | None, *, ca: str | None = None, default: bool) -> None:
    """Writes the entry of `url`. `ca` None keeps the old one; `default` makes it the URL to use when none is given."""
    known = read()
    before = known.servers.get(url, ServerEntry())
    servers = {**known.servers, url: ServerEntry(token, ca if ca is not None else before.ca)}
    _write(replace(known, servers=servers, default=url if default else known.default))


def remove(url: str) -> bool:
    """Removes the entry of `url`; returns whether there was one."""
    known = read()
    servers = {name: entry for name, entry in known.servers.items() if name != url}
    if len(servers) == len(known.servers) and known.default != url:
        return False
    _write(Config(None if known.default == url else known.default, servers))
    return True


def _decode(data: dict[str, Any]) -> Config:
    servers = data.pop("servers", {})
    default = _text("default", data.pop("default", None))
    if data:
        raise ValueError(f"unknown key {next(iter(data))!r}")
    if not isinstance(servers, dict) or not all(isinstance(entry, dict) for entry in servers.values()):
        raise ValueError("`servers` must hold tables")
    return Config(default, {url: _entry(url, dict(entry)) for url, entry in servers.items()})


def _entry(url: str, data: dict[str, Any]) -> ServerEntry:
    entry = ServerEntry(_text("token", data.pop("token", None)), _text("ca", data.pop("ca", None)))
    if data:
        raise ValueError(f"unknown key {next(iter(data))!r} for {url}")
    return entry


def _text(name: str, value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{name} must be a string")
    return value


def _write(config: Config) -> None:
    data: dict[str, Any] = {} if config.default is None else {"default": config.default}
    if config.servers:
        data["servers"] = {url: _table(entry) for url, entry in sorted(config.servers.items())}
    target = path()
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(target.resolve(), tomli_w.dumps(data).encode())  # replaces what a symlink points at
    except OSError as error:
        raise _wrong(f"it cannot be written ({error.strerror})", "fix that, or name another in SHOAL_CONFIG") from None


def _table(entry: ServerEntry) -> dict[str, str]:
    return {name: value for name, value in (("token", entry.token), ("ca", entry.ca)) if value is not None}


def _wrong(what: str, remedy: str) -> FailedPrecondition:
    return FailedPrecondition(f"{path()}: {what}; {remedy}", state="config")
