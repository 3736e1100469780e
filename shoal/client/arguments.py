"""Arguments that several calls share."""

from __future__ import annotations

from collections.abc import Sequence

from shoal.client.cluster import Client
from shoal.model.errors import InvalidRequest
from shoal.model.states import State
from shoal.model.validate import check_name


def states_of(values: Sequence[State | str]) -> tuple[State, ...]:
    """States by their names."""
    for value in values:
        if value not in list(State):
            raise InvalidRequest(f"states: {value!r:.80} is none; there are {', '.join(State)}", field="states")
    return tuple(State(value) for value in values)


async def environment_of(client: Client, given: str | None) -> str:
    """The given environment, else the token's."""
    if given is None:
        return await client.transport.default_environment()
    check_name("environment", given)
    return given
