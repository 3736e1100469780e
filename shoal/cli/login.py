"""`shoal login` and `logout`: the APIs that this user has tokens for."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shoal.cli import console, session
from shoal.client import cluster_address, config_file
from shoal.model.errors import InvalidRequest

if TYPE_CHECKING:
    from shoal.model.access import TokenInfo

_MAX_TOKEN = 4096

Url = Annotated[str, typer.Argument(metavar="URL", help="https://host, or http://host:port.", show_default=False)]


def login(
    url: Url,
    token_stdin: Annotated[bool, typer.Option("--token-stdin", help="Read the token from standard input.")] = False,
    keep_default: Annotated[bool, typer.Option("--keep-default", help="Keep the present default cluster.")] = False,
) -> None:
    """Store the token of a cluster's API.

    Asks for the token without showing it, tries it, and writes it to ~/.config/shoal/config.toml, which only you can
    read. The cluster becomes the default one.

    \b
    Examples:
      shoal login https://shoal.example.org
      shoal login http://127.0.0.1:8000 --token-stdin < token
      shoal --ca own-ca.pem login https://shoal.internal:8443
    """
    known = config_file.read()  # raises its errors before asking for a token
    meant = cluster_address.api(url, None, session.target.get().ca)
    base, ca = meant.url, meant.ca
    token = _token(token_stdin, base)
    info = asyncio.run(_try(base, token, ca))
    default = not keep_default or known.default is None
    config_file.put(base, token, ca=None if ca is None else str(Path(ca).absolute()), default=default)
    console.err().print(_told(base, info, default), markup=False)


def logout(
    url: Annotated[
        str | None, typer.Argument(metavar="URL", help="Default: the default cluster.", show_default=False)
    ] = None,
) -> None:
    """Remove the stored token of a cluster's API. It stays valid until `shoal tokens rm` revokes it.

    \b
    Examples:
      shoal logout
      shoal logout https://shoal.example.org
    """
    from shoal.transport.http_server import normal_url

    url = url or session.target.get().url
    base = config_file.read().default if url is None else normal_url(url)
    if base is None:
        raise InvalidRequest(f"URL: {config_file.path()} has no default; name the cluster", field="url")
    if not config_file.remove(base):
        raise InvalidRequest(f"URL: {base} is not in {config_file.path()}", field="url")
    console.err().print(f"{base} is removed.", markup=False)


def _token(from_stdin: bool, base: str) -> str:
    given = session.target.get().token
    if given is not None:
        return given
    if from_stdin:
        return sys.stdin.read(_MAX_TOKEN + 1).strip()
    if not sys.stdin.isatty():
        raise InvalidRequest(
            "--token-stdin: standard input is not a terminal; pass --token-stdin to read the token from it",
            field="token_stdin",
        )
    import getpass

    return getpass.getpass(f"Token for {base}: ").strip()


async def _try(base: str, token: str, ca: str | None) -> TokenInfo:
    from shoal.transport.http import HttpTransport

    transport = await HttpTransport.open(base, token, ca)
    try:
        return await transport.whoami()
    finally:
        await transport.close()


def _told(base: str, info: TokenInfo, default: bool) -> str:
    meant = "; it is meant from now on where no cluster is named" if default else ""
    return f"{base} accepts the token {console.token(info)}{meant}."
