"""Arguments that several calls share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shoal.client.cluster import Client
from shoal.model.errors import InvalidRequest
from shoal.model.states import State
from shoal.model.validate import check_name

SHELL = "/bin/sh"


def states_of(values: Sequence[State | str]) -> tuple[State, ...]:
    """States by their names."""
    for value in values:
        if value not in list(State):
            raise InvalidRequest(f"states: {value!r:.80} is none; there are {', '.join(State)}", field="states")
    return tuple(State(value) for value in values)


def argv_of(command: Sequence[Any]) -> Sequence[str]:
    """The argument vector of a command: a shell's line, one list, or arguments. `shoal.wire` checks the arguments."""
    only = command[0] if len(command) == 1 else command
    if isinstance(only, str):
        return (SHELL, "-c", only)
    if not only or isinstance(only, bytes | bytearray) or not isinstance(only, Sequence):
        raise InvalidRequest(
            f"command: {only!r:.80} is none; give a line for the shell, a list of strings, or several strings",
            field="command",
        )
    return only


async def environment_of(client: Client, given: str | None) -> str:
    """The given environment, else the token's."""
    if given is None:
        return await client.transport.default_environment()
    check_name("environment", given)
    return given
