"""`shoal status` of a cluster that is known by its API only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from shoal.cli import console
from shoal.cli.nodes import print_nodes
from shoal.cli.session import with_cluster
from shoal.model.errors import PermissionDenied

if TYPE_CHECKING:
    from shoal.client import Client


def status(url: str, json: bool) -> None:
    """Prints what the API at `url` tells. To a token of one environment that is no more than that the cluster is there."""
    nodes = with_cluster(_nodes)
    if json:
        console.print_json({"url": url, "running": True, "nodes": nodes})
        return
    typer.echo(f"Cluster at {url}")
    if nodes is None:
        typer.echo("It runs. Its nodes are shown to tokens of all environments ('*').")
    else:
        print_nodes(nodes)


async def _nodes(client: Client) -> list[dict[str, Any]] | None:
    try:
        return [node.to_dict() for node in await client.nodes.aio()]
    except PermissionDenied:
        return None
