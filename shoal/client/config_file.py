"""`config.toml`: the APIs that this user knows, with their tokens.

    <XDG_CONFIG_HOME or ~/.config>/shoal/config.toml     0600; SHOAL_CONFIG names another file

    default = "https://shoal.example.org"

    [servers."https://shoal.example.org"]
    token = "shoal_tk-…"
    ca = "/etc/ssl/own-ca.pem"

URLs are written as `shoal.transport.http_server.normal_url` gives them. Standard library only.
"""

from __future__ import annotations

import json
import os
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from shoal.model.cluster_file import write_private
from shoal.model.errors import FailedPrecondition

_MAX_SIZE = 1 << 20


@dataclass(frozen=True, slots=True)
class ServerEntry:
    """What is known of one API. `ca`: a file of certificates."""

    token: str | None = None
    ca: str | None = None


@dataclass(frozen=True, slots=True)
class Config:
    """The file's content. `default`: the URL that is meant where none is named."""

    default: str | None = None
    servers: Mapping[str, ServerEntry] = field(default_factory=dict)


def path() -> Path:
    """Where the file is, or would be."""
    named = os.environ.get("SHOAL_CONFIG")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "shoal" / "config.toml"


def read() -> Config:
    """What the file says; an empty one where there is none.

    `FailedPrecondition` where others than its owner can read it, or where it makes no sense: a token may stand in it.
    """
    file = path()
    try:
        with file.open("rb") as opened:
            mode = os.fstat(opened.fileno()).st_mode
            data = opened.read(_MAX_SIZE + 1)
    except FileNotFoundError:
        return Config()
    except OSError as error:
        raise _wrong(f"it cannot be read ({error.strerror})", "mend that, or name another in SHOAL_CONFIG") from None
    if stat.S_IMODE(mode) & 0o077:
        raise _wrong("others can read it, and tokens stand in it", f"run `chmod 600 {file}`")
    try:
        if len(data) > _MAX_SIZE:
            raise ValueError(f"it is longer than {_MAX_SIZE} bytes")
        return _decode(tomllib.loads(data.decode("utf-8")))
    except (ValueError, TypeError) as error:
        raise _wrong(str(error), "mend it, or remove it and run `shoal login` again") from None


def put(url: str, token: str | None, *, ca: str | None = None, default: bool) -> None:
    """Keeps what is to be known of `url`, in place of what was. `ca` None: as it was. `default`: it is meant from now on where no other is
    named."""
    known = read()
    before = known.servers.get(url, ServerEntry())
    servers = {**known.servers, url: ServerEntry(token, ca if ca is not None else before.ca)}
    _write(replace(known, servers=servers, default=url if default else known.default))


def remove(url: str) -> bool:
    """Forgets `url`; whether it was known."""
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
        raise ValueError(f"it has {next(iter(data))!r}, of which nothing is known")
    if not isinstance(servers, dict) or not all(isinstance(entry, dict) for entry in servers.values()):
        raise ValueError("`servers` must hold tables")
    return Config(default, {url: _entry(url, dict(entry)) for url, entry in servers.items()})


def _entry(url: str, data: dict[str, Any]) -> ServerEntry:
    entry = ServerEntry(_text("token", data.pop("token", None)), _text("ca", data.pop("ca", None)))
    if data:
        raise ValueError(f"{url} has {next(iter(data))!r}, of which nothing is known")
    return entry


def _text(name: str, value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{name} must be a text")
    return value


def _write(config: Config) -> None:
    lines = [] if config.default is None else [f"default = {_quoted(config.default)}", ""]
    for url, entry in sorted(config.servers.items()):
        lines.append(f"[servers.{_quoted(url)}]")
        lines += [
            f"{name} = {_quoted(value)}"
            for name, value in (("token", entry.token), ("ca", entry.ca))
            if value is not None
        ]
        lines.append("")
    target = path()
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(target.resolve(), "\n".join(lines).encode())  # of a link it is the target that is replaced
    except OSError as error:
        raise _wrong(f"it cannot be written ({error.strerror})", "mend that, or name another in SHOAL_CONFIG") from None


def _quoted(text: str) -> str:
    # A JSON string without surrogates is a TOML one, too, but for the delete character.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _wrong(what: str, remedy: str) -> FailedPrecondition:
    return FailedPrecondition(f"{path()}: {what}; {remedy}", state="config")
