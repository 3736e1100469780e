"""`shoal tunnel`, `tunnels` and `forward`: access to a sandbox's ports."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from shoal.cli import console
from shoal.cli.options import Json, SandboxName, seconds
from shoal.cli.session import find, with_cluster
from shoal.model.errors import InvalidRequest

if TYPE_CHECKING:
    from shoal.client.cluster import Client
    from shoal.model.access import Tunnel

_HOUR_S = 3600.0
_COLUMNS = ("PORT", "PROTOCOL", "OPEN TO", "WHERE")

Port = Annotated[int, typer.Argument(metavar="PORT", help="The port in the sandbox.", show_default=False)]


def tunnel(
    sandbox: SandboxName,
    port: Port,
    public: Annotated[bool, typer.Option("--public", help="Open to everybody, without a token.")] = False,
    tcp: Annotated[
        bool, typer.Option("--tcp", help="A port of the sandbox's node, for other protocols than HTTP.")
    ] = False,
    rm: Annotated[bool, typer.Option("--rm", help="Close the tunnel.")] = False,
    expires_in: Annotated[
        str, typer.Option("--expires-in", metavar="TIME", help="Lifetime of a private tunnel's token (90s, 12h).")
    ] = "1h",
    json: Json = False,
) -> None:
    """Open a tunnel to a port in a sandbox.

    It prints the tunnel's address: over HTTP a URL, with the token if it is private; over TCP host:port and, on the
    next line, the token, which a client sends as its first line.

    \b
    Examples:
      shoal tunnel web 8080                  a link with a token in it, good for an hour
      shoal tunnel web 8080 --public
      shoal tunnel db 5432 --tcp
      shoal tunnel web 8080 --rm
    """
    if rm:
        with_cluster(lambda client: _close(client, sandbox, port))
        return
    lifetime = seconds("expires-in", expires_in) or _HOUR_S
    made = with_cluster(lambda client: _open(client, sandbox, port, tcp, public, lifetime))
    if json:
        console.print_json(made.to_dict())
        return
    typer.echo(made.link or made.address)
    if made.protocol == "tcp" and made.token is not None:
        typer.echo(made.token)


def tunnels(sandbox: SandboxName, json: Json = False) -> None:
    """List a sandbox's tunnels.

    \b
    Examples:
      shoal tunnels web
    """
    found = with_cluster(lambda client: _list(client, sandbox))
    if json:
        console.print_json([tunnel.to_dict() for tunnel in found])
    else:
        console.print_table(_COLUMNS, [_row(tunnel) for tunnel in found])


def forward(
    sandbox: SandboxName,
    port: Annotated[
        str,
        typer.Argument(metavar="PORT[:LOCAL]", help="The port in the sandbox, and the local one.", show_default=False),
    ],
    host: Annotated[
        str, typer.Option("--host", help="The local address; whoever can reach it can reach the port.")
    ] = "127.0.0.1",
) -> None:
    """Forward a local port to a port in a sandbox.

    It runs until it is interrupted or the sandbox ends. The port need not be exposed. LOCAL defaults to PORT.

    \b
    Examples:
      shoal forward web 8080                 http://127.0.0.1:8080 is the sandbox's port 8080
      shoal forward db 5432:15432
      shoal forward db 5432:0                any free port; its address is printed
    """
    inside, _, local = port.partition(":")
    there = _port(inside)
    here = _port(local) if local else there
    with_cluster(lambda client: _forward(client, sandbox, there, here, host))


async def _open(client: Client, name: str, port: int, tcp: bool, public: bool, expires_in: float) -> Tunnel:
    sandbox = await find(client, name)
    made = await sandbox.expose.aio(port, protocol="tcp" if tcp else "http", public=public)
    if not public and expires_in != _HOUR_S:
        made = await sandbox.connect_token.aio(port, expires_in)
    return made


async def _close(client: Client, name: str, port: int) -> None:
    await (await find(client, name)).unexpose.aio(port)


async def _list(client: Client, name: str) -> list[Tunnel]:
    return [*await (await find(client, name)).tunnels.aio()]


async def _forward(client: Client, name: str, port: int, local_port: int, host: str) -> None:
    sandbox = await find(client, name)
    async with await sandbox.forward.aio(port, local_port, host) as forward:
        typer.echo(forward.address)
        await sandbox.wait.aio()
    console.err().print(f"{sandbox.id} has ended")


def _row(tunnel: Tunnel) -> tuple[str, ...]:
    return (
        str(tunnel.port),
        tunnel.protocol,
        "everybody" if tunnel.public else "token holders",
        tunnel.url or tunnel.address or "",
    )


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5):
        raise InvalidRequest(f"PORT: {text!r} is not a port; write PORT or PORT:LOCAL, such as 8080:9000", field="port")
    return int(text)
