"""`shoal dashboard`: the cluster in a browser."""

from __future__ import annotations

import os
import sys
import webbrowser
from typing import TYPE_CHECKING, Annotated

import typer

from shoal.cli import console
from shoal.cli.options import Json
from shoal.cli.session import with_cluster
from shoal.model import verbs
from shoal.model.access import INSIDE
from shoal.model.errors import FailedPrecondition

if TYPE_CHECKING:
    from shoal.client.cluster import Client


def dashboard(
    no_open: Annotated[
        bool, typer.Option("--no-open", help="Only print the link, also where there is a browser.")
    ] = False,
    json: Json = False,
) -> None:
    """Open the cluster's dashboard in a browser, signed in.

    Prints a link that signs in one browser with this command's token, once, within ten minutes; and opens it if there
    is a screen.

    \b
    Examples:
      shoal dashboard
      shoal dashboard --no-open
      shoal --url https://shoal.example.org dashboard
    """
    link, expires_at = with_cluster(_link)
    if json:
        console.print_json({"url": link, "expires_at": expires_at})
        return
    typer.echo(link)
    if not no_open and sys.stdout.isatty() and _has_screen():
        webbrowser.open(link)


async def _link(client: Client) -> tuple[str, float | None]:
    from shoal.transport.http import HttpTransport

    transport = client.transport
    if not isinstance(transport, HttpTransport):
        raise FailedPrecondition(
            "the dashboard is a part of the HTTP API, which this command does not go through; give --url",
            state="no_api",
        )
    if (await transport.whoami()).id == INSIDE.token:
        return f"{transport.url}/", None  # authentication is off
    code = await transport.ask(verbs.sign_in_code)
    return f"{transport.url}/#sign-in={code.code}", code.expires_at


def _has_screen() -> bool:
    return sys.platform == "darwin" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
