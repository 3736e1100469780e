"""`shoal status` of a remote cluster, by its API or by Ray."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from shoal.cli import console
from shoal.cli.nodes import print_nodes
from shoal.cli.session import with_cluster
from shoal.model.errors import PermissionDenied, Unavailable

if TYPE_CHECKING:
    from shoal.client.cluster import Client
    from shoal.model.access import TokenInfo


@dataclass(frozen=True, slots=True)
class _Told:
    """`nodes` None: the token may not see them."""

    token: TokenInfo | None
    nodes: list[dict[str, Any]] | None


def status(where: str, json: bool) -> None:
    """Prints the state of the cluster at `where`. A token of one environment only sees that it answers."""
    try:
        told = with_cluster(_ask)
    except Unavailable:
        if json:
            console.print_json({"url": where, "running": False, "token": None, "nodes": None})
        raise
    if json:
        token = None if told.token is None else told.token.to_dict()
        console.print_json({"url": where, "running": True, "token": token, "nodes": told.nodes})
        return
    typer.echo(f"Cluster at {where}: it answers.")
    if told.token is not None:
        typer.echo(f"Your token is {console.token(told.token)}.")
    if told.nodes is None:
        typer.echo("The nodes are shown to tokens of all environments ('*').")
    else:
        print_nodes(told.nodes)


async def _ask(client: Client) -> _Told:
    from shoal.transport.http import HttpTransport

    transport = client.transport
    token = await transport.whoami() if isinstance(transport, HttpTransport) else None
    try:
        return _Told(token, [node.to_dict() for node in await client.nodes.aio()])
    except PermissionDenied:
        return _Told(token, None)
