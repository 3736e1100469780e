"""Options that several commands share, and their parsers."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Annotated

import typer

from shoal.model.errors import InvalidRequest
from shoal.model.mounts import MountSpec

Env = Annotated[
    list[str] | None,
    typer.Option("--env", "-e", metavar="NAME[=VALUE]", help="Environment variable; without a value, the local one."),
]
Secrets = Annotated[
    list[str] | None,
    typer.Option("--secret", metavar="NAME[:DIR]", help="A stored secret, as variables, or as files in DIR."),
]
Workdir = Annotated[str | None, typer.Option("--workdir", "-w", metavar="DIR", help="Absolute path to start in.")]
User = Annotated[str | None, typer.Option("--user", "-u", metavar="USER", help="Name, uid or uid:gid.")]
Interactive = Annotated[
    bool,
    typer.Option("--interactive", "-i", help="Pass on this terminal's input; piped input is always passed on."),
]
Tty = Annotated[bool, typer.Option("--tty", "-t", help="Give the command a terminal.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
WithGvisor = Annotated[
    bool,
    typer.Option("--with-gvisor", help="Build gVisor for runtime=runsc, if it is not there; takes some minutes, once."),
]
EnvironmentName = Annotated[
    str | None,
    typer.Option("--environment", metavar="NAME", help="The environment; default: your token's, or main."),
]
SandboxName = Annotated[str, typer.Argument(metavar="SANDBOX", help="Its id (sb-…) or its name.", show_default=False)]
SandboxNames = Annotated[list[str], typer.Argument(metavar="SANDBOX", help="Ids or names.", show_default=False)]

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}

ENDS_OPTIONS = {"allow_interspersed_args": False}
"""Context settings of commands that take another command with its options."""


def pairs(option: str, values: Sequence[str] | None) -> dict[str, str]:
    """`NAME=VALUE`, or `NAME` for a variable of this process."""
    found: dict[str, str] = {}
    for value in values or ():
        name, equals, text = value.partition("=")
        if not equals:
            if option != "env":
                raise InvalidRequest(f"--{option}: {value!r} is not KEY=VALUE", field=option)
            if name not in os.environ:
                raise InvalidRequest(f"--{option}: {name!r} is not set here; write {name}=VALUE", field=option)
            text = os.environ[name]
        found[name] = text
    return found


def secrets(values: Sequence[str] | None) -> list[dict[str, str]] | None:
    """`NAME`, or `NAME:/directory`."""
    if not values:
        return None
    split = (value.partition(":") for value in values)
    return [{"name": name, **({"directory": directory} if colon else {})} for name, colon, directory in split]


def mounts(values: Sequence[str] | None) -> list[MountSpec]:
    """`NAME:PATH`, with `:ro` for one that is only read, and `NAME/DIRECTORY` for a directory of it."""
    found = []
    for value in values or ():
        source, path, *mode = value.split(":") if value.count(":") else (value, "")
        if not source or not path or mode not in ([], ["ro"], ["rw"]):
            raise InvalidRequest(
                f"--volume: {value!r} is not NAME:PATH, such as data:/data or data:/data:ro", field="volumes"
            )
        name, _, directory = source.partition("/")
        found.append(MountSpec(path, mode == ["ro"], directory, volume=name))
    return found


def amount(option: str, text: str | None) -> float | tuple[float, float] | None:
    """`2`, or `0.5:2` for request and limit."""
    if text is None:
        return None
    try:
        numbers = [float(part) for part in text.split(":")]
    except ValueError:
        numbers = []
    if len(numbers) == 1:
        return numbers[0]
    if len(numbers) == 2:
        return numbers[0], numbers[1]
    raise InvalidRequest(f"--{option}: {text!r} is neither a number nor REQUEST:LIMIT, such as 0.5:2", field=option)


def mebibytes(option: str, text: str | None) -> int | tuple[int, int] | None:
    """Like `amount`, in whole MiB; `2g` is 2048."""
    if text is None:
        return None
    sizes = [_mebibytes(option, part) for part in text.split(":")]
    if len(sizes) == 1:
        return sizes[0]
    if len(sizes) == 2:
        return sizes[0], sizes[1]
    raise InvalidRequest(
        f"--{option}: {text!r} has more than two parts; write REQUEST:LIMIT, such as 256:1024", field=option
    )


def _mebibytes(option: str, text: str) -> int:
    unit = {"m": 1, "g": 1024, "t": 1024 * 1024}.get(text[-1:].lower())
    digits = text[:-1] if unit else text
    if not (digits.isascii() and digits.isdigit()):
        raise InvalidRequest(f"--{option}: {text!r} is not a size in MiB; write 512, 512m or 2g", field=option)
    return int(digits) * (unit or 1)


def command_words(words: Sequence[str] | None) -> tuple[str, ...]:
    """The command as typed, without a leading `--`."""
    command = tuple(words or ())
    return command[1:] if command[:1] == ("--",) else command


def seconds(option: str, text: str | None) -> float | None:
    """`90`, `0.5`, `90s`, `15m`, `12h`, `30d` or `4w`."""
    if text is None:
        return None
    unit = _UNITS_S.get(text[-1:].lower())
    digits = text[:-1] if unit else text
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", digits) or float(digits) == 0:
        raise InvalidRequest(f"--{option}: {text!r} is not a duration; write 90s, 15m, 12h or 30d", field=option)
    return float(digits) * (unit or 1)
