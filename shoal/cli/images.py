"""`shoal image ls|show|snapshot|mount|unmount|tag|rm|gc`: the images that there are."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from shoal.cli import console
from shoal.cli.options import EnvironmentName, Json, SandboxName, seconds
from shoal.cli.session import find, with_cluster
from shoal.model import verbs
from shoal.model.images import ImageRecord

if TYPE_CHECKING:
    from shoal.client.cluster import Client

_COLUMNS = ("ID", "NAME", "KIND", "ENVIRONMENT", "SIZE", "IN USE", "AGE", "USED", "EXPIRES", "OF")

ImageName = Annotated[
    str, typer.Argument(metavar="IMAGE", help="Its id (im-…) or its name (name:tag).", show_default=False)
]


def ls(
    kind: Annotated[
        str | None, typer.Option(metavar="snapshot|build|loaded", help="Only those of this kind; default: all.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="NAME[:TAG]", help="Only those of this name; without a tag: with any.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", metavar="N", help="At most so many.")] = 100,
    environment: EnvironmentName = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print ids only.")] = False,
    json: Json = False,
) -> None:
    """List images: snapshots, and what was built.

    \b
    Examples:
      shoal image ls
      shoal image ls --kind snapshot -q
      shoal image ls --name agent --json | jq '.[].digest'
    """

    async def body(client: Client) -> Sequence[ImageRecord]:
        return await client.images.aio(kind=kind, name=name, environment=environment, limit=limit)

    found = with_cluster(body)
    if quiet and not json:
        for each in found:
            typer.echo(each.id)
        return
    none = "There are no images; `shoal image snapshot SANDBOX` takes one of a sandbox's files."
    console.print_listing(found, _COLUMNS, _row, none, json=json)


def show(image: ImageName, environment: EnvironmentName = None) -> None:
    """Show an image, as JSON.

    \b
    Examples:
      shoal image show agent:v1
      shoal image show im-2fq7c3j5kx6n4a7b | jq .config.env
    """

    async def body(client: Client) -> ImageRecord:
        return await client.image.aio(image, environment=environment)

    console.print_json(with_cluster(body).to_dict())


def snapshot(
    sandbox: SandboxName,
    name: Annotated[
        str | None, typer.Option("--name", "-t", metavar="NAME[:TAG]", help="A name, which moves to it.")
    ] = None,
    ttl: Annotated[str | None, typer.Option(metavar="TIME", help="Delete it after this time (90s, 12h, 30d).")] = None,
    path: Annotated[
        str | None, typer.Option(metavar="DIRECTORY", help="Of this directory of the sandbox alone.")
    ] = None,
    json: Json = False,
) -> None:
    """Take an image of a sandbox's files. It goes on.

    \b
    Examples:
      shoal image snapshot web
      shoal image snapshot sb-4fd2mzq7c3wnk5xe --name agent:v1
      shoal image snapshot web --path /srv/data --name data
      shoal run $(shoal image snapshot web --ttl 1h) bash
    """
    lifetime = seconds("ttl", ttl)

    async def body(client: Client) -> ImageRecord:
        found = await find(client, sandbox)
        key = secrets.token_hex(16)
        return await client.transport.ask(verbs.snapshot_filesystem, found.id, name, lifetime, key, path)

    made = with_cluster(body)
    if json:
        console.print_json(made.to_dict())
    else:
        typer.echo(made.id)


def mount(
    sandbox: SandboxName,
    path: Annotated[str, typer.Argument(metavar="PATH", help="Where: an absolute path.", show_default=False)],
    image: Annotated[
        str, typer.Argument(metavar="IMAGE", help="Its id, its name, or a reference.", show_default=False)
    ],
) -> None:
    """Mount an image into a running sandbox.

    What the sandbox writes there is its own, and goes with it.

    \b
    Examples:
      shoal image mount web /srv/data data:latest
    """

    async def body(client: Client) -> None:
        await (await find(client, sandbox)).mount_image.aio(path, image)

    with_cluster(body)


def unmount(
    sandbox: SandboxName,
    path: Annotated[str, typer.Argument(metavar="PATH", help="Where it is mounted.", show_default=False)],
) -> None:
    """Take a mounted image away, with what was written there.

    \b
    Examples:
      shoal image unmount web /srv/data
    """

    async def body(client: Client) -> None:
        await (await find(client, sandbox)).unmount_image.aio(path)

    with_cluster(body)


def tag(
    image: ImageName,
    name: Annotated[
        str | None, typer.Argument(metavar="NAME[:TAG]", help="The name; without one, it loses its own.")
    ] = None,
    environment: EnvironmentName = None,
    json: Json = False,
) -> None:
    """Give an image a name, or take it away.

    Another image that has the name loses it.

    \b
    Examples:
      shoal image tag im-2fq7c3j5kx6n4a7b agent:v2
      shoal image tag agent:v1
    """

    async def body(client: Client) -> ImageRecord:
        return await client.name_image.aio(image, name, environment=environment)

    made = with_cluster(body)
    if json:
        console.print_json(made.to_dict())
    else:
        named = "has no name any more" if made.name is None else f"is {made.name}"
        console.err().print(f"{made.id} {named}.", markup=False)


def rm(
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGE", help="Ids (im-…) or names (name:tag).", show_default=False)
    ],
    when_unused: Annotated[
        bool,
        typer.Option("--when-unused", help="Where sandboxes or pools need it, let it go once they do not any more."),
    ] = False,
    environment: EnvironmentName = None,
) -> None:
    """Delete images.

    One that sandboxes or pools need stays, unless --when-unused.

    \b
    Examples:
      shoal image rm agent:v1
      shoal image rm --when-unused $(shoal image ls --kind snapshot -q)
    """

    async def body(client: Client) -> None:
        for image in images:
            gone = await client.delete_image.aio(image, environment=environment, when_unused=when_unused)
            later = f" once {gone.in_use} sandboxes or pools do not need it any more" if gone.in_use else ""
            console.err().print(f"{gone.name or gone.id} is deleted{later}.", markup=False)

    with_cluster(body)


def gc(
    unused_for: Annotated[
        str | None, typer.Option("--unused-for", metavar="TIME", help="Only those not used for this time (12h, 7d).")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show which.")] = False,
    environment: EnvironmentName = None,
    json: Json = False,
) -> None:
    """Delete images without a name that nobody uses.

    Those that a sandbox or a pool needs stay. The cluster does that by itself after `limits.unused_images`.

    \b
    Examples:
      shoal image gc --dry-run
      shoal image gc --unused-for 7d
    """
    least = seconds("unused-for", unused_for)

    async def body(client: Client) -> Sequence[ImageRecord]:
        return await client.collect_images.aio(unused_for=least or 0.0, dry_run=dry_run, environment=environment)

    gone = with_cluster(body)
    if json:
        console.print_json([each.to_dict() for each in gone])
        return
    for each in gone:
        typer.echo(each.id)
    console.err().print(f"{len(gone)} images {'would be' if dry_run else 'are'} deleted.", markup=False)


def _row(image: ImageRecord, now: float) -> tuple[str, ...]:
    used = "never" if image.used_at is None else f"{console.age(now - image.used_at)} ago"
    expires = "" if image.expires_at is None else f"in {console.age(image.expires_at - now)}"
    size = f"{image.size / 1e6:,.0f} MB"
    what = (image.id, image.name or "", image.kind.value, image.environment, size, str(image.in_use or ""))
    return *what, console.age(now - image.created_at), used, expires, image.sandbox_id or ""
