"""`shoal audit` and `shoal events`."""

from __future__ import annotations

import json as json_module
import os
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from shoal.cli import console
from shoal.cli.options import Json
from shoal.cli.session import find, with_cluster
from shoal.model.access import AuditEntry, SandboxEvent

if TYPE_CHECKING:
    from shoal.client.cluster import Client

_AUDIT_COLUMNS = ("TIME", "ACTION", "TARGET", "OUTCOME", "TOKEN", "ENVIRONMENT", "ADDRESS", "REQUEST")


def audit(
    limit: Annotated[int, typer.Option("--limit", "-n", metavar="N", help="Most entries to show.")] = 50,
    before: Annotated[
        int | None, typer.Option(metavar="ID", help="Only entries before this id, for the next page.")
    ] = None,
    json: Json = False,
) -> None:
    """Show what was done or refused, and by whom, newest first. Needs a token of scope admin.

    \b
    Examples:
      shoal audit
      shoal audit -n 500 --json | jq '.[] | select(.outcome != "ok")'
    """
    entries = with_cluster(lambda client: client.audit.aio(limit=limit, before=before))
    if json:
        console.print_json([entry.to_dict() for entry in entries])
    elif entries:
        console.print_table(_AUDIT_COLUMNS, [_row(entry) for entry in entries])
    else:
        console.err().print("There are no entries.")


def events(
    sandbox: Annotated[
        str | None, typer.Argument(metavar="SANDBOX", help="Only this sandbox: its id or name.", show_default=False)
    ] = None,
    after: Annotated[
        int | None, typer.Option(metavar="ID", help="Also show events since this id; 0: all that are kept.")
    ] = None,
    environment: Annotated[
        str | None,
        typer.Option("--environment", metavar="NAME", help="Only this environment; default: all that your token sees."),
    ] = None,
    no_follow: Annotated[bool, typer.Option("--no-follow", help="Stop after the events so far.")] = False,
    json: Json = False,
) -> None:
    """Show events of sandboxes as they happen, until Ctrl-C.

    \b
    Examples:
      shoal events
      shoal events web
      shoal events --after 0 --no-follow
      shoal events --json | jq -r 'select(.kind == "terminated") | .sandbox_id'
    """
    start = 0 if no_follow and after is None else after
    with_cluster(lambda client: _show(client, sandbox, start, environment, not no_follow, json))


async def _show(
    client: Client, name: str | None, after: int | None, environment: str | None, follow: bool, json: bool
) -> None:
    sandbox_id = None if name is None else (await find(client, name)).id
    if follow and after is None and sys.stdout.isatty():
        console.err().print("Waiting for events; Ctrl-C ends it. Earlier ones: --after 0", style="dim")
    async with client.events(after=after, sandbox_id=sandbox_id, environment=environment) as shown:
        while (event := await shown.next.aio(None if follow else 0)) is not None:
            typer.echo(json_module.dumps(event.to_dict()) if json else _line(event, sys.stdout.isatty()))


_COLOURS = {
    "created": typer.colors.CYAN,
    "running": typer.colors.GREEN,
    "stopped": typer.colors.YELLOW,
    "stopping": typer.colors.YELLOW,
    "failed": typer.colors.RED,
}


def _line(event: SandboxEvent, colour: bool) -> str:
    data = console.printable(" ".join(f"{name}={value}" for name, value in event.data.items() if value is not None))
    parts = [_at(event.at), console.printable(event.sandbox_id), console.printable(event.kind), data]
    if colour and "NO_COLOR" not in os.environ:
        parts[0] = typer.style(parts[0], dim=True)
        parts[2] = typer.style(parts[2], fg=_COLOURS.get(event.kind), bold=event.kind == "failed")
        parts[3] = typer.style(data, dim=True)
    return "  ".join(part for part in parts if part)


def _row(entry: AuditEntry) -> tuple[str, ...]:
    return (
        _at(entry.at),
        entry.action,
        entry.target or "",
        entry.outcome,
        entry.token,
        entry.environment,
        entry.address or "",
        entry.request_id or "",
    )


def _at(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
