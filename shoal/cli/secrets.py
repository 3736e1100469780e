"""`shoal secret`: values that sandboxes get, stored in the cluster."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shoal.cli import attach, console
from shoal.cli.options import EnvironmentName, Json
from shoal.cli.session import with_cluster
from shoal.model.errors import InvalidRequest

if TYPE_CHECKING:
    from shoal.client.cluster import Client
    from shoal.model.secrets import SecretInfo

secret = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Secrets: values that sandboxes get.")

_COLUMNS = ("NAME", "ENVIRONMENT", "KEYS", "VERSION", "AGE", "CHANGED")
_MOST_READ = 1 << 20

Name = Annotated[str, typer.Argument(metavar="NAME", help="The secret's name.", show_default=False)]


@secret.command("create")
def create(
    name: Name,
    values: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE…",
            help="KEY=- reads the value from stdin, KEY alone asks for it. Other users see what is written here.",
            show_default=False,
        ),
    ] = None,
    dotenv: Annotated[
        Path | None, typer.Option("--from-dotenv", metavar="FILE", help="A file of lines KEY=value; - for stdin.")
    ] = None,
    env: Annotated[
        list[str] | None, typer.Option("--from-env", metavar="KEY", help="The value of this variable here.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="In place of the values of that name.")] = False,
    environment: EnvironmentName = None,
    json: Json = False,
) -> None:
    """Store values by a name. Nothing reads them back: `shoal secret ls` tells keys only.

    A value on the command line is in the process list while this runs, and in the shell's history. Better let it be
    asked for, or read from stdin.

    \b
    Examples:
      shoal secret create openai OPENAI_API_KEY             asks for it
      pass openai | shoal secret create openai OPENAI_API_KEY=-
      shoal secret create web --from-dotenv .env --replace
      shoal secret create ci --from-env GITHUB_TOKEN --environment team-a
      shoal run --secret openai shoal/base python3 agent.py
    """
    from shoal.client.secrets import parse_dotenv, read_dotenv

    given: dict[str, str] = {}
    if dotenv is not None:
        given |= parse_dotenv(_stdin(), "stdin") if str(dotenv) == "-" else read_dotenv(dotenv)
    given |= _local(env or ())
    given |= _values(values or ())
    if not given:
        raise InvalidRequest("KEY=VALUE: there is none; give a key, --from-dotenv or --from-env", field="values")

    async def body(client: Client) -> None:
        from shoal.client.secrets import Secret

        await Secret.create.aio(name, given, replace=replace, environment=environment, client=client)

    with_cluster(body)
    if json:
        console.print_json({"name": name, "keys": sorted(given)})
    else:
        console.err().print(f"{name} is stored, with {', '.join(sorted(given))}.", markup=False)


@secret.command("ls")
def ls(environment: EnvironmentName = None, json: Json = False) -> None:
    """List secrets: names, keys and ages, never values.

    \b
    Examples:
      shoal secret ls
      shoal secret ls --json | jq '.[].keys'
    """

    async def body(client: Client) -> Sequence[SecretInfo]:
        from shoal.client.secrets import Secret

        return await Secret.list.aio(environment=environment, client=client)

    none = "There are no secrets; make one with `shoal secret create NAME KEY`."
    console.print_listing(with_cluster(body), _COLUMNS, _row, none, json=json)


@secret.command("rm")
def rm(name: Name, environment: EnvironmentName = None) -> None:
    """Delete a secret. Sandboxes that run keep its values.

    \b
    Examples:
      shoal secret rm openai
    """

    async def body(client: Client) -> None:
        from shoal.client.secrets import Secret

        await Secret.delete.aio(name, environment=environment, client=client)

    with_cluster(body)
    console.err().print(f"{name} is deleted.", markup=False)


@secret.command("rotate")
def rotate(json: Json = False) -> None:
    """Encrypt all secrets anew, with a new key. Old keys stay, to decrypt.

    The new key is made and added to the file of keys, or is the newest that `secrets.key_command` tells.

    \b
    Examples:
      shoal secret rotate
    """

    async def body(client: Client) -> Sequence[SecretInfo]:
        from shoal.model import verbs

        return await client.transport.ask(verbs.rotate_secrets)

    found = with_cluster(body)
    if json:
        console.print_json([each.to_dict() for each in found])
    else:
        console.err().print(f"{len(found)} stored secrets are encrypted with a new key.", markup=False)


def _values(words: Sequence[str]) -> dict[str, str]:
    """What `KEY=VALUE`, `KEY=-` and `KEY` stand for."""
    found: dict[str, str] = {}
    from_stdin = [word for word in words if word.endswith("=-") and word.count("=") == 1]
    if len(from_stdin) > 1:
        raise InvalidRequest("KEY=-: stdin is one value only; use --from-dotenv - for several", field="values")
    for word in words:
        key, equals, value = word.partition("=")
        if word in from_stdin:
            value = _stdin().removesuffix("\n")
        elif not equals:
            if not attach.is_terminal(0):
                raise InvalidRequest(f"{key}: nobody can be asked for it here; write {key}=-", field="values")
            value = typer.prompt(key, hide_input=True)
        found[key] = value
    return found


def _local(names: Sequence[str]) -> dict[str, str]:
    for name in names:
        if name not in os.environ:
            raise InvalidRequest(f"--from-env: {name!r} is not set here", field="from_env")
    return {name: os.environ[name] for name in names}


def _stdin() -> str:
    try:
        return sys.stdin.buffer.read(_MOST_READ).decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidRequest("stdin: it is no text in UTF-8; encode it, in base64 say", field="values") from None


def _row(info: SecretInfo, now: float) -> tuple[str, ...]:
    ages = console.age(now - info.created_at), console.age(now - info.updated_at)
    return info.name, info.environment, ", ".join(info.keys), str(info.version), *ages
