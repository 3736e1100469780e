"""`shoal tokens` and `shoal environments`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoal.cli import console
from shoal.cli.options import EnvironmentName, Json, mebibytes, seconds
from shoal.cli.session import with_cluster
from shoal.model.access import Environment, TokenInfo
from shoal.model.errors import InvalidRequest

tokens = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="API tokens: create, list and revoke them.")
environments = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Environments: namespaces with quotas and tokens."
)

if TYPE_CHECKING:
    from shoal.client.cluster import Client

_TOKEN_COLUMNS = ("ID", "NAME", "ENVIRONMENT", "SCOPE", "AGE", "STATE", "LAST USED")
_ENVIRONMENT_COLUMNS = ("NAME", "SANDBOXES", "CPU", "MEMORY", "CREATES/MIN", "VOLUMES", "FILES", "AGE")

Sandboxes = Annotated[int | None, typer.Option(metavar="N", help="Most living sandboxes.")]
Cpu = Annotated[float | None, typer.Option(metavar="CORES", help="Most cores, as the sum of their limits.")]
Memory = Annotated[str | None, typer.Option(metavar="MIB", help="Most memory, as the sum of their limits (512, 64g).")]
Creates = Annotated[int | None, typer.Option("--creates-per-minute", metavar="N", help="Most creates in any 60 s.")]
VolumeBytes = Annotated[
    str | None, typer.Option("--volume-bytes", metavar="SIZE", help="Most bytes that all volumes may hold (500g).")
]
VolumeFiles = Annotated[
    int | None, typer.Option("--volume-files", metavar="N", help="Most files that all volumes may hold.")
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The environment's name.", show_default=False)]


@tokens.command("create")
def create_token(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name for the token.", show_default=False)],
    environment: EnvironmentName = None,
    scope: Annotated[
        str,
        typer.Option(metavar="read|run|admin", help="Look; also create and use sandboxes; also manage tokens."),
    ] = "run",
    expires_in: Annotated[
        str | None, typer.Option("--expires-in", metavar="TIME", help="12h, 30d, …; default: never.")
    ] = None,
    json: Json = False,
) -> None:
    """Create a token and print it, the only time it is shown.

    \b
    Examples:
      shoal tokens create ci --environment build --expires-in 30d
      shoal tokens create me --environment '*' --scope admin
      export SHOAL_TOKEN=$(shoal tokens create laptop)
    """
    lifetime = seconds("expires-in", expires_in)
    info, text = with_cluster(
        lambda client: client.create_token.aio(name, environment=environment, scope=scope, expires_in=lifetime)
    )
    if json:
        console.print_json({**info.to_dict(), "token": text})
        return
    typer.echo(text)
    console.err().print(f"{console.token(info)}. Store it: it is shown only now.", markup=False)


@tokens.command("ls")
def list_tokens(
    all: Annotated[bool, typer.Option("--all", "-a", help="Also revoked and expired ones.")] = False, json: Json = False
) -> None:
    """List tokens, newest first.

    \b
    Examples:
      shoal tokens ls
      shoal tokens ls --all --json
    """
    now = time.time()
    found = [info for info in with_cluster(lambda client: client.tokens.aio()) if all or info.valid(now)]
    none = "There are no tokens; make one with `shoal tokens create NAME`."
    console.print_listing(found, _TOKEN_COLUMNS, _token_row, none, json=json)


@tokens.command("rm")
def revoke_token(
    ids: Annotated[list[str], typer.Argument(metavar="TOKEN", help="Ids (tk-…).", show_default=False)],
) -> None:
    """Revoke tokens for good, within seconds.

    \b
    Examples:
      shoal tokens rm tk-4fd2mzq7c3wnk5xe
    """
    for token_id in ids:
        if token_id.startswith("shoal_"):
            raise InvalidRequest(
                "TOKEN: this is a token's text, not its id; the id is the part from 'tk-' to the next '_'",
                field="token",
            )
    with_cluster(lambda client: _revoke(client, ids))


@environments.command("create")
def create_environment(
    name: Name,
    sandboxes: Sandboxes = None,
    cpu: Cpu = None,
    memory: Memory = None,
    creates_per_minute: Creates = None,
    volume_bytes: VolumeBytes = None,
    volume_files: VolumeFiles = None,
    json: Json = False,
) -> None:
    """Create an environment. A limit that is not given is the cluster's.

    \b
    Examples:
      shoal environments create build --sandboxes 200 --cpu 64 --memory 256g
      shoal environments create play --creates-per-minute 60
      shoal environments create data --volume-bytes 2000g --volume-files 10000000
    """
    quota = _quota(sandboxes, cpu, memory, creates_per_minute, volume_bytes, volume_files)
    _print(with_cluster(lambda client: client.create_environment.aio(name, **quota)), json, "is made")


@environments.command("ls")
def list_environments(json: Json = False) -> None:
    """List environments with their quotas and usage.

    \b
    Examples:
      shoal environments ls
      shoal environments ls --json | jq '.[].usage'
    """
    found = with_cluster(lambda client: client.environments.aio())
    if json:
        console.print_json([each.to_dict() for each in found])
        return
    now = time.time()
    console.print_table(_ENVIRONMENT_COLUMNS, [_environment_row(each, now) for each in found])


@environments.command("quota")
def set_quota(
    name: Name,
    sandboxes: Sandboxes = None,
    cpu: Cpu = None,
    memory: Memory = None,
    creates_per_minute: Creates = None,
    volume_bytes: VolumeBytes = None,
    volume_files: VolumeFiles = None,
    json: Json = False,
) -> None:
    """Replace an environment's whole quota. What is not given becomes unlimited; no sandbox is ended.

    \b
    Examples:
      shoal environments quota build --sandboxes 400 --cpu 128
      shoal environments quota build
    """
    quota = _quota(sandboxes, cpu, memory, creates_per_minute, volume_bytes, volume_files)
    _print(with_cluster(lambda client: client.set_quota.aio(name, **quota)), json, "has its new quota")


@environments.command("rm")
def delete_environment(name: Name) -> None:
    """Delete an empty environment and its tokens.

    Its name is free again once its history is forgotten.

    \b
    Examples:
      shoal environments rm play
    """
    with_cluster(lambda client: client.delete_environment.aio(name))
    console.err().print(f"{name} is deleted.", markup=False)


async def _revoke(client: Client, ids: Sequence[str]) -> None:
    for token_id in ids:
        info = await client.revoke_token.aio(token_id)
        console.err().print(f"{console.token(info)} is revoked.", markup=False)


def _quota(
    sandboxes: int | None,
    cpu: float | None,
    memory: str | None,
    creates: int | None,
    volume_bytes: str | None,
    volume_files: int | None,
) -> dict[str, Any]:
    held = _size("volume-bytes", volume_bytes)
    return {
        "sandboxes": sandboxes,
        "cpu": cpu,
        "memory": _size("memory", memory),
        "creates_per_minute": creates,
        "volume_bytes": None if held is None else held << 20,
        "volume_files": volume_files,
    }


def _size(name: str, given: str | None) -> int | None:
    size = mebibytes(name, given)
    if isinstance(size, tuple):
        raise InvalidRequest(f"--{name}: {given!r} is not one size", field=name)
    return size


def _print(environment: Environment, json: bool, what: str) -> None:
    if json:
        console.print_json(environment.to_dict())
    else:
        console.err().print(f"{environment.name} {what}.", markup=False)


def _token_row(info: TokenInfo, now: float) -> tuple[str, ...]:
    state = "revoked" if info.revoked_at is not None else "valid" if info.valid(now) else "expired"
    if state == "valid" and info.expires_at is not None:
        state = f"valid for {console.age(info.expires_at - now)}"
    used = "never" if info.last_used_at is None else f"{console.age(now - info.last_used_at)} ago"
    return info.id, info.name, info.environment, info.scope.value, console.age(now - info.created_at), state, used


def _environment_row(each: Environment, now: float) -> tuple[str, ...]:
    def of(name: str) -> str:
        used, most = getattr(each.usage, name), getattr(each.quota, name)
        return f"{used or 0:g}" if most is None else f"{used or 0:g} of {most:g}"

    figures = [of(name) for name in ("sandboxes", "cpu", "memory", "creates_per_minute")]
    held, most = each.usage.volume_bytes or 0, each.quota.volume_bytes
    figures += [f"{held >> 30} GiB" if most is None else f"{held >> 30} of {most >> 30} GiB", of("volume_files")]
    return each.name, *figures, console.age(now - each.created_at)
